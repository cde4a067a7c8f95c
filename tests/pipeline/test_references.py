"""Images that are referred to: what diffusers draws with an IP-Adapter of the same weights."""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import diffusers as _diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from genpipe import Pipeline
from genpipe.checkpoints import CheckpointError, load_checkpoint
from genpipe.checkpoints.layout import ip_adapter
from genpipe.metadata import read_metadata, split_metadata
from genpipe.models.ip_adapter import IPAdapter, IPAdapterConfig
from genpipe.pipeline.references import clip_pixels
from genpipe.render import render
from genpipe.request import Request
from tests.conftest import VISION
from tests.pipeline.drawing import difference, draw
from tests.pipeline.joined import asked_of, check
from tests.pipeline.test_control import SAMPLERS, close, picture

diffusers: Any = _diffusers
WIDTH, HEIGHT = 40, 24
Folders = Callable[[str], Path]
PIPES = {"sd1": "StableDiffusionPipeline", "sdxl": "StableDiffusionXLPipeline"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path, tiny_xl_checkpoint: Path) -> Folders:
    """`folders("sd1")`: a model; `folders("sd1 plus")`: the folder of an IP-Adapter for it, with its image encoder."""
    root, models = tmp_path_factory.mktemp("ip"), {"sd1": tiny_checkpoint, "sdxl": tiny_xl_checkpoint}

    def path(name: str) -> Path:
        family, _, kind = name.partition(" ")
        if not kind:
            return models[family]
        if not (root / name).exists():
            torch.manual_seed(4)
            encoder: Any = CLIPVisionModelWithProjection(CLIPVisionConfig(**VISION, hidden_act="gelu"))
            for parameter in encoder.parameters():
                parameter.data += 0.1 * torch.randn_like(parameter)
            encoder.save_pretrained(root / name / "image_encoder")
            unet = load_checkpoint(models[family]).unet
            widths = tuple(reader.heads * reader.head_channels for reader in unet.readers())
            context = unet.config.context_channels
            config = IPAdapterConfig(20, context, 4, widths)
            if kind == "plus":  # diffusers takes it to have four layers
                config = IPAdapterConfig(32, context, 5, widths, (40, 4, 2))
            adapter = IPAdapter(config)
            for parameter in adapter.parameters():
                parameter.data += 0.3 * torch.randn_like(parameter)
            names = ip_adapter(len(widths))
            state = {names.theirs(key): tensor.contiguous() for key, tensor in adapter.state_dict().items()}
            save_file(state, root / name / "ip.safetensors")
        return root / name

    return path


@cache
def reference(model: Path, adapter: Path, kind: Any, **more: Any) -> tuple[Any, Any]:
    """A pipeline of diffusers' with an IP-Adapter, and its scheduler's config."""
    pipe = kind.from_pretrained(model, **more)
    pipe.load_ip_adapter(str(adapter), subfolder="", weight_name="ip.safetensors", image_encoder_folder="image_encoder")
    pipe.set_ip_adapter_scale(0.7)
    pipe.set_progress_bar_config(disable=True)
    return pipe, pipe.scheduler.config


def theirs(folders: Folders, family: str, kind: str, sampler: str, image: Image.Image, **given: Any) -> Tensor:
    more: Any = {"add_watermarker": False} if family == "sdxl" else {"safety_checker": None}
    pipe, config = reference(folders(family), folders(f"{family} {kind}"), getattr(diffusers, PIPES[family]), **more)
    pipe.scheduler = SAMPLERS[sampler](config)
    with torch.inference_mode():
        return pipe(
            "a red cat",
            ip_adapter_image=image,
            generator=torch.Generator("cpu").manual_seed(5),
            width=WIDTH,
            height=HEIGHT,
            **{"num_inference_steps": 5, "guidance_scale": 4.0, "output_type": "latent", **given},
        ).images


@pytest.fixture(scope="module")
def pipes(folders: Folders) -> Callable[[str], Pipeline]:
    made: dict[str, Pipeline] = {}

    def pipe(name: str) -> Pipeline:
        if name not in made:
            model, adapter = folders(name.partition(" ")[0]), folders(name) / "ip.safetensors"
            made[name] = Pipeline.from_pretrained(model, device="cpu", dtype="fp32", ip_adapter=adapter)
        return made[name]

    return pipe


def ours(pipe: Pipeline, sampler: str, **given: Any) -> Tensor:
    settings: Any = {"steps": 5, "guidance_scale": 4.0, "sampler": sampler, "width": WIDTH, "height": HEIGHT, **given}
    requests = pipe.requests("a red cat", seed=5, **settings)
    return list(pipe.stream(requests))[-1].latents


@pytest.mark.parametrize(("sampler", "guidance"), [*((sampler, 4.0) for sampler in SAMPLERS), ("ddim", 1.0)])
@pytest.mark.parametrize("kind", ["base", "plus"])
@pytest.mark.parametrize("family", PIPES)
def test_a_reference_is_drawn_as_diffusers_draws_it(
    folders: Folders, pipes: Callable[[str], Pipeline], family: str, kind: str, guidance: float, sampler: str
) -> None:
    image, pipe = picture(1, 60, 44), pipes(f"{family} {kind}")
    expected = theirs(folders, family, kind, sampler, image, guidance_scale=guidance)
    latents = ours(pipe, sampler, reference=image, ip_scale=0.7, guidance_scale=guidance)
    assert close(latents, expected)
    with pytest.warns(UserWarning, match="ip_adapter has no effect without reference"):
        plain = ours(pipe, sampler, guidance_scale=guidance)
    assert (plain - latents).abs().max() > 0.05  # else anything would agree


@pytest.mark.parametrize("size", [(60, 44), (29, 97), (28, 28), (500, 20)])
def test_pixels_are_those_of_transformers(size: tuple[int, int]) -> None:
    from transformers import CLIPImageProcessor

    image = picture(1, *size)
    processor: Any = CLIPImageProcessor(size=28, crop_size=28)
    expected = processor(image, return_tensors="pt").pixel_values
    assert (clip_pixels(image, 28) - expected).abs().max() <= 1e-5


def test_images_of_a_batch_have_references_of_their_own(pipes: Callable[[str], Pipeline]) -> None:
    pipe = pipes("sd1 plus")
    given: list[dict[str, Any]] = [{"reference": picture(k), "ip_scale": 0.5 + k} for k in range(2)]
    requests = [pipe.requests("a", seed=k, steps=3, **one)[0] for k, one in enumerate(given)]
    together = list(pipe.stream(requests))[-1].latents
    for k, request in enumerate(requests):
        assert (list(pipe.stream([request]))[-1].latents[0] - together[k]).abs().max() < 1e-4
    with pytest.raises(ValueError, match="a batch must agree in whether there is an image"):
        list(pipe.stream([requests[0], Request("a", **{**base(requests[0]), "seed": 3})]))


def base(request: Request) -> dict[str, Any]:
    return {name: getattr(request, name) for name in ("steps", "guidance_scale", "height", "width")}


def test_a_reference_is_recorded_and_replayed(tmp_path: Path, pipes: Callable[[str], Pipeline]) -> None:
    pipe = pipes("sd1 base")
    picture(1).save(tmp_path / "style.png")
    image = draw(pipe, reference=tmp_path / "style.png", ip_scale=0.9)
    image.save(tmp_path / "a.png")
    request, spec = split_metadata(read_metadata(tmp_path / "a.png"))
    assert request.ip_scale == 0.9 and spec.ip_adapter == pipe.spec.ip_adapter
    settings: Any = {name: value for name, value in request.to_dict().items() if name != "prompt"}
    assert difference(pipe(request.prompt, progress=False, **settings), image) == 0


def test_rows_of_a_manifest_have_references(tmp_path: Path, folders: Folders, pipes: Callable[[str], Pipeline]) -> None:
    picture(1).save(tmp_path / "style.png")
    rows = [{"prompt": "a red cat", "seed": 5, "reference": str(tmp_path / "style.png"), "ip_scale": 0.9}]
    rows += [{"prompt": "a red cat", "seed": 5}]
    options: Any = {"model": folders("sd1"), "ip_adapter": folders("sd1 base") / "ip.safetensors", "dtype": "fp32"}
    list(render(rows, out=tmp_path / "out", devices="cpu", steps=3, guidance_scale=4.0, **options))
    drawn = [json.loads(line) for line in (tmp_path / "out" / "metadata.jsonl").read_text().splitlines()]
    images = {row["line"]: Image.open(tmp_path / "out" / row["file_name"]).convert("RGB") for row in drawn}
    expected = draw(pipes("sd1 base"), reference=tmp_path / "style.png", ip_scale=0.9, steps=3)
    assert difference(images[1], expected) <= 1 < difference(images[2], expected)


def test_it_stays_where_prompts_take_turns_or_are_joined(pipes: Callable[[str], Pipeline]) -> None:
    pipe = pipes("sd1 base")
    given: Any = {"reference": picture(1), "ip_scale": 1.0, "steps": 4}
    turns = draw(pipe, "a red [cat:dog:0.5]", **given)
    joined = draw(pipe, "a red cat AND a blue dog", **given)
    assert difference(turns, draw(pipe, "a red [cat:dog:0.5]", **{**given, "ip_scale": 0.0})) > 1
    assert np.asarray(joined).std() > 1


def test_a_second_pass_and_images_without_edges_see_it_too(pipes: Callable[[str], Pipeline]) -> None:
    pipe, given = pipes("sd1 plus"), {"reference": picture(1), "ip_scale": 1.0, "steps": 4}
    small = draw(pipe, **given)
    large = small.resize((2 * small.width, 2 * small.height), Image.Resampling.LANCZOS)
    enlarged = draw(pipe, **given, upscale=2, upscale_strength=0.5)
    assert difference(enlarged, draw(pipe, image=large, strength=0.5, **given)) <= 1
    assert difference(enlarged, draw(pipe, image=large, strength=0.5, **{**given, "ip_scale": 0.0})) > 1
    joined = draw(pipe, **given, tile=True)
    assert difference(joined, draw(pipe, **{**given, "ip_scale": 0.0}, tile=True)) > 1 < difference(joined, small)


def test_mistakes_are_one_line(tmp_path: Path, folders: Folders) -> None:
    plain = Pipeline.from_pretrained(folders("sd1"), device="cpu", dtype="fp32")
    with pytest.raises(
        ValueError, match=r"reference is for an IP-Adapter, and the model has none: give one \(--ip-adapt"
    ):
        draw(plain, reference=picture(1))
    with pytest.warns(UserWarning, match="ip_scale has no effect without reference"):
        draw(plain, ip_scale=0.2, steps=1)
    adapter = folders("sd1 base") / "ip.safetensors"
    with pytest.raises(
        CheckpointError, match=r"is an IP-Adapter for another model \(\d+ attentions, to vectors of 32\)"
    ):
        load_checkpoint(folders("sdxl"), ip_adapter=adapter)
    with pytest.raises(CheckpointError, match=r"takes vectors of 20 where its image encoder gives 24: give the one"):
        encoder: Any = CLIPVisionModelWithProjection(CLIPVisionConfig(**{**VISION, "projection_dim": 24}))
        encoder.save_pretrained(tmp_path / "other")
        load_checkpoint(folders("sd1"), ip_adapter=adapter, image_encoder=tmp_path / "other")
    with pytest.raises(CheckpointError, match=r"the image encoder .*nowhere does not exist: give a folder or a file"):
        load_checkpoint(folders("sd1"), ip_adapter=adapter, image_encoder=tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match=r"the IP-Adapter .*nowhere does not exist: give a file"):
        load_checkpoint(folders("sd1"), ip_adapter=tmp_path / "nowhere")
    for key, says in {
        "image_proj.perceiver_resampler.proj_in.weight": "is an IP-Adapter FaceID Plus, which genpipe does not have",
        "image_proj.proj.0.weight": "is an IP-Adapter of faces",
        "emb_params": "is a textual inversion, not an IP-Adapter",
    }.items():
        save_file({key: torch.zeros(2, 2)}, tmp_path / "other.safetensors")
        with pytest.raises(CheckpointError, match=says):
            load_checkpoint(folders("sd1"), ip_adapter=tmp_path / "other.safetensors")


def test_an_image_encoder_in_one_file_is_read(tmp_path: Path, folders: Folders) -> None:
    torch.manual_seed(1)
    config = CLIPVisionConfig(**{**VISION, "num_attention_heads": 16}, hidden_act="quick_gelu")
    theirs: Any = CLIPVisionModelWithProjection(config).eval()
    save_file({key: tensor.contiguous() for key, tensor in theirs.state_dict().items()}, tmp_path / "clip.safetensors")
    adapter = folders("sd1 base") / "ip.safetensors"
    references = load_checkpoint(
        folders("sd1"), ip_adapter=adapter, image_encoder=tmp_path / "clip.safetensors"
    ).references
    assert references is not None
    pixels = torch.randn(1, 3, 28, 28)
    with torch.inference_mode():
        assert (references.encoder(pixels).pooled - theirs(pixels).image_embeds).abs().max() <= 1e-5


def test_images_with_references_join_and_leave_a_running_batch(pipes: Callable[[str], Pipeline]) -> None:
    pipe = pipes("sd1 base")
    asked = [
        asked_of(pipe, seed=1, reference=picture(1), steps=5),
        asked_of(pipe, "a blue dog", seed=2, reference=picture(2), steps=3, ip_scale=0.4),
        asked_of(pipe, seed=3),
        asked_of(pipe, seed=4, reference=picture(1), guidance_scale=1.0),
    ]
    check(pipe, asked)

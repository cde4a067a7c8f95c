"""Control images: what diffusers' ControlNet pipelines draw of the same images, seeds and weights."""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import diffusers as _diffusers
import numpy as np
import pytest
import torch
from diffusers.models.controlnets.controlnet import ControlNetModel
from diffusers.models.controlnets.multicontrolnet import MultiControlNetModel
from PIL import Image
from torch import Tensor

from genpipe import Pipeline
from genpipe.checkpoints import load_checkpoint
from genpipe.inputs import Control
from genpipe.metadata import read_metadata, split_metadata
from genpipe.render import render
from genpipe.request import Request
from tests.pipeline.drawing import difference, draw, loaded, loaded_by_diffusers
from tests.pipeline.joined import asked_of, check

diffusers: Any = _diffusers
SAMPLERS = {
    "ddim": lambda config: diffusers.DDIMScheduler.from_config(config),
    "euler_a": lambda config: diffusers.EulerAncestralDiscreteScheduler.from_config(config),
    "dpmpp_2m_karras": lambda config: diffusers.DPMSolverMultistepScheduler.from_config(config, use_karras_sigmas=True),
}
WIDTH, HEIGHT = 44, 36  # of latents 11 x 9
Folders = Callable[[str], tuple[Path, list[Path]]]


def picture(seed: int, width: int = WIDTH, height: int = HEIGHT) -> Image.Image:
    levels = np.random.default_rng(seed).integers(0, 256, (height // 4, width // 4, 3), dtype=np.uint8)
    return Image.fromarray(levels).resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path, tiny_xl_checkpoint: Path) -> Folders:
    """`folders(family)`: a model and two ControlNets for it, written by diffusers."""
    models = {"sd1": tiny_checkpoint, "sdxl": tiny_xl_checkpoint}
    made: dict[str, list[Path]] = {}

    def paths(family: str) -> tuple[Path, list[Path]]:
        if family not in made:
            unet: Any = diffusers.UNet2DConditionModel.from_pretrained(models[family] / "unet")
            root = tmp_path_factory.mktemp(family)
            made[family] = [root / "one", root / "two"]
            for seed, path in enumerate(made[family]):
                torch.manual_seed(seed)
                net: Any = ControlNetModel.from_unet(
                    unet, conditioning_embedding_out_channels=(4, 8, 8), load_weights_from_unet=False
                )
                for name, parameter in net.named_parameters():
                    if name.startswith("controlnet_") and not name.endswith("bias"):
                        torch.nn.init.normal_(parameter, std=0.2)
                net.save_pretrained(path)
        return models[family], made[family]

    return paths


@cache
def networks(paths: tuple[Path, ...]) -> Any:
    """ControlNets of diffusers', as its pipelines take one or several."""
    found = [ControlNetModel.from_pretrained(path) for path in paths]
    return found[0] if len(found) == 1 else MultiControlNetModel(found)


def theirs(folders: Folders, family: str, kind: str, nets: int, sampler: str, **given: Any) -> Tensor:
    """The latents that diffusers ends with."""
    folder, paths = folders(family)
    found = networks(tuple(paths[:nets]))
    more: Any = {"add_watermarker": False} if family == "sdxl" else {"safety_checker": None}
    pipe, config = loaded_by_diffusers(getattr(diffusers, kind), folder, controlnet=found, **more)
    pipe.scheduler = SAMPLERS[sampler](config)
    with torch.inference_mode():
        return pipe(
            ["a red cat", "a blue dog"],
            generator=[torch.Generator("cpu").manual_seed(seed) for seed in (5, 6)],
            **{"num_inference_steps": 5, "guidance_scale": 4.0, "output_type": "latent", **given},
        ).images


def ours(folders: Folders, family: str, nets: int, sampler: str, **given: Any) -> Tensor:
    folder, paths = folders(family)
    pipe = loaded(folder, control_model=tuple(paths[:nets]))
    settings: Any = {"steps": 5, "guidance_scale": 4.0, "sampler": sampler, **given}
    requests = pipe.requests(["a red cat", "a blue dog"], seeds=[5, 6], **settings)
    latents = list(pipe.stream(requests))[-1].latents
    size: Any = {"height": requests[0].height, "width": requests[0].width, "control": (), "guess": False}
    with pytest.warns(UserWarning, match="control_model has no effect without control"):
        plain = pipe.requests(["a red cat", "a blue dog"], seeds=[5, 6], **{**settings, **size})
    assert (list(pipe.stream(plain))[-1].latents - latents).abs().max() > 0.05  # else anything would agree
    return latents


def close(latents: Tensor, expected: Tensor) -> bool:
    return latents.shape == expected.shape and bool((latents - expected).abs().max() <= 2e-4 * expected.abs().max())


TEXT = {"sd1": "StableDiffusionControlNetPipeline", "sdxl": "StableDiffusionXLControlNetPipeline"}


@pytest.mark.parametrize(("sampler", "guess"), [*((sampler, False) for sampler in SAMPLERS), ("ddim", True)])
@pytest.mark.parametrize("family", TEXT)
def test_one_control_image(folders: Folders, family: str, sampler: str, guess: bool) -> None:
    image = picture(1)
    expected = theirs(folders, family, TEXT[family], 1, sampler, image=[image] * 2, guess_mode=guess)
    latents = ours(folders, family, 1, sampler, control=image, guess=guess)
    assert latents.shape == (2, 4, HEIGHT // 4, WIDTH // 4) and close(latents, expected)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("family", TEXT)
def test_two_control_images_each_with_its_scale_and_its_part(folders: Folders, family: str, sampler: str) -> None:
    one, two = picture(1), picture(2)
    expected = theirs(
        folders,
        family,
        TEXT[family],
        2,
        sampler,
        image=[one, two],
        controlnet_conditioning_scale=[0.7, 1.3],
        control_guidance_start=[0.0, 0.2],
        control_guidance_end=[0.5, 1.0],
    )
    control = [{"image": one, "scale": 0.7, "end": 0.5}, {"image": two, "scale": 1.3, "start": 0.2}]
    assert close(ours(folders, family, 2, sampler, control=control), expected)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_with_an_image_to_begin_from(folders: Folders, sampler: str, strength: float) -> None:
    image, control = picture(3), picture(1)
    expected = theirs(
        folders,
        "sd1",
        "StableDiffusionControlNetImg2ImgPipeline",
        1,
        sampler,
        image=[image] * 2,
        control_image=[control] * 2,
        strength=strength,
        controlnet_conditioning_scale=1.0,
        control_guidance_end=0.6,
    )
    given = {"image": image, "strength": strength, "control": {"image": control, "end": 0.6}}
    assert close(ours(folders, "sd1", 1, sampler, **given), expected)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_with_a_part_of_an_image_to_change(folders: Folders, sampler: str) -> None:
    image, control, mask = picture(3), picture(1), Image.new("L", (WIDTH, HEIGHT), 0)
    mask.paste(255, (8, 8, 32, 24))
    expected = theirs(
        folders,
        "sd1",
        "StableDiffusionControlNetInpaintPipeline",
        1,
        sampler,
        image=[image] * 2,
        mask_image=[mask] * 2,
        control_image=[control] * 2,
        strength=0.8,
        controlnet_conditioning_scale=1.0,
    )
    given = {"image": image, "mask": mask, "strength": 0.8, "control": control}
    assert close(ours(folders, "sd1", 1, sampler, **given), expected)


def test_an_image_of_another_size_is_scaled_as_diffusers_scales_it(folders: Folders) -> None:
    image = picture(1, 100, 60)
    expected = theirs(folders, "sd1", TEXT["sd1"], 1, "ddim", image=[image] * 2, height=HEIGHT, width=WIDTH)
    assert close(ours(folders, "sd1", 1, "ddim", control=image, height=HEIGHT, width=WIDTH), expected)


def test_the_image_is_that_of_diffusers(folders: Folders) -> None:
    folder, paths = folders("sd1")
    net = ControlNetModel.from_pretrained(paths[0])
    pipe = diffusers.StableDiffusionControlNetPipeline.from_pretrained(folder, controlnet=net, safety_checker=None)
    pipe.scheduler = SAMPLERS["euler_a"](pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator("cpu").manual_seed(5)
    (expected,) = pipe(
        "a red cat", image=picture(1), generator=generator, num_inference_steps=4, guidance_scale=4.0
    ).images
    mine = Pipeline.from_pretrained(folder, device="cpu", dtype="fp32", control_model=paths[0])
    assert difference(draw(mine, control=picture(1), sampler="euler_a"), expected) <= 1


@pytest.fixture(scope="module")
def pipe(folders: Folders) -> Pipeline:
    folder, paths = folders("sd1")
    return Pipeline.from_pretrained(folder, device="cpu", dtype="fp32", control_model=paths[:1])


def test_images_of_a_batch_have_control_images_of_their_own(pipe: Pipeline) -> None:
    controls = [{"image": picture(1), "scale": 0.5}, {"image": picture(2), "scale": 1.5}]
    requests = [pipe.requests("a", seed=k, steps=3, control=control)[0] for k, control in enumerate(controls)]
    together = list(pipe.stream(requests))[-1].latents
    for k, request in enumerate(requests):
        assert (list(pipe.stream([request]))[-1].latents[0] - together[k]).abs().max() < 1e-4
    assert (together[0] - together[1]).abs().max() > 0.1


@pytest.mark.parametrize(("start", "end", "times"), [(0.0, 1.0, 4), (0.0, 0.5, 2), (0.5, 1.0, 2), (0.3, 0.6, 0)])
def test_a_network_is_evaluated_only_where_it_acts(folders: Folders, start: float, end: float, times: int) -> None:
    folder, paths = folders("sd1")
    fresh = Pipeline.from_pretrained(folder, device="cpu", dtype="fp32", control_model=paths[:1])
    seen: list[int] = []
    network: Any = fresh.checkpoint.controls[0]
    network.conv_in.register_forward_hook(lambda *_: seen.append(1))
    draw(fresh, control={"image": picture(1), "start": start, "end": end}, steps=4)
    assert len(seen) == times


def test_a_control_image_is_recorded_and_replayed(tmp_path: Path, pipe: Pipeline) -> None:
    picture(1).save(tmp_path / "outline.png")
    image = draw(pipe, control=f"{tmp_path / 'outline.png'}:tile:0.8:0:0.75", guess=True)
    image.save(tmp_path / "a.png")
    request, spec = split_metadata(read_metadata(tmp_path / "a.png"))
    assert request.control == (Control.of(f"{tmp_path / 'outline.png'}:tile:0.8:0:0.75"),) and request.guess
    assert spec.control_model == pipe.spec.control_model
    settings: Any = {name: value for name, value in request.to_dict().items() if name != "prompt"}
    assert difference(pipe(request.prompt, progress=False, **settings), image) == 0
    picture(2).save(tmp_path / "outline.png")
    with pytest.raises(ValueError, match=r"control .* has changed since"):
        split_metadata(read_metadata(tmp_path / "a.png"))


def test_rows_of_a_manifest_have_control_images(tmp_path: Path, folders: Folders) -> None:
    folder, paths = folders("sd1")
    for seed in (1, 2):
        picture(seed).save(tmp_path / f"{seed}.png")
    rows = [{"prompt": "a red cat", "seed": 5, "control": f"{tmp_path / '1.png'}:0.5"}]
    rows += [{"prompt": "a red cat", "seed": 5, "control": [{"image": str(tmp_path / "2.png"), "scale": 0.5}]}]
    rows += [{"prompt": "a red cat", "seed": 5}]
    rows += [{"prompt": "a red cat", "control": [str(tmp_path / "1.png")] * 2}]
    options: Any = {"model": folder, "control_model": paths[0], "dtype": "fp32", "steps": 3, "guidance_scale": 4.0}
    list(render(rows, out=tmp_path / "out", devices="cpu", width=WIDTH, height=HEIGHT, **options))
    drawn = [json.loads(line) for line in (tmp_path / "out" / "metadata.jsonl").read_text().splitlines()]
    assert sorted(row["line"] for row in drawn) == [1, 2, 3] and len({row["id"] for row in drawn}) == 3
    alone = Pipeline.from_pretrained(folder, device="cpu", dtype="fp32", control_model=paths[0])
    for row in drawn:
        given = {"control": rows[row["line"] - 1].get("control", ()), "width": WIDTH, "height": HEIGHT, "steps": 3}
        with Image.open(tmp_path / "out" / row["file_name"]) as image:
            assert difference(image.convert("RGB"), draw(alone, **given)) <= 1


def test_a_lora_changes_the_model_and_not_what_controls_it(pipe: Pipeline) -> None:
    before = pipe.checkpoint.controls
    assert draw(pipe, control=picture(1)) is not None and pipe.checkpoint.controls is before


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"control": [picture(1), picture(2)]}, r"control is 2 image\(s\), and the model has 1 control model"),
        ({"control": "nowhere.png"}, "cannot be read"),
        ({"control": 3}, "control must be an image file or a PIL image, not 3"),
        ({"control": {"image": picture(1), "scale": -1}}, "the scale of a control image must be a number from 0 to 10"),
        ({"control": {"image": picture(1), "scale": float("nan")}}, "from 0 to 10, not nan"),
        ({"control": {"image": picture(1), "start": 0.5, "end": 0.5}}, "from 0.5 to 0.5, which is never"),
        ({"control": {"image": picture(1), "preprocessor": "depth"}}, "canny, edges, lines, tile .*not 'depth'"),
        ({"control": {"image": picture(1), "strength": 1}}, "control has no 'strength'"),
    ],
)
def test_mistakes_are_one_line(pipe: Pipeline, given: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says) as caught:
        draw(pipe, **given)
    assert "\n" not in str(caught.value)


def test_a_second_pass_is_controlled_too_from_its_own_beginning(pipe: Pipeline) -> None:
    control: Any = {"image": picture(1), "start": 0.2, "end": 0.8}
    size: Any = {"width": WIDTH, "height": HEIGHT, "steps": 6, "control": control}
    small = draw(pipe, **size)
    large = small.resize((2 * WIDTH, 2 * HEIGHT), Image.Resampling.LANCZOS)
    again = draw(pipe, image=large, strength=0.5, steps=6, control=control)
    found = draw(pipe, **size, upscale=2, upscale_strength=0.5)
    assert difference(found, again) <= 1
    assert difference(found, draw(pipe, image=large, strength=0.5, steps=6)) > 1


def test_a_control_image_has_edges(pipe: Pipeline) -> None:
    with pytest.raises(ValueError, match="leave out tile or control"):
        draw(pipe, control=picture(1), width=48, height=32, tile=True)


def test_a_control_image_without_a_model_is_told(tiny_checkpoint: Path) -> None:
    plain = Pipeline.from_pretrained(tiny_checkpoint, device="cpu", dtype="fp32")
    with pytest.raises(
        ValueError, match=r"has 0 control model\(s\): give a control_model for each \(--control-model\)"
    ):
        draw(plain, control=picture(1))
    with pytest.warns(UserWarning, match="guess has no effect without control"):
        draw(plain, guess=True, steps=1)


def test_a_batch_agrees_in_how_many_there_are_and_when_they_act(pipe: Pipeline) -> None:
    base: Any = {"seed": 1, "steps": 2, "guidance_scale": 2.0, "height": HEIGHT, "width": WIDTH}
    two = [Request("a", **base, control=({"image": picture(1)},)), Request("a", **base)]  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="in how many control images there are and when they act: draw these apart"):
        list(pipe.stream(two))


def test_the_model_of_another_family_is_refused(folders: Folders) -> None:
    folder, _ = folders("sd1")
    with pytest.raises(ValueError, match=r"is a ControlNet for another model, and .* is Stable Diffusion 1.x"):
        load_checkpoint(folder, controls=[folders("sdxl")[1][0]])


def test_images_with_control_images_join_and_leave_a_running_batch(folders: Folders) -> None:
    folder, paths = folders("sd1")
    pipe = Pipeline.from_pretrained(folder, device="cpu", dtype="fp32", control_model=paths)
    both = [{"image": picture(1), "scale": 0.5}, {"image": picture(2), "scale": 1.5, "start": 0.5}]
    asked = [
        asked_of(pipe, "a", seed=1, control=both, steps=5),
        asked_of(pipe, "a cat", seed=2, control=both[::-1], steps=3, sampler="euler_a"),
        asked_of(pipe, "a", seed=3, control=both, steps=4, guess=True),
        asked_of(pipe, "a", seed=4, control=both, guidance_scale=1.0),
        asked_of(pipe, "a", seed=5, control=both, upscale=2.0, steps=5),
        asked_of(pipe, "a", seed=6),
    ]
    check(pipe, asked)

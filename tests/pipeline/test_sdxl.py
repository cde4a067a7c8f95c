"""Stable Diffusion XL and its kin draw what diffusers draws, and all that works for 1.x works for them."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from genpipe.checkpoints import load_checkpoint, save_checkpoint
from genpipe.judge import Score
from genpipe.models.cpu.quantised import QuantisedLayer
from genpipe.models.unet import UNet
from genpipe.models.vae import VAE
from genpipe.pipeline import Pipeline, Progress
from genpipe.pipeline.networks import Networks
from genpipe.request import Request
from genpipe.sampling.noise import ImageNoise
from genpipe.spec import ModelSpec
from genpipe.workers.messages import Job, Task
from genpipe.workers.renderer import Renderer
from tests.conftest import needs_int8, tiny_xl_parts
from tests.pipeline.drawing import difference, draw, loaded, loaded_by_diffusers

Draw = Callable[..., tuple[Image.Image, Tensor]]
UNETS: dict[str, dict[str, Any]] = {
    "SDXL": {},
    "SSD-1B": {"middle": "residual", "depth": (1, 1), "depth_up": (1, (1, 2))},
    "KOALA 700M": {"middle": None},
    "v-prediction": {},
}


USUAL: dict[str, Any] = {"seed": 5, "steps": 4, "guidance_scale": 4.0}


def final_latents(pipe: Pipeline, prompt: str = "a red cat", **settings: Any) -> Tensor:
    given: dict[str, Any] = {**USUAL, **settings}
    *_, last = pipe.stream(pipe.requests(prompt, **given))
    return last.latents


def grey(vae: VAE) -> VAE:
    """The autoencoder with so little contrast that no pixel is clipped: black and white would agree with too much."""
    with torch.no_grad():
        vae.decoder.conv_out.weight.div_(8)
    return vae


def saved_by_diffusers(folder: Path, **changes: Any) -> Path:
    """A checkpoint as diffusers writes it, of the tiny parts and what is put in their place."""
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline

    parts = tiny_xl_parts(refiner=changes.pop("refiner", False))
    grey(parts["vae"])
    save_checkpoint(folder / "ours", **{**parts, **changes})
    DiffusionPipeline.from_pretrained(folder / "ours").save_pretrained(folder / "theirs")
    return folder / "theirs"


def reference(folder: Path, kind: str = "StableDiffusionXLPipeline", **settings: Any) -> Draw:
    """Draw with diffusers: the image and the final latents."""
    import diffusers

    pipe, config = loaded_by_diffusers(getattr(diffusers, kind), folder, add_watermarker=False, **settings)

    def drawn(scheduler: str, prompt: Any = "a red cat", **given: Any) -> tuple[Image.Image, Tensor]:
        pipe.scheduler = getattr(diffusers, scheduler).from_config(config)
        given = {"num_inference_steps": 4, "guidance_scale": 4.0, **given}
        latents, image = (
            pipe(prompt, generator=torch.Generator("cpu").manual_seed(5), output_type=kind, **given).images
            for kind in ("latent", "pil")
        )
        return image[0], latents

    return drawn


def assert_same(ours: Image.Image, latents: Tensor, theirs: tuple[Image.Image, Tensor]) -> None:
    image, their_latents = theirs
    assert 5 < np.asarray(image).std() < 100  # a flat picture, or one of black and white, would agree with too much
    assert difference(ours, image) <= 1
    assert float((latents - their_latents).norm() / their_latents.norm()) <= 1e-4


SCHEDULERS = {"euler": "EulerDiscreteScheduler", "dpmpp_2m": "DPMSolverMultistepScheduler", "ddim": "DDIMScheduler"}
SETTINGS: dict[str, dict[str, Any]] = {
    "guided": {},
    "negative prompt": {"negative_prompt": "bad"},
    "unguided": {"guidance_scale": 1.0},
    "layers left out": {"negative_prompt": "bad", "clip_skip": 1},
    "sizes": {"original_size": (64, 48), "target_size": (40, 32), "crop": (3, 5)},
    "another size": {"height": 32, "width": 48},
    "rescaled": {"guidance_rescale": 0.7},
}


def as_theirs(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {"crops_coords_top_left" if name == "crop" else name: value for name, value in settings.items()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved_by_diffusers(tmp_path_factory.mktemp("sdxl"))


@pytest.fixture(scope="module")
def pipe(folder: Path) -> Pipeline:
    return Pipeline.from_pretrained(folder, device="cpu", dtype="fp32")


@pytest.mark.parametrize("name", SETTINGS)
def test_a_seed_gives_the_picture_that_diffusers_gives(pipe: Pipeline, folder: Path, name: str) -> None:
    settings, theirs = SETTINGS[name], reference(folder)
    for sampler, scheduler in SCHEDULERS.items():
        ours = draw(pipe, sampler=sampler, **settings), final_latents(pipe, sampler=sampler, **settings)
        assert_same(*ours, theirs(scheduler, **as_theirs(settings)))
    if name != "guided":
        usual = final_latents(pipe, sampler=sampler)
        assert ours[1].shape != usual.shape or float((ours[1] - usual).norm() / usual.norm()) > 1e-3


@pytest.mark.parametrize("name", UNETS)
def test_other_shapes_and_kinds_of_unet_draw_the_same(tmp_path: Path, name: str) -> None:
    parts = tiny_xl_parts()
    torch.manual_seed(2)
    prediction = "v_prediction" if name == "v-prediction" else "epsilon"
    folder = saved_by_diffusers(
        tmp_path,
        unet=UNet(replace(parts["unet"].config, **UNETS[name])),
        scheduler_config={**parts["scheduler_config"], "prediction_type": prediction},
    )
    pipe = Pipeline.from_pretrained(folder, device="cpu", dtype="fp32")
    ours = draw(pipe, sampler="euler"), final_latents(pipe, sampler="euler")
    assert_same(*ours, reference(folder)("EulerDiscreteScheduler"))


def test_an_empty_negative_prompt_is_encoded_where_the_checkpoint_says_so(tmp_path: Path, pipe: Pipeline) -> None:
    folder = saved_by_diffusers(tmp_path, zero_empty_negative=False)
    encoded = Pipeline.from_pretrained(folder, device="cpu", dtype="fp32")
    ours = draw(encoded, sampler="euler"), final_latents(encoded, sampler="euler")
    assert_same(*ours, reference(folder)("EulerDiscreteScheduler"))
    zeros = final_latents(pipe, sampler="euler")
    assert float((ours[1] - zeros).norm() / zeros.norm()) > 1e-3


def test_latents_with_a_mean_and_a_deviation_draw_the_same(tmp_path: Path) -> None:
    """As Playground v2.5 has them."""
    vae = tiny_xl_parts()["vae"]
    config = replace(
        vae.config, latents_mean=(-0.2, 0.3, 0.1, 0.2), latents_std=(0.8, 0.6, 1.1, 0.9), scaling_factor=0.5
    )
    scaled = VAE(config)
    scaled.load_state_dict(grey(vae).state_dict())
    folder = saved_by_diffusers(tmp_path, vae=scaled)
    pipe = Pipeline.from_pretrained(folder, device="cpu", dtype="fp32")
    ours = draw(pipe, sampler="euler"), final_latents(pipe, sampler="euler")
    assert_same(*ours, reference(folder)("EulerDiscreteScheduler"))


@pytest.fixture(scope="module")
def refiner(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved_by_diffusers(tmp_path_factory.mktemp("refiner"), refiner=True)


@pytest.mark.parametrize("settings", [{}, {"negative_prompt": "bad"}, {"guidance_scale": 1.0}, {"crop": (3, 5)}])
def test_a_refiner_draws_what_diffusers_draws_of_the_same_latents(refiner: Path, settings: dict[str, Any]) -> None:
    pipe = loaded(refiner)
    noise = ImageNoise([5], (4, 8, 8), torch.device("cpu"))()
    theirs = reference(refiner, "StableDiffusionXLImg2ImgPipeline", requires_aesthetics_score=True)(
        "DDIMScheduler", image=torch.zeros(1, 3, 32, 32), latents=noise, strength=1.0, **as_theirs(settings)
    )
    ours = draw(pipe, sampler="ddim", **settings), final_latents(pipe, sampler="ddim", **settings)
    assert_same(*ours, theirs)


def test_pictures_of_a_batch_are_those_drawn_alone(pipe: Pipeline) -> None:
    """Pooled text, sizes and negative prompts differ by image."""
    given: list[dict[str, Any]] = [
        {"prompt": "a red cat", "seed": 1, "original_size": (64, 64)},
        {"prompt": "a blue dog", "seed": 2, "negative_prompt": "bad"},
        {"prompt": "a pirate ship", "seed": 3, "guidance_scale": 7.0, "crop": (8, 0)},
    ]
    requests = [pipe.requests(**{**USUAL, **settings})[0] for settings in given]
    *_, together = pipe.stream(requests)
    for row, request in enumerate(requests):
        *_, alone = pipe.stream([request])
        assert torch.allclose(together.latents[row], alone.latents[0], atol=1e-4)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_deterministic_is_bitwise_the_same_in_any_batch(folder: Path, dtype: str) -> None:
    pipe = Pipeline.from_pretrained(folder, device="cpu", dtype=dtype)
    together = draw(pipe, n=2, deterministic=True, sampler="euler_a")
    alone = [draw(pipe, seed=5 + k, deterministic=True, sampler="euler_a") for k in range(2)]
    assert [difference(a, b) for a, b in zip(together, alone, strict=True)] == [0, 0]


@pytest.mark.parametrize("speed", ["balanced", "draft"])
def test_speeds_draw_nearly_the_same(pipe: Pipeline, speed: str) -> None:
    exact, fast = (draw(pipe, steps=8, sampler="ddim", speed=name) for name in ("exact", speed))
    error = np.asarray(exact, dtype=float) - np.asarray(fast, dtype=float)
    assert 0 < np.abs(error).mean() < np.abs(np.asarray(exact, dtype=float) - 127).mean()
    assert difference(draw(pipe, steps=8, sampler="ddim", speed=speed, n=2)[0], fast) <= 2


def test_low_memory_draws_the_same(pipe: Pipeline, folder: Path) -> None:
    small = Pipeline.from_pretrained(folder, device="cpu", dtype="fp32", low_memory=True)
    assert difference(draw(small, negative_prompt="bad"), draw(pipe, negative_prompt="bad")) == 0


def test_every_step_has_a_preview(pipe: Pipeline) -> None:
    seen: list[Progress] = []
    final = draw(pipe, callback=seen.append)
    preview = seen[-1].preview()[0]
    small = np.asarray(final.resize(preview.size, Image.Resampling.BOX), dtype=float).ravel()
    assert len(seen) == 4 and preview.size == (8, 8)
    assert np.corrcoef(np.asarray(preview, dtype=float).ravel(), small)[0, 1] > 0.3


def test_the_best_of_several_is_what_the_judge_prefers(pipe: Pipeline) -> None:
    class Darkness:
        def check_prompt(self, prompt: str) -> None:
            """Read any prompt."""

        def scores(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> list[Score]:
            darkness = [1 - float(np.asarray(image).mean()) / 255 for image in images]
            return [Score(prompt, value) for prompt, value in zip(prompts, darkness, strict=True)]

    candidates = draw(pipe, n=3)
    best = draw(pipe, best_of=3, judge=Darkness())
    assert best.tobytes() == min(candidates, key=lambda image: np.asarray(image).mean()).tobytes()


def test_render_draws_what_the_pipeline_draws(pipe: Pipeline, folder: Path, tmp_path: Path) -> None:
    renderer = Renderer(Job(out=str(tmp_path), spec=ModelSpec(model=str(folder), dtype="fp32")), "cpu")
    settings: dict[str, Any] = {"steps": 2, "guidance_scale": 4.0, "height": 32, "width": 32}
    requests = [
        Request("a red cat", seed=1, **settings),
        Request("a blue dog", seed=2, **settings, negative_prompt="bad", original_size=(64, 64)),
    ]
    tasks = [Task(k, f"{k:032x}", f"images/{k}.png", request.to_dict()) for k, request in enumerate(requests)]
    result = renderer.finish(renderer.begin(renderer.prepare(tasks)))
    assert len(result.drawn) == 2 and not result.failed
    for task, request in zip(tasks, requests, strict=True):
        with Image.open(tmp_path / task.path) as image:
            assert json.loads(image.info["genpipe"])["original_size"] == (
                None if request.original_size is None else [64, 64]
            )
            *_, last = pipe.stream([request])
            assert difference(image.convert("RGB"), pipe.decode(last.latents, [request])[0]) <= 1


@needs_int8
def test_int8_draws_nearly_the_same(tmp_path: Path) -> None:
    parts = tiny_xl_parts()
    torch.manual_seed(1)
    one_level = {"channels": (320,), "attention": (True,), "attention_up": (True,), "layers": (1,), "depth": (2,)}
    wide = UNet(replace(parts["unet"].config, **one_level, heads=(5,), only_cross=(False,)))
    save_checkpoint(tmp_path, **{**parts, "unet": wide, "vae": grey(parts["vae"])})
    small, usual = (Pipeline.from_pretrained(tmp_path, device="cpu", dtype="bf16", int8=on) for on in (True, False))
    assert any(isinstance(module, QuantisedLayer) for module in small.unet.modules())
    error = np.asarray(draw(small), dtype=float) - np.asarray(draw(usual), dtype=float)
    assert 30 <= 10 * np.log10(255**2 / (error**2).mean()) < 70


def test_what_a_caller_does_not_say_is_what_the_family_is_drawn_with(pipe: Pipeline) -> None:
    request = pipe.requests("a red cat", seed=1)[0]
    assert (request.height, request.width, request.guidance_scale) == (32, 32, 5.0)


def test_sizes_are_told_to_those_networks_alone_that_take_them(
    tiny_checkpoint: Path, tiny_refiner_checkpoint: Path, pipe: Pipeline, recwarn: pytest.WarningsRecorder
) -> None:
    settings: dict[str, Any] = {"seed": 1, "original_size": (64, 64), "target_size": (64, 64), "crop": (1, 1)}

    def unused(one: Pipeline) -> set[str]:
        recwarn.clear()
        one.requests("a red cat", **settings)
        return {str(warning.message).partition(" ")[0] for warning in recwarn}

    assert unused(pipe) == set()
    assert unused(Pipeline.from_pretrained(tiny_refiner_checkpoint, device="cpu")) == {"target_size"}
    assert unused(Pipeline.from_pretrained(tiny_checkpoint, device="cpu")) == {"original_size", "target_size", "crop"}


@torch.inference_mode()
@pytest.mark.parametrize(("overflows", "expected"), [(True, torch.float32), (False, torch.float16)])
def test_an_autoencoder_that_overflows_fp16_runs_in_a_wider_type_from_the_start(
    tmp_path: Path, overflows: bool, expected: torch.dtype
) -> None:
    parts = tiny_xl_parts()
    vae = VAE(replace(parts["vae"].config, force_upcast=overflows))
    save_checkpoint(tmp_path, **{**parts, "vae": vae})
    checkpoint = load_checkpoint(tmp_path)
    networks = Networks(checkpoint, device=torch.device("cpu"), dtype=torch.float16, low_memory=False, int8=False)
    networks.prepare_all()
    assert networks.vae_dtype == checkpoint.vae.decoder.conv_out.weight.dtype == expected
    assert checkpoint.unet.conv_in.weight.dtype == torch.float16
    with networks.in_memory(checkpoint.vae) as same:
        assert same is checkpoint.vae

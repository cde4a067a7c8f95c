"""The second pass over an enlarged image: img2img of it, as diffusers draws that."""

from pathlib import Path
from typing import Any

import diffusers as _diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from genpipe.checkpoints import save_checkpoint
from genpipe.dialects.a1111 import parse_parameters
from genpipe.models.conditioning import Conditioning
from genpipe.models.denoiser import TiledDenoiser
from genpipe.pipeline import Pipeline
from tests.conftest import tiny_parts
from tests.pipeline.drawing import difference, draw
from tests.pipeline.test_start import SAMPLERS, masked, original

diffusers: Any = _diffusers
ENLARGED: Any = {"upscale": 2, "upscale_strength": 0.5, "steps": 6}


def second_pass(reference: Any, sampler: str, image: Any) -> Any:
    """The latents that diffusers' img2img ends with."""
    pipe = diffusers.StableDiffusionImg2ImgPipeline(**reference.components, requires_safety_checker=False)
    pipe.scheduler = SAMPLERS[sampler](reference.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    with torch.inference_mode():
        return pipe(
            "a red cat",
            image=image,
            strength=0.5,
            num_inference_steps=6,
            guidance_scale=4.0,
            generator=[torch.Generator("cpu").manual_seed(5)],
            output_type="latent",
        ).images


def latents(pipe: Pipeline, sampler: str, **settings: Any) -> torch.Tensor:
    (request,) = pipe.requests("a red cat", seed=5, guidance_scale=4.0, sampler=sampler, **settings)
    return list(pipe.stream([request]))[-1].latents


def close(found: torch.Tensor, wanted: torch.Tensor) -> bool:
    return bool((found - wanted).abs().max() <= 2e-4 * wanted.abs().max())


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_enlarged_pixels_are_drawn_over_as_diffusers_does(pipe: Pipeline, reference: Any, sampler: str) -> None:
    small = draw(pipe, sampler=sampler, steps=6)
    large = small.resize((small.width * 2, small.height * 2), Image.Resampling.LANCZOS)
    wanted = second_pass(reference, sampler, [large])
    assert close(latents(pipe, sampler, **ENLARGED), wanted)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_enlarged_latents_are_drawn_over_as_diffusers_does(pipe: Pipeline, reference: Any, sampler: str) -> None:
    small = latents(pipe, sampler, steps=6)
    large = F.interpolate(small, scale_factor=2, mode="bilinear")
    wanted = second_pass(reference, sampler, large)
    assert close(latents(pipe, sampler, **ENLARGED, upscale_by="latents"), wanted)


def test_a_batch_is_the_images_drawn_alone_and_files_say_how(pipe: Pipeline) -> None:
    prompts = ["a cat", "[a cat:a dog:2]", "a cat AND a dog"]
    together = draw(pipe, prompts, **ENLARGED)
    for prompt, seed, image in zip(prompts, (5, 6, 7), together, strict=True):
        assert image.size == (64, 64)
        assert difference(image, draw(pipe, prompt, seed=seed, **ENLARGED)) <= 1
        settings, _, unread = parse_parameters(image.info["parameters"])
        assert (settings["upscale"], settings["upscale_strength"], settings["width"], unread) == (2, 0.5, 32, {})


def test_steps_of_both_passes_are_told(pipe: Pipeline) -> None:
    seen: list[tuple[int, int, int]] = []
    draw(pipe, **ENLARGED, callback=lambda state: seen.append((state.step, state.steps, state.latents.shape[-1])))
    assert seen == [*((step, 9, 8) for step in range(1, 7)), *((step, 9, 16) for step in range(7, 10))]


def test_in_the_second_pass_a_prompt_stays_as_it_was_in_the_end(pipe: Pipeline) -> None:
    changing = latents(pipe, "ddim", **ENLARGED)
    (request,) = pipe.requests("[a blue dog:a red cat:0.01]", seed=5, guidance_scale=4.0, sampler="ddim", **ENLARGED)
    assert close(list(pipe.stream([request]))[-1].latents, changing)


def test_the_second_pass_may_follow_the_prompt_less(pipe: Pipeline) -> None:
    small = draw(pipe, steps=6)
    large = small.resize((64, 64), Image.Resampling.LANCZOS)
    found = draw(pipe, **ENLARGED, upscale_guidance_scale=1.5)
    assert difference(found, draw(pipe, image=large, strength=0.5, steps=6, guidance_scale=1.5)) <= 1
    alone = draw(pipe, "", image=large, strength=0.5, steps=6, guidance_scale=1)
    assert difference(draw(pipe, **ENLARGED, upscale_guidance_scale=0), alone) <= 1
    # Without guidance AND is a comma.
    joined = draw(pipe, "a cat AND a dog", **ENLARGED, upscale_guidance_scale=1)
    both = draw(pipe, "a cat AND a dog", steps=6).resize((64, 64), Image.Resampling.LANCZOS)
    assert difference(joined, draw(pipe, "a cat, a dog", image=both, strength=0.5, steps=6, guidance_scale=1)) <= 1


def test_a_model_says_how_its_second_pass_is_to_be(tmp_path: Path) -> None:
    own = {"steps": 6, "upscale_strength": 0.5, "upscale_guidance_scale": 1.0}
    save_checkpoint(tmp_path / "model", **tiny_parts(), defaults=own)
    pipe = Pipeline.from_pretrained(tmp_path / "model", device="cpu", dtype="fp32")
    cases: list[Any] = [{}, {"upscale": 2}]
    (plain,), (request,) = (pipe.requests("a", seed=1, **given) for given in cases)
    assert (plain.upscale_strength, plain.upscale_guidance_scale) == (None, None)
    assert (request.upscale_strength, request.upscale_guidance_scale) == (0.5, 1.0)
    (given,) = pipe.requests("a", seed=1, upscale=2, upscale_strength=0.25)
    assert (given.upscale_strength, given.upscale_guidance_scale) == (0.25, 1.0)


def test_an_image_to_begin_from_and_images_without_edges_are_enlarged(pipe: Pipeline) -> None:
    image = draw(pipe, image=original(48, 32), strength=0.5, **ENLARGED)
    assert image.size == (96, 64)
    large = draw(pipe, image=original(48, 32), strength=0.5, steps=6).resize((96, 64), Image.Resampling.LANCZOS)
    assert difference(image, draw(pipe, image=large, strength=0.5, steps=6)) <= 1
    joined = np.asarray(draw(pipe, tile=True, width=64, height=64, **ENLARGED), dtype=float)
    across = np.abs(joined - np.roll(joined, 1, axis=1)).mean(axis=(0, 2))
    assert across[0] <= 1.1 * across[1:].max()


def test_large_images_are_evaluated_in_squares_that_leave_no_seam(pipe: Pipeline) -> None:
    settings: Any = {"width": 96, "height": 96, "steps": 4, "upscale": 4, "upscale_strength": 0.5}
    image = draw(pipe, **settings)
    assert image.size == (384, 384)
    levels = np.asarray(image, dtype=float)
    across = np.abs(np.diff(levels, axis=1)).mean(axis=(0, 2))
    joins = [4 * at - 1 for at in (24, 32, 48, 56, 64, 72)]  # where squares of 32 begin or end, in pixels
    assert across[joins].max() <= across.max() and across[joins].mean() <= np.quantile(across, 0.9)


def test_squares_of_a_network_without_norms_are_the_whole() -> None:
    asked: list[tuple[int, bool]] = []

    def make(network: Any, timesteps: Any, conditioning: Any) -> Any:
        def denoise(latents: torch.Tensor, timestep: float, *, last: bool = False) -> torch.Tensor:
            asked.append((latents.shape[-1], last))
            return torch.cat([latents * 2, latents + timestep])

        return denoise

    conditioning = Conditioning(torch.zeros(2, 1, 1))
    denoiser = TiledDenoiser(make, torch.nn.Identity(), [3.0], conditioning, tile=32)
    x = torch.randn(1, 4, 40, 70, generator=torch.Generator("cpu").manual_seed(0))
    assert torch.allclose(denoiser(x, 3.0, last=True), torch.cat([x * 2, x + 3.0]), atol=1e-5)
    assert set(asked) == {(32, True)}


def transparent() -> Image.Image:
    image = original()
    image.putalpha(masked(image))
    return image


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"upscale": 0.5}, "upscale must be a number from 1 to 4, not 0.5"),
        ({"upscale": 5}, "upscale must be a number from 1 to 4, not 5"),
        ({"upscale": 2, "upscale_strength": 0}, "upscale_strength must be above 0"),
        ({"upscale": 2, "image": original(), "mask": masked(original())}, r"its mask \(or transparency\) keeps a part"),
        ({"upscale": 2, "image": transparent()}, r"its mask \(or transparency\) keeps a part"),
        (
            {"upscale": 4, "height": 32, "width": 4096, "steps": 1, "upscale_strength": 1},
            "at most 8192 pixels per side",
        ),
    ],
)
def test_mistakes_are_one_line(pipe: Pipeline, given: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says) as caught:
        draw(pipe, **given)
    assert "\n" not in str(caught.value)


def test_settings_of_a_second_pass_that_is_not_asked_for_are_told(pipe: Pipeline) -> None:
    with pytest.warns(UserWarning, match="upscale_strength has no effect without upscale"):
        draw(pipe, upscale_strength=0.5, steps=1)
    with pytest.warns(UserWarning, match="upscale_by has no effect without upscale"):
        draw(pipe, upscale_by="latents", steps=1)

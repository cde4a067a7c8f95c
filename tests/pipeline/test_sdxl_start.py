"""Stable Diffusion XL from images: what diffusers' img2img and inpainting pipelines draw, at sizes that halve to odd ones."""

from pathlib import Path
from typing import Any

import diffusers as _diffusers
import pytest
import torch
from PIL import Image
from torch import Tensor

from genpipe import Pipeline
from tests.pipeline.drawing import loaded_by_diffusers
from tests.pipeline.test_sdxl import saved_by_diffusers
from tests.pipeline.test_start import SAMPLERS, masked, original

diffusers: Any = _diffusers
WIDTH, HEIGHT = 56, 40  # latents of 14 x 10, and of 7 x 5 below


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved_by_diffusers(tmp_path_factory.mktemp("xl"))


@pytest.fixture(scope="module")
def pipe(folder: Path) -> Pipeline:
    return Pipeline.from_pretrained(folder, device="cpu", dtype="fp32")


def image() -> Image.Image:
    return original(48, 40).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)


def theirs(folder: Path, kind: str, sampler: str, **given: Any) -> Tensor:
    pipe, config = loaded_by_diffusers(getattr(diffusers, kind), folder, add_watermarker=False)
    pipe.scheduler = SAMPLERS[sampler](config)
    generators = [torch.Generator("cpu").manual_seed(seed) for seed in (5, 6)]
    prompts = ["a red cat", "a blue dog"]
    with torch.inference_mode():
        return pipe(
            prompts, generator=generators, num_inference_steps=6, guidance_scale=4.0, output_type="latent", **given
        ).images


def ours(pipe: Pipeline, sampler: str, **given: Any) -> Tensor:
    settings: Any = {"steps": 6, "guidance_scale": 4.0, "sampler": sampler, **given}
    requests = pipe.requests(["a red cat", "a blue dog"], seeds=[5, 6], **settings)
    return list(pipe.stream(requests))[-1].latents


def close(found: Tensor, wanted: Tensor) -> bool:
    return bool((found - wanted).abs().max() <= 2e-4 * wanted.abs().max())


@pytest.mark.parametrize("strength", [0.2, 0.5, 1.0])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_an_image_is_changed_as_diffusers_changes_it(
    folder: Path, pipe: Pipeline, sampler: str, strength: float
) -> None:
    given: Any = {"strength": strength, "original_size": (HEIGHT, WIDTH), "target_size": (HEIGHT, WIDTH)}
    expected = theirs(folder, "StableDiffusionXLImg2ImgPipeline", sampler, image=[image()] * 2, **given)
    found = ours(pipe, sampler, image=image(), strength=strength)
    assert found.shape == (2, 4, HEIGHT // 4, WIDTH // 4) and close(found, expected)


@pytest.mark.parametrize("strength", [0.2, 0.5, 1.0])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_part_is_changed_as_diffusers_changes_it(folder: Path, pipe: Pipeline, sampler: str, strength: float) -> None:
    given: Any = {"strength": strength, "height": HEIGHT, "width": WIDTH}
    masks = [masked(image())] * 2
    kind = "StableDiffusionXLInpaintPipeline"
    expected = theirs(folder, kind, sampler, image=[image()] * 2, mask_image=masks, **given)
    assert close(ours(pipe, sampler, image=image(), mask=masks[0], strength=strength), expected)

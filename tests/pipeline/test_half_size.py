"""A model that says so draws images of half its size or less at twice theirs, and halves them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from genpipe.checkpoints import save_checkpoint
from genpipe.pipeline import Pipeline
from tests.conftest import tiny_parts
from tests.pipeline.drawing import difference, draw


def saved(folder: Path, **defaults: bool) -> Pipeline:
    parts = tiny_parts()
    with torch.no_grad():
        parts["vae"].decoder.conv_out.weight.div_(40)  # no pixel is beyond black and white, where means are cut off
    save_checkpoint(folder, **parts, defaults=defaults)
    return Pipeline.from_pretrained(folder, device="cpu", dtype="fp32")


@pytest.fixture(scope="module")
def pipe(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    return saved(tmp_path_factory.mktemp("models") / "usual")


@pytest.fixture(scope="module")
def halving(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    return saved(tmp_path_factory.mktemp("models") / "halving", half_size=True)


def halved(image: Image.Image) -> Image.Image:
    height, width = image.height // 2, image.width // 2
    pixels = np.asarray(image, dtype=float).reshape(height, 2, width, 2, 3).mean((1, 3))
    return Image.fromarray(pixels.round().astype(np.uint8))


def test_a_small_image_is_the_large_one_halved(halving: Pipeline, pipe: Pipeline) -> None:
    large = draw(pipe, height=32, width=32)
    small = draw(halving, height=16, width=16)
    assert difference(small, halved(large)) <= 1
    assert np.asarray(small).std() > 5  # else anything would agree


def test_other_sizes_and_other_models_are_drawn_as_ever(halving: Pipeline, pipe: Pipeline) -> None:
    for size in ({"height": 32, "width": 32}, {"height": 24, "width": 32}):
        assert difference(draw(halving, **size), draw(pipe, **size)) == 0
    assert difference(draw(halving, height=16, width=16), draw(pipe, height=16, width=16)) > 10


def test_a_small_image_is_drawn_over_by_the_latents_of_the_large_one(halving: Pipeline, pipe: Pipeline) -> None:
    given = Image.effect_noise((8, 8), 90).convert("RGB").resize((16, 16), Image.Resampling.BICUBIC)
    settings = {"image": given, "strength": 0.5, "steps": 6}
    small = draw(halving, height=16, width=16, **settings)
    tensor = torch.from_numpy(np.asarray(given, dtype=np.float32)).permute(2, 0, 1)[None]
    enlarged = torch.nn.functional.interpolate(tensor, scale_factor=2.0, mode="bicubic").clamp(0, 255).round()
    large = Image.fromarray(enlarged[0].permute(1, 2, 0).numpy().astype(np.uint8))
    assert difference(small, halved(draw(pipe, height=32, width=32, **{**settings, "image": large}))) <= 3


def test_a_second_pass_begins_at_the_small_image(halving: Pipeline) -> None:
    settings = {"height": 16, "width": 16, "upscale": 2, "upscale_strength": 0.5}
    enlarged = draw(halving, **settings)
    assert enlarged.size == (32, 32)
    small = draw(halving, height=16, width=16).resize((32, 32), Image.Resampling.LANCZOS)
    drawn_over = draw(halving, height=32, width=32, image=small, strength=0.5)
    assert difference(enlarged, drawn_over) <= 1


def test_edges_meet_in_a_small_image_too(halving: Pipeline, pipe: Pipeline) -> None:
    small = draw(halving, height=16, width=16, tile=True)
    assert difference(small, halved(draw(pipe, height=32, width=32, tile=True))) <= 1

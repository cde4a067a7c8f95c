"""Images without edges, from the embedded model and a tiny one."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from genpipe import Pipeline
from genpipe.checkpoints import load_checkpoint
from genpipe.dialects.a1111 import parse_parameters
from genpipe.images import from_pil
from genpipe.models.tiny_vae import TinyVAE, TinyVAEConfig
from genpipe.pipeline.decoding import decode_joined
from genpipe.pipeline.loaded import Loaded
from genpipe.pipeline.plan import make_plan
from genpipe.pipeline.start import StartState
from genpipe.spec import ModelSpec
from tests.pipeline.drawing import difference, draw

SIZE: Any = {"width": 64, "height": 32}


@pytest.fixture(scope="module")
def embedded() -> Pipeline:
    return Pipeline.from_pretrained(device="cpu")


@pytest.fixture(scope="module")
def loaded(tiny_checkpoint: Path) -> Loaded:
    checkpoint = load_checkpoint(tiny_checkpoint)
    return Loaded(checkpoint, ModelSpec(), device=torch.device("cpu"), dtype=torch.float32, name="tiny")


def steps_across(image: Image.Image) -> tuple[np.ndarray, np.ndarray]:
    """How much each column, and each row, differs from the one before it; that of the first are the joins."""
    levels = np.asarray(image, dtype=float)
    return (
        np.abs(levels - np.roll(levels, 1, axis=1)).mean(axis=(0, 2)),
        np.abs(levels - np.roll(levels, 1, axis=0)).mean(axis=(1, 2)),
    )


def test_the_joins_are_like_any_place_inside(embedded: Pipeline) -> None:
    settings: Any = {"steps": 8, "seeds": [5, 6], "n": 2, "progress": False}
    joins, inside, worst = [], [], 0.0
    for prompt in ("a red flower", "a castle at sea"):
        for joined, plain in zip(embedded(prompt, tile=True, **settings), embedded(prompt, **settings), strict=True):
            for across in steps_across(joined):
                joins.append(across[0])
                inside.append(across[1:])
                worst = max(worst, across[0] / across[1:].max())
            # Without, its sky does not go on below its ground.
            assert steps_across(plain)[1][0] > 1.5 * steps_across(plain)[1][1:].max()
    assert np.mean(joins) <= np.quantile(np.concatenate(inside), 0.95) and worst <= 1.25


@pytest.mark.parametrize("sampler", ["ddim", "dpmpp_2m"])
def test_moved_noise_moves_the_image(pipe: Pipeline, loaded: Loaded, sampler: str) -> None:
    # With no edges there is no place: noise that is moved around gives the image moved around.
    (request,) = pipe.requests("a cat", seed=5, steps=3, guidance_scale=4.0, sampler=sampler, tile=True, **SIZE)
    plan = make_plan([request], pipe.sampler(sampler), loaded, None)
    (model, schedule) = plan.stages[0]

    def latents(shift: int) -> torch.Tensor:
        def begin(noise: Any) -> Any:
            begun = plan.start(noise)
            return StartState(begun.x.roll(shift, -1))

        with torch.inference_mode():
            *_, last = model.denoise([request], plan.sampler, schedule, begin, 0, plan.total)
        return last

    still, moved = latents(0), latents(6)
    assert (moved - still.roll(6, -1)).abs().max() <= 1e-3 * still.abs().max()
    images = [np.asarray(pipe.decode(each, [request])[0], dtype=int) for each in (still, moved)]
    assert np.abs(np.roll(images[0], 24, axis=1) - images[1]).max() <= 1


def test_a_batch_has_the_images_drawn_alone_and_says_so(pipe: Pipeline) -> None:
    together = draw(pipe, ["a cat", "a dog"], tile=True, **SIZE)
    for prompt, seed, image in zip(["a cat", "a dog"], (5, 6), together, strict=True):
        assert difference(image, draw(pipe, prompt, seed=seed, tile=True, **SIZE)) <= 1
        settings, _, unread = parse_parameters(image.info["parameters"])
        assert settings["tile"] is True and not unread
    assert difference(together[0], draw(pipe, "a cat", **SIZE)) > 1


def test_an_image_to_begin_from_has_no_edges_either(loaded: Loaded) -> None:
    levels = np.random.default_rng(0).integers(0, 256, (8, 16, 3), dtype=np.uint8)
    image = Image.fromarray(levels).resize((64, 32), Image.Resampling.NEAREST)
    moved = Image.fromarray(np.roll(np.asarray(image), 32, axis=1))
    with torch.inference_mode(), loaded.vae(32, 64, tile=True) as vae:
        still, other = (vae.encode(from_pil(each))[0] for each in (image, moved))
    assert (other - still.roll(8, -1)).abs().max() <= 1e-4 * still.abs().max()


@pytest.mark.parametrize("tiling", ["on", "off"])
def test_decoding_in_pieces_keeps_the_joins(tiny_checkpoint: Path, tiling: str) -> None:
    pipe = Pipeline.from_pretrained(tiny_checkpoint, device="cpu", dtype="fp32", vae_tiling=tiling)
    (request,) = pipe.requests("a", seed=1, steps=1, tile=True, width=288, height=64)
    torch.manual_seed(0)
    latents = torch.randn(1, 4, 16, 72)
    pixels, moved = (np.asarray(pipe.decode(each, [request])[0], int) for each in (latents, latents.roll(36, -1)))
    apart = np.abs(np.roll(pixels, 144, axis=1) - moved).mean()
    assert apart <= (1e-3 if tiling == "off" else np.abs(np.diff(pixels, axis=1)).mean() / 4)


def test_a_tiny_autoencoders_decoder_sees_the_other_side() -> None:
    torch.manual_seed(0)
    vae = TinyVAE(TinyVAEConfig(decoder_channels=(8,) * 4, encoder_channels=(8,) * 4)).eval()
    latents = torch.randn(1, 4, 32, 32)
    with torch.inference_mode():
        found, moved = (decode_joined(vae.decode, each) for each in (latents, latents.roll(8, -1)))
    assert found.shape == (1, 3, 256, 256)
    assert (moved - found.roll(64, -1)).abs().max() <= 1e-4


def test_sizes_that_cannot_be_halved_are_refused(pipe: Pipeline) -> None:
    with pytest.raises(ValueError, match="width must be a multiple of 8 for this model, not 36"):
        draw(pipe, tile=True, width=36, height=32)

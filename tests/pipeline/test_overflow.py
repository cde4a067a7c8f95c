"""What is not finite in 16 bits is repeated in fp32, and weights that are not finite are named."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from genpipe.models.finite import NonFiniteError
from genpipe.pipeline import Pipeline
from scripts.make.checkpoint import make_controlnet
from tests.conftest import needs_int8
from tests.pipeline.drawing import difference, draw, middle


def overflowing(module: torch.nn.Module, *, rows: slice) -> list[torch.dtype]:
    """Make `module` give NaN in bf16, for some rows of the batch, as a network that overflows 16 bits does."""
    seen: list[torch.dtype] = []

    def overflow(module: torch.nn.Module, given: Any, output: torch.Tensor) -> torch.Tensor:
        seen.append(next(module.parameters()).dtype)
        if seen[-1] == torch.bfloat16:
            output = output.clone()
            output[rows] = float("nan")
        return output

    module.register_forward_hook(overflow)
    return seen


def test_a_step_that_overflows_is_repeated_in_fp32(tiny_checkpoint: Path) -> None:
    pipe = Pipeline.from_pretrained(tiny_checkpoint, device="cpu", dtype="bf16")
    sound = draw(pipe, n=2)
    # The first picture, both halves.
    seen = overflowing(middle(pipe), rows=slice(0, None, 2))
    images = draw(pipe, n=2)
    assert torch.float32 in seen
    assert difference(images[1], sound[1]) == 0  # its neighbour is as before
    exact = draw(Pipeline.from_pretrained(tiny_checkpoint, device="cpu", dtype="fp32"))
    error = np.asarray(images[0], dtype=float) - np.asarray(exact, dtype=float)
    assert 10 * np.log10(255**2 / max((error**2).mean(), 1e-9)) >= 30
    assert next(pipe.unet.parameters()).dtype == torch.bfloat16


def test_a_decode_that_overflows_is_repeated_in_fp32(tiny_checkpoint: Path) -> None:
    pipe = Pipeline.from_pretrained(tiny_checkpoint, device="cpu", dtype="bf16")
    sound = draw(pipe)
    seen = overflowing(pipe.vae.decoder, rows=slice(None))
    # The parameters that `seen` looks at are the decoder's.
    image = draw(pipe)
    assert seen == [torch.bfloat16, torch.float32]
    error = np.asarray(image, dtype=float) - np.asarray(sound, dtype=float)
    assert 10 * np.log10(255**2 / max((error**2).mean(), 1e-9)) >= 30


@pytest.mark.parametrize("part", ["text_encoder", "unet", "vae"])
def test_weights_that_are_not_finite_are_named(fresh: Pipeline, part: str) -> None:
    module = fresh.checkpoint.networks[part]
    name, weight = [item for item in module.named_parameters() if "encoder." not in item[0] or part == "text_encoder"][
        3
    ]
    with torch.no_grad():
        weight.view(-1)[0] = float("nan")
    with pytest.raises(NonFiniteError) as caught:
        draw(fresh)
    assert "not finite" in str(caught.value)
    assert name.split(".")[-1] in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_text_encoder_that_overflows_is_repeated_in_fp32(tiny_checkpoint: Path) -> None:
    pipe = Pipeline.from_pretrained(tiny_checkpoint, device="cpu", dtype="bf16")
    exact = Pipeline.from_pretrained(tiny_checkpoint, device="cpu", dtype="fp32").prompt_encoder(["a red cat"]).context
    overflowing(pipe.text_encoders[0].layers[0], rows=slice(None))
    repeated = pipe.prompt_encoder(["a red cat"]).context
    assert repeated.isfinite().all()
    assert (repeated - exact).abs().max() < 0.1


def test_a_control_network_that_overflows_is_repeated_in_fp32(tiny_checkpoint: Path, tmp_path: Path) -> None:
    make_controlnet(tiny_checkpoint, tmp_path / "controlnet")
    models: Any = {"device": "cpu", "control_model": tmp_path / "controlnet"}
    levels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    given: dict[str, Any] = {"control": Image.fromarray(levels)}
    pipe = Pipeline.from_pretrained(tiny_checkpoint, dtype="bf16", **models)
    network: Any = pipe.checkpoint.controls[0]
    seen = overflowing(network.middle, rows=slice(None))
    image = draw(pipe, **given)
    assert torch.float32 in seen and torch.bfloat16 in seen
    exact = draw(Pipeline.from_pretrained(tiny_checkpoint, dtype="fp32", **models), **given)
    error = np.asarray(image, dtype=float) - np.asarray(exact, dtype=float)
    assert 10 * np.log10(255**2 / max((error**2).mean(), 1e-9)) >= 30
    plain = draw(Pipeline.from_pretrained(tiny_checkpoint, device="cpu", dtype="fp32"))
    assert difference(plain, exact) > 10  # else it would not matter


def test_previews_work_where_the_autoencoder_overflows(tiny_checkpoint: Path) -> None:
    pipe = Pipeline.from_pretrained(tiny_checkpoint, device="cpu", dtype="bf16")
    overflowing(pipe.vae.decoder, rows=slice(None))
    sizes = []
    draw(pipe, callback=lambda state: sizes.append(state.preview()[0].size))
    assert sizes == [(8, 8)] * 4


@needs_int8
def test_a_step_that_overflows_in_int8_is_repeated_in_fp32(wide_checkpoint: Path) -> None:
    pipe = Pipeline.from_pretrained(wide_checkpoint, device="cpu", dtype="bf16", int8=True)
    seen = overflowing(middle(pipe), rows=slice(None))
    image = draw(pipe)
    assert torch.float32 in seen
    exact = draw(Pipeline.from_pretrained(wide_checkpoint, device="cpu", dtype="fp32"))
    error = np.asarray(image, dtype=float) - np.asarray(exact, dtype=float)
    assert 10 * np.log10(255**2 / max((error**2).mean(), 1e-9)) >= 30

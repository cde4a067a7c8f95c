"""The denoiser's weights kept in fp8, int8 or bf16: what they take, what the image loses, and what stays the same."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from genpipe import Pipeline
from genpipe.models.stored import StoredLayer


def draw(pipe: Pipeline, **given: Any) -> Any:
    settings: Any = {"seed": 5, "steps": 3, "guidance_scale": 4.0, "progress": False, **given}
    return pipe("a red cat", **settings)


def psnr(image: Any, reference: Any) -> float:
    error = np.asarray(image, dtype=float) - np.asarray(reference, dtype=float)
    return 10 * np.log10(255**2 / max((error**2).mean(), 1e-9))


def bytes_per_number(pipe: Pipeline) -> float:
    layers = [module for module in pipe.unet.modules() if isinstance(module, StoredLayer)]
    held = sum(tensor.nbytes for layer in layers for tensor in layer.state_dict().values())
    return held / sum(layer.weight.numel() for layer in layers)


@pytest.mark.parametrize(
    ("weights", "dtype", "most", "least"),
    [("fp8", "fp32", 1.2, 30), ("int8", "fp32", 1.2, 35), ("bf16", "fp32", 2.1, 45), ("int8", "bf16", 1.1, 35)],
)
def test_the_embedded_model_draws_nearly_the_same(weights: str, dtype: Any, most: float, least: float) -> None:
    settings: dict[str, Any] = {"device": "cpu", "dtype": dtype}
    small, usual = Pipeline.from_pretrained(weights=weights, **settings), Pipeline.from_pretrained(**settings)
    image, expected = (pipe("pirate ship", seed=3, steps=4, progress=False) for pipe in (small, usual))
    assert bytes_per_number(small) < most
    stored = sum(module.weight.numel() for module in small.unet.modules() if isinstance(module, StoredLayer))
    assert stored > 0.95 * sum(weight.numel() for weight in usual.unet.state_dict().values())
    assert least <= psnr(image, expected) < 80
    assert json.loads(image.info["genpipe"])["weights"] == weights
    assert "weights" not in json.loads(expected.info["genpipe"])


@pytest.mark.parametrize("low_memory", [False, True])
@pytest.mark.parametrize("weights", ["fp8", "int8"])
def test_sdxl_draws_from_them_and_takes_a_lora_and_leaves_it(
    tiny_xl_checkpoint: Path, tmp_path: Path, weights: str, low_memory: bool
) -> None:
    settings: dict[str, Any] = {"device": "cpu", "dtype": "fp32", "low_memory": low_memory}
    module = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
    generator = torch.Generator().manual_seed(0)
    down, up = (torch.randn(shape, generator=generator) for shape in ((2, 32), (32, 2)))
    save_file({f"{module}.lora_down.weight": down, f"{module}.lora_up.weight": up}, tmp_path / "style.safetensors")
    loras: Any = [tmp_path / "style.safetensors"]
    small = Pipeline.from_pretrained(tiny_xl_checkpoint, weights=weights, **settings)
    usual = Pipeline.from_pretrained(tiny_xl_checkpoint, **settings)
    base = draw(small)
    assert 25 <= psnr(base, draw(usual)) < 80
    changed = draw(small, loras=loras)
    assert 25 <= psnr(changed, draw(usual, loras=loras)) < 80 and psnr(changed, base) < 45
    assert bytes_per_number(small) < 1.5
    assert draw(small).tobytes() == base.tobytes()


def test_a_file_in_fp8_is_kept_as_it_is(tiny_xl_checkpoint: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_xl_checkpoint, tmp_path / "fp8")
    path = tmp_path / "fp8" / "unet" / "diffusion_pytorch_model.safetensors"
    save_file({k: v.to(torch.float8_e4m3fn) if v.ndim > 1 else v for k, v in load_file(path).items()}, path)
    settings: dict[str, Any] = {"device": "cpu", "dtype": "fp32"}
    small = Pipeline.from_pretrained(tmp_path / "fp8", weights="fp8", **settings)
    usual = Pipeline.from_pretrained(tmp_path / "fp8", **settings)
    assert psnr(draw(small), draw(usual)) > 50  # queries are scaled before they are multiplied, or after


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"weights": "fp8", "int8": True, "dtype": "bf16"}, "leave out one of them"),
        ({"weights": "bf16", "dtype": "bf16"}, "save nothing in bf16: use --dtype fp32"),
        ({"weights": "nf4"}, "weights nf4 is for models that diffusers draws: use fp8, int8, bf16"),
    ],
)
def test_what_would_not_apply_gets_one_clear_line(tiny_checkpoint: Path, options: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says) as caught:
        Pipeline.from_pretrained(tiny_checkpoint, device="cpu", **options)
    assert "\n" not in str(caught.value)

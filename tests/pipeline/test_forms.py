"""Which form the networks of a pipeline take on a processor."""

from pathlib import Path

import pytest
import torch
from torch import nn

from genpipe.models.cpu.packed import PackedLinear
from genpipe.pipeline import Pipeline
from tests.models.conftest import packs_fp32
from tests.pipeline.drawing import difference, draw


@packs_fp32
def test_what_runs_once_per_prompt_stays_in_its_file_on_avx2(
    tiny_checkpoint: Path, pipe: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And draws the same, again after its pages were let go."""
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    lesser = Pipeline.from_pretrained(tiny_checkpoint, device="cpu", dtype="fp32")
    assert not any(isinstance(module, PackedLinear) for module in lesser.text_encoders[0].modules())
    assert any(isinstance(module, PackedLinear) for module in lesser.unet.modules())
    layer = next(module for module in lesser.text_encoders[0].modules() if isinstance(module, nn.Linear))
    weight = layer.weight.clone()
    for prompt in ("a ship", "a house"):
        assert difference(draw(lesser, prompt), draw(pipe, prompt)) <= 1
    assert torch.equal(layer.weight, weight)

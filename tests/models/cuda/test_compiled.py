"""A U-Net of compiled blocks computes the same, and each kind of block is compiled once per shape."""

import copy
import shutil
from pathlib import Path

import pytest
import torch
import torch._inductor.config
from torch._dynamo.utils import counters

from genpipe.models.cuda.compiled import CompiledResidualBlock, CompiledTransformerBlock
from genpipe.models.cuda.forms import PLAIN, CudaForms
from genpipe.models.denoiser import UNetDenoiser
from genpipe.models.prepare import prepare
from tests.models.conftest import UNetPair, unet_conditioning

ONE_LEVEL = {
    "block_out_channels": (16,),
    "down_block_types": ("CrossAttnDownBlock2D",),
    "up_block_types": ("CrossAttnUpBlock2D",),
    "layers_per_block": 1,
}


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
@torch.inference_mode()
def test_compiled_blocks_compute_the_same(
    device: torch.device, unet_pair: UNetPair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What torch keeps was perhaps compiled for a processor that takes other instructions.
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    exact, _ = unet_pair(**ONE_LEVEL)
    conditioning, latents = unet_conditioning(exact, 2, device), torch.randn(2, 4, 8, 8, device=device)
    plain, compiled = (
        prepare(copy.deepcopy(exact), device=device, dtype=torch.float32, forms=forms)
        for forms in (PLAIN, CudaForms(channels_last=True, compiled=True))
    )
    kinds = [type(module) for module in compiled.modules()]
    assert kinds.count(CompiledResidualBlock) == 5 and kinds.count(CompiledTransformerBlock) == 4
    counters.clear()
    # To try which vectors the compiler knows would take most of the time.
    with torch._inductor.config.patch({"cpp.vec_isa_ok": False}):
        for timestep in (981.0, 0.0):
            expected, output = (
                UNetDenoiser(unet, [981.0, 0.0], conditioning)(latents, timestep) for unet in (plain, compiled)
            )
            assert (output - expected).abs().max() <= 1e-4 * expected.abs().max()
    assert counters["stats"]["unique_graphs"] == 3  # two residual blocks, by their width, and one transformer block

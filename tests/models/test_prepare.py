"""The networks, prepared, compute what diffusers' compute, and hold their weights once."""

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

from genpipe.blocks import PhaseUpsample, Upsample
from genpipe.checkpoints import layout
from genpipe.hardware import INSTRUCTION_SETS
from genpipe.models.cpu.forms import PACKABLE, Forms, forms_for
from genpipe.models.prepare import prepare
from genpipe.models.vae import VAE, VAEConfig
from tests.models.conftest import BOTH, UNetPair

CPU, FP32 = torch.device("cpu"), torch.float32
FORMS = Forms(packed=PACKABLE, phases=True, blocked={1024: 16})
VAE_BASE: dict[str, Any] = {
    "block_out_channels": (8, 16, 16),
    "down_block_types": ("DownEncoderBlock2D",) * 3,
    "up_block_types": ("UpDecoderBlock2D",) * 3,
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "latent_channels": 4,
}


@torch.inference_mode()
def test_the_autoencoder_computes_what_diffusers_computes(copy_weights: Callable[..., None]) -> None:
    torch.manual_seed(0)
    theirs: Any = AutoencoderKL(**VAE_BASE)
    ours = VAE(VAEConfig.from_dict(theirs.config))
    copy_weights(theirs, ours, layout.VAE)
    prepare(ours, device=CPU, dtype=FP32, forms=FORMS)
    latents, pixels = torch.randn(2, 4, 5, 6), torch.rand(1, 3, 16, 24) * 2 - 1
    expected = theirs.decode(latents / theirs.config.scaling_factor).sample
    assert float(expected.std()) > 0.03
    assert (ours.decode(latents) - expected).abs().max() <= 1e-5
    assert (ours.encode(pixels)[0] - theirs.encode(pixels).latent_dist.mean).abs().max() <= 1e-5


@torch.inference_mode()
def test_the_old_weights_are_let_go(unet_pair: UNetPair) -> None:
    unet = prepare(unet_pair()[0], device=CPU, dtype=torch.bfloat16, forms=FORMS)
    kinds = [type(module) for module in unet.modules()]
    assert kinds.count(PhaseUpsample) == 2 and Upsample not in kinds
    wide = {name.split(".")[0] for name, tensor in unet.state_dict().items() if tensor.dtype != torch.bfloat16}
    assert wide == {"norm_out", "conv_out"}  # in fp32
    assert not any(parameter.requires_grad for parameter in unet.parameters())


@torch.inference_mode()
@pytest.mark.parametrize("dtype", BOTH)
@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
def test_every_row_of_the_table_computes_the_same(
    instruction_set: str, dtype: torch.dtype, unet_pair: UNetPair
) -> None:
    """On this machine, whatever it is: forms are forced, on narrow networks too."""
    forms = forms_for(instruction_set, dtype)
    forms = replace(
        forms,
        winograd4=forms.winograd4 and 16,
        winograd4_side=16,
        patches=forms.patches and 16,
        blocked=forms.blocked and {1024: 16},
        winograd_from=16,
        differences_from=32,
    )
    exact, _ = unet_pair(sample_size=32)
    fast = prepare(copy.deepcopy(exact), device=CPU, dtype=dtype, forms=forms)
    latents, timestep, context = torch.randn(2, 4, 32, 28), torch.tensor([300.0, 300.0]), torch.randn(2, 7, 24)
    expected = exact.double()(latents.double(), timestep, context.double())
    error = (fast(latents, timestep, context) - expected).norm() / expected.norm()
    assert error <= (1e-5 if dtype == torch.float32 else 0.03)
    kinds = {type(module).__name__ for module in fast.modules()}
    for name, wanted in (
        ("WinogradConv", forms.winograd and forms.winograd4 is None),
        ("Winograd4Conv", forms.winograd4),
        ("PatchConv", forms.patches),
    ):
        assert (name in kinds) == bool(wanted)
    assert ("DifferenceUpsample" in kinds) == forms.winograd and ("PackedLinear" in kinds) == ("linear" in forms.packed)

"""The networks, prepared, compute what diffusers' compute, and hold their weights once."""

from collections.abc import Callable
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

from genpipe.blocks import PhaseUpsample, Upsample
from genpipe.checkpoints import layout
from genpipe.models.cpu.forms import PACKABLE, Forms
from genpipe.models.prepare import prepare
from genpipe.models.vae import VAE, VAEConfig
from tests.models.conftest import UNetPair

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

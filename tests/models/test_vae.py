"""The autoencoder computes what diffusers' `AutoencoderKL` computes, whole and in tiles."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from torch import Tensor

from genpipe.checkpoints import layout
from genpipe.models.vae import VAE, VAEConfig

BASE: dict[str, Any] = {
    "block_out_channels": (8, 16),
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "latent_channels": 4,
    "sample_size": 32,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "Stable Diffusion": {"layers_per_block": 2},
    "four levels": {
        "block_out_channels": (8, 16, 16, 24),
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
    },
    "no quantisation convolutions": {"use_quant_conv": False, "use_post_quant_conv": False},
    "one quantisation convolution": {"use_quant_conv": False},
    "no attention": {"mid_block_add_attention": False},
    "shifted and scaled": {"scaling_factor": 1.5305, "shift_factor": 0.0609, "latent_channels": 16},
    "other norm": {"norm_num_groups": 2},
    "masks": {"in_channels": 1, "out_channels": 1},
    "safe in fp16": {"force_upcast": False},
}


def pair(copy_weights: Callable[..., None], **settings: Any) -> tuple[VAE, Any]:
    torch.manual_seed(0)
    theirs: Any = AutoencoderKL(**{**BASE, **settings})
    ours = VAE(VAEConfig.from_dict(theirs.config))
    copy_weights(theirs, ours, layout.VAE)
    return ours, theirs


def close(ours: Tensor, theirs: Tensor) -> bool:
    assert float(theirs.std()) > 0.03  # else anything would agree
    return ours.shape == theirs.shape and float((ours - theirs).abs().max()) <= 1e-5


@torch.inference_mode()
@pytest.mark.parametrize("name", CONFIGS)
def test_it_computes_what_diffusers_computes(
    name: str, copy_weights: Callable[..., None], same_norms: Callable[..., None]
) -> None:
    ours, theirs = pair(copy_weights, **CONFIGS[name])
    same_norms(theirs, ours, layout.VAE)
    torch.manual_seed(2)
    pixels = torch.rand(2, theirs.config.in_channels, 48, 32) * 2 - 1
    mean, logvar = ours.encode(pixels)
    reference = theirs.encode(pixels).latent_dist
    assert close(mean, reference.mean) and close(logvar, reference.logvar)

    scale, shift = theirs.config.scaling_factor, theirs.config.shift_factor or 0.0
    assert close(ours.scale(mean), (reference.mean - shift) * scale)
    latents = torch.randn(2, theirs.config.latent_channels, 6, 5)
    assert close(ours.decode(latents), theirs.decode(latents / scale + shift).sample)
    assert ours.config.factor == 48 // mean.shape[-2]


@torch.inference_mode()
def test_latents_may_have_a_mean_and_a_deviation_per_channel(copy_weights: Callable[..., None]) -> None:
    """As Playground v2.5 scales them."""
    mean, std = [-1.6574, 1.886, -1.383, 2.5155], [8.4927, 5.9022, 6.5498, 5.2299]
    ours, theirs = pair(copy_weights, latents_mean=mean, latents_std=std, scaling_factor=0.5)
    m, s = (torch.tensor(numbers)[None, :, None, None] for numbers in (mean, std))
    latents = torch.randn(2, 4, 6, 5)
    assert close(ours.scale(latents), (latents - m) * 0.5 / s)
    assert torch.allclose(ours.unscale(ours.scale(latents)), latents, atol=1e-5)
    assert close(ours.decode(latents), theirs.decode(latents * s / 0.5 + m).sample)


@torch.inference_mode()
def test_log_variance_is_clamped(copy_weights: Callable[..., None]) -> None:
    ours, _ = pair(copy_weights)
    ours.to_moments.get_parameter("bias")[4:] = 1e4
    assert float(ours.encode(torch.zeros(1, 3, 16, 16))[1].max()) == 20.0
    ours.to_moments.get_parameter("bias")[4:] = -1e4
    assert float(ours.encode(torch.zeros(1, 3, 16, 16))[1].min()) == -30.0


@torch.inference_mode()
def test_tiled_decoding_is_close_to_the_whole(copy_weights: Callable[..., None]) -> None:
    """Norms and attention see a tile only, so the two differ a little."""
    vae, _ = pair(copy_weights)
    torch.manual_seed(3)
    latents = 0.18215 * torch.randn(1, 4, 48, 40)
    whole, tiled = vae.decode(latents), vae.decode(latents, tile=24)
    error = tiled - whole
    assert float(error.pow(2).mean().sqrt()) <= 0.15 * float(whole.std())
    for dim in (-1, -2):
        assert float(error.diff(dim=dim).abs().max()) <= 0.3 * float(whole.diff(dim=dim).abs().max())
    assert torch.equal(vae.decode(latents, tile=48), vae.decode(latents))  # it fits one tile


@pytest.mark.parametrize("settings", [{}, *CONFIGS.values()])
def test_config_survives_a_round_trip_and_diffusers_builds_the_same_from_it(settings: dict[str, Any]) -> None:
    config = VAEConfig.from_dict({**BASE, **settings})
    assert VAEConfig.from_dict(config.to_dict()) == config
    with torch.device("meta"):
        theirs: Any = AutoencoderKL.from_config(config.to_dict())
    assert VAEConfig.from_dict(theirs.config) == config


def test_old_configs_without_a_scale_mean_that_of_stable_diffusion() -> None:
    assert VAEConfig.from_dict(BASE).scaling_factor == 0.18215
    assert VAEConfig.from_dict({**BASE, "scaling_factor": None, "shift_factor": None}).shift_factor == 0.0
    assert VAEConfig.from_dict(BASE).force_upcast


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"down_block_types": ("AttnDownEncoderBlock2D",) * 2}, "block 'AttnDownEncoderBlock2D' is not supported"),
        ({"act_fn": "relu"}, "act_fn 'relu' is not supported"),
        ({"latents_mean": [0.0] * 4}, "latents_mean and latents_std go together"),
        ({"latents_mean": [0.0] * 3, "latents_std": [1.0] * 3}, "need 4 numbers each, one per channel"),
    ],
)
def test_forms_that_are_not_implemented_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VAEConfig.from_dict({**BASE, **settings})

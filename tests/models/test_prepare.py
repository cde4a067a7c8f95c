"""The networks, prepared, compute what diffusers' compute, and no part of it twice."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn

from genpipe.blocks import PhaseUpsample, Upsample
from genpipe.checkpoints import layout
from genpipe.models.attention import Attention
from genpipe.models.cpu.forms import PACKABLE, Forms
from genpipe.models.prepare import Denoiser, prepare
from genpipe.models.unet import TimeEmbedding, UNet
from genpipe.models.unet_config import UNetConfig
from genpipe.models.vae import VAE, VAEConfig

CPU, FP32 = torch.device("cpu"), torch.float32
FORMS = Forms(packed=PACKABLE, phases=True, blocked={1024: 16})
TIMES = [981.0, 499.5, 0.0]
BASE: dict[str, Any] = {
    "block_out_channels": (16, 32, 48),
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    "layers_per_block": 2,
    "attention_head_dim": 4,
    "cross_attention_dim": 24,
    "norm_num_groups": 8,
    "sample_size": 8,
}
UNETS: dict[str, dict[str, Any]] = {
    "Stable Diffusion 1": {},
    "Stable Diffusion 2.1": {
        "attention_head_dim": [2, 4, 6],
        "use_linear_projection": True,
        "upcast_attention": True,
    },
    "attention below the first level": {
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    },
    "attention in the middle alone": {"down_block_types": ("DownBlock2D",) * 3, "up_block_types": ("UpBlock2D",) * 3},
    "only cross-attention": {"only_cross_attention": True},
    "deep transformers": {"transformer_layers_per_block": 2},
}
VAE_BASE: dict[str, Any] = {
    "block_out_channels": (8, 16, 16),
    "down_block_types": ("DownEncoderBlock2D",) * 3,
    "up_block_types": ("UpDecoderBlock2D",) * 3,
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "latent_channels": 4,
}


def pair(copy_weights: Callable[..., None], **settings: Any) -> tuple[UNet, Any]:
    torch.manual_seed(0)
    theirs: Any = UNet2DConditionModel(**{**BASE, **settings})
    ours = UNet(UNetConfig.from_dict(theirs.config))
    copy_weights(theirs, ours, layout.UNET)
    return ours, theirs


def calls(module: nn.Module) -> list[Tensor]:
    """The inputs that `module` is called with from now on."""
    seen: list[Tensor] = []
    module.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    return seen


@torch.inference_mode()
@pytest.mark.parametrize("prompts", [1, 2])
@pytest.mark.parametrize("name", UNETS)
def test_a_denoiser_computes_what_diffusers_computes(
    name: str, prompts: int, copy_weights: Callable[..., None]
) -> None:
    ours, theirs = pair(copy_weights, **UNETS[name])
    prepare(ours, device=CPU, dtype=FP32, forms=FORMS)
    torch.manual_seed(2)
    context = torch.randn(prompts * 3, 7, 24)
    denoiser = Denoiser(ours, TIMES, context)
    for timestep in TIMES:
        latents = torch.randn(3, 4, 8, 12)
        expected = theirs(torch.cat([latents] * prompts), timestep, context).sample
        assert float(expected.std()) > 0.1  # else anything would agree
        assert (denoiser(latents, timestep) - expected).abs().max() <= 1e-5


@torch.inference_mode()
@pytest.mark.parametrize(("height", "width"), [(9, 8), (7, 11), (10, 6), (5, 5)])
def test_any_latent_size(height: int, width: int, copy_weights: Callable[..., None]) -> None:
    ours, theirs = pair(copy_weights)
    prepare(ours, device=CPU, dtype=FP32, forms=FORMS)
    torch.manual_seed(2)
    latents, context = torch.randn(1, 4, height, width), torch.randn(1, 7, 24)
    expected = theirs(latents, TIMES[0], context).sample
    assert (Denoiser(ours, TIMES, context)(latents, TIMES[0]) - expected).abs().max() <= 1e-5


@torch.inference_mode()
def test_a_distilled_denoiser_takes_the_guidance_scale(copy_weights: Callable[..., None]) -> None:
    ours, _ = pair(copy_weights, time_cond_proj_dim=10)
    plain = copy.deepcopy(ours)
    latents, context = torch.randn(2, 4, 8, 8), torch.randn(2, 7, 24)
    expected = plain(latents, torch.full((2,), 981.0), context, guidance=torch.full((2,), 7.5))
    output = Denoiser(prepare(ours, device=CPU, dtype=FP32, forms=FORMS), TIMES, context, guidance=7.5)(latents, 981.0)
    assert (output - expected).abs().max() <= 1e-5


@torch.inference_mode()
def test_what_does_not_change_is_computed_once(copy_weights: Callable[..., None]) -> None:
    unet = prepare(pair(copy_weights)[0], device=CPU, dtype=FP32, forms=FORMS)
    readers = [module for module in unet.modules() if isinstance(module, Attention)]
    keys = [calls(reader.key) for reader in readers]
    embeddings = [calls(module) for module in unet.modules() if isinstance(module, TimeEmbedding)]
    shared = [calls(unet.conv_in), calls(unet.down[0].transformers[0].blocks[0].attention1)]  # type: ignore[union-attr, index]
    denoiser = Denoiser(unet, TIMES, torch.randn(4, 7, 24))
    for timestep in TIMES:
        denoiser(torch.randn(2, 4, 8, 8), timestep)
    assert len(readers) == 11 and [len(seen) for seen in keys] == [1] * 11
    assert [len(seen) for seen in embeddings] == [1]
    assert [len(x) for seen in shared for x in seen] == [2] * 2 * len(TIMES)  # rows: pictures, not pictures and prompts


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
def test_the_old_weights_are_let_go(copy_weights: Callable[..., None]) -> None:
    unet = prepare(pair(copy_weights)[0], device=CPU, dtype=torch.bfloat16, forms=FORMS)
    kinds = [type(module) for module in unet.modules()]
    assert kinds.count(PhaseUpsample) == 2 and Upsample not in kinds
    wide = {name.split(".")[0] for name, tensor in unet.state_dict().items() if tensor.dtype != torch.bfloat16}
    assert wide == {"norm_out", "conv_out"}  # in fp32
    assert not any(parameter.requires_grad for parameter in unet.parameters())


@torch.inference_mode()
@pytest.mark.parametrize("name", ["Stable Diffusion 1", "attention below the first level", "deep transformers"])
def test_kept_deep_features_are_those_of_the_step_before(name: str, copy_weights: Callable[..., None]) -> None:
    """As DeepCache has it: all but the first convolution and the last layer stays as it was at the step before."""
    ours, theirs = pair(copy_weights, **UNETS[name])
    context, early, late = torch.randn(4, 7, 24), torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8)
    seen: list[tuple[Any, ...]] = []
    hook = theirs.up_blocks[-1].resnets[-1].register_forward_pre_hook(lambda module, given: seen.append(given))
    theirs(torch.cat([early, early]), TIMES[0], context)
    hook.remove()
    deep = seen[0][0][:, :-16]

    def replaced(module: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
        return (torch.cat([deep, given[0][:, -16:]], dim=1), *given[1:])

    hook = theirs.up_blocks[-1].resnets[-1].register_forward_pre_hook(replaced)
    expected = theirs(torch.cat([late, late]), TIMES[1], context).sample
    hook.remove()
    whole = theirs(torch.cat([late, late]), TIMES[1], context).sample
    denoiser = Denoiser(prepare(ours, device=CPU, dtype=FP32, forms=FORMS), TIMES, context, refresh=2)
    denoiser(early, TIMES[0])
    output = denoiser(late, TIMES[1])
    assert (output - expected).abs().max() <= 1e-5 < (output - whole).abs().max()
    again = denoiser(late, TIMES[2])  # refreshed
    assert (again - theirs(torch.cat([late, late]), TIMES[2], context).sample).abs().max() <= 1e-5


@torch.inference_mode()
def test_the_last_prompts_can_be_evaluated_alone(copy_weights: Callable[..., None]) -> None:
    ours, theirs = pair(copy_weights)
    context, latents = torch.randn(4, 7, 24), torch.randn(2, 4, 8, 8)
    prepare(ours, device=CPU, dtype=FP32, forms=FORMS)
    for refresh in (1, 2):
        denoiser = Denoiser(ours, TIMES, context, refresh=refresh)
        alone = denoiser(latents, TIMES[0], last=True)
        assert (alone - theirs(latents, TIMES[0], context[2:]).sample).abs().max() <= 1e-5
        both = denoiser(latents, TIMES[1])  # what was kept of the last alone does not do for all
        assert (both - theirs(torch.cat([latents, latents]), TIMES[1], context).sample).abs().max() <= 1e-5
        assert denoiser(latents, TIMES[1], last=True).shape == latents.shape

"""The denoiser computes what diffusers' `UNet2DConditionModel` computes."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.latent_consistency_models.pipeline_latent_consistency_text2img import (
    LatentConsistencyModelPipeline,
)
from torch import Tensor
from torch.nn import functional as F

from genpipe.checkpoints.layout import UNET
from genpipe.models import attention
from genpipe.models.unet import UNet
from genpipe.models.unet_config import UNetConfig
from tests.models.conftest import UNET_BASE, UNET_FAMILIES, UNetPair, their_inputs, unet_conditioning

BASE: dict[str, Any] = {
    "block_out_channels": (16, 32),
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "layers_per_block": 1,
    "attention_head_dim": 4,
    "cross_attention_dim": 24,
    "norm_num_groups": 8,
    "sample_size": 8,
}
THREE: dict[str, Any] = {
    "block_out_channels": (16, 32, 48),
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
}
CONFIGS: dict[str, dict[str, Any]] = {
    "Stable Diffusion 2": {**THREE, "attention_head_dim": [2, 4, 6], "use_linear_projection": True},
    "Stable Diffusion 2.1": {"attention_head_dim": [2, 4], "use_linear_projection": True, "upcast_attention": True},
    "one head": {"attention_head_dim": 1},
    "attention in the lowest level": {
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    },
    "attention one way": {"up_block_types": ("UpBlock2D", "UpBlock2D")},
    "layers a level": {**THREE, "layers_per_block": [1, 2, 1]},
    "deep transformers": {"transformer_layers_per_block": 2},
    "only cross-attention": {"only_cross_attention": True},
    "only cross-attention in some levels": {**THREE, "only_cross_attention": [True, False, False]},
    "other timestep embedding": {"flip_sin_to_cos": False, "freq_shift": 1},
    "other padding": {"downsample_padding": 0},
    "other norm": {"norm_eps": 1e-3, "norm_num_groups": 4},
    "inpainting channels": {"in_channels": 9},
    "learned variance": {"out_channels": 8},
    "one level": {
        "block_out_channels": (16,),
        "down_block_types": ("CrossAttnDownBlock2D",),
        "up_block_types": ("CrossAttnUpBlock2D",),
    },
}


def pair(copy_weights: Callable[..., None], **settings: Any) -> tuple[UNet, Any]:
    torch.manual_seed(0)
    theirs: Any = UNet2DConditionModel(**{**BASE, **settings})
    ours = UNet(UNetConfig.from_dict(theirs.config))
    copy_weights(theirs, ours, UNET)
    return ours, theirs


def inputs(channels: int = 4, height: int = 8, width: int = 8) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(2)
    return torch.randn(3, channels, height, width), torch.tensor([0.0, 981.0, 499.5]), torch.randn(3, 7, 24)


def close(ours: Tensor, theirs: Tensor) -> bool:
    assert float(theirs.std()) > 0.1  # else anything would agree
    return ours.shape == theirs.shape and float((ours - theirs).abs().max()) <= 1e-5


@torch.inference_mode()
@pytest.mark.parametrize("name", CONFIGS)
def test_it_computes_what_diffusers_computes(
    name: str, copy_weights: Callable[..., None], same_norms: Callable[..., None]
) -> None:
    ours, theirs = pair(copy_weights, **CONFIGS[name])
    same_norms(theirs, ours, UNET)
    batch = inputs(channels=CONFIGS[name].get("in_channels", 4))
    assert close(ours(*batch), theirs(*batch).sample)


@torch.inference_mode()
@pytest.mark.parametrize(("height", "width"), [(8, 12), (9, 8), (7, 11), (10, 6), (5, 5)])
def test_any_latent_size(height: int, width: int, copy_weights: Callable[..., None]) -> None:
    ours, theirs = pair(copy_weights, **THREE)
    batch = inputs(height=height, width=width)
    assert close(ours(*batch), theirs(*batch).sample)


@torch.inference_mode()
def test_embedded_guidance_of_latent_consistency_models(copy_weights: Callable[..., None]) -> None:
    ours, theirs = pair(copy_weights, time_cond_proj_dim=10)
    batch, scale = inputs(), torch.tensor([1.0, 7.5, 8.25])
    embed: Any = LatentConsistencyModelPipeline.get_guidance_scale_embedding
    condition = embed(None, scale - 1, embedding_dim=10)
    assert close(ours(*batch, guidance=scale), theirs(*batch, timestep_cond=condition).sample)
    condition = embed(None, torch.zeros(3), embedding_dim=10)
    assert close(ours(*batch), theirs(*batch, timestep_cond=condition).sample)
    assert float((ours(*batch, guidance=scale) - ours(*batch)).abs().max()) > 1e-3


@torch.inference_mode()
@pytest.mark.parametrize("name", UNET_FAMILIES)
def test_every_family_computes_what_diffusers_computes(
    name: str, unet_pair: UNetPair, same_norms: Callable[..., None]
) -> None:
    ours, theirs = unet_pair(**UNET_FAMILIES[name])
    same_norms(theirs, ours, UNET)
    for height, width in ((8, 12), (9, 11)):
        latents, timesteps, _ = inputs(height=height, width=width)
        given = unet_conditioning(ours, 3)
        result = ours(latents, timesteps, given.context, pooled=given.pooled, time_ids=given.time_ids)
        assert close(result, theirs(latents, timesteps, **their_inputs(given)).sample)


@pytest.mark.parametrize(
    ("name", "message"),
    [("SDXL", "pass pooled and time_ids"), ("Stable Diffusion 2.1 unCLIP", "pass pooled alone")],
)
def test_what_is_embedded_with_the_timestep_must_be_given(name: str, message: str) -> None:
    unet = UNet(UNetConfig.from_dict({**UNET_BASE, **UNET_FAMILIES[name]}))
    with pytest.raises(ValueError, match=message):
        unet(*inputs())


@torch.inference_mode()
def test_pictures_of_a_batch_do_not_touch_each_other(copy_weights: Callable[..., None]) -> None:
    ours, _ = pair(copy_weights)
    latents, timestep, context = inputs()
    whole = ours(latents, timestep, context)
    alone = torch.cat([ours(latents[k : k + 1], timestep[k : k + 1], context[k : k + 1]) for k in range(3)])
    assert float((whole - alone).abs().max()) <= 1e-5


@torch.inference_mode()
@pytest.mark.parametrize("upcast", [True, False])
def test_upcast_attention_computes_in_fp32(upcast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = set()

    def recorded(q: Tensor, *rest: Any, **settings: Any) -> Tensor:
        seen.add(q.dtype)
        return original(q, *rest, **settings)

    original = F.scaled_dot_product_attention
    monkeypatch.setattr(attention.F, "scaled_dot_product_attention", recorded)
    unet = UNet(UNetConfig.from_dict({**BASE, "upcast_attention": upcast})).to(torch.bfloat16)
    assert unet(*inputs()).dtype == torch.bfloat16
    assert seen == {torch.float32 if upcast else torch.bfloat16}


@pytest.mark.parametrize(
    "settings",
    [
        *({**BASE, **settings} for settings in ({}, *CONFIGS.values())),
        *({**UNET_BASE, **settings} for settings in UNET_FAMILIES.values()),
    ],
)
def test_config_survives_a_round_trip_and_diffusers_builds_the_same_from_it(settings: dict[str, Any]) -> None:
    config = UNetConfig.from_dict(settings)
    assert UNetConfig.from_dict(config.to_dict()) == config
    with torch.device("meta"):
        theirs: Any = UNet2DConditionModel.from_config(config.to_dict())
    assert UNetConfig.from_dict(theirs.config) == config
    shapes = {name: tensor.shape for name, tensor in UNet(config).state_dict().items()}
    assert {UNET.theirs(name): shape for name, shape in shapes.items()} == {
        name: tensor.shape for name, tensor in theirs.state_dict().items()
    }


@pytest.mark.parametrize(
    ("size", "version", "shape"),
    [
        (32, "0.2.2", (64, 64)),
        (32, "0.8.1", (64, 64)),
        (32, "0.9.0.dev0", (32, 32)),
        (32, "0.42.1", (32, 32)),
        (96, "0.6.0", (96, 96)),
        (32, None, (32, 32)),
        ([96, 64], None, (96, 64)),
        ([96, 64], "0.8.0", (96, 64)),
        (None, None, (64, 64)),
    ],
)
def test_the_trained_size_is_read_as_diffusers_reads_it(size: Any, version: str | None, shape: tuple[int, int]) -> None:
    config = UNetConfig.from_dict({**BASE, "sample_size": size, "_diffusers_version": version})
    assert config.sample_shape == shape
    assert UNetConfig.from_dict(config.to_dict()).sample_shape == shape


def test_defaults_are_those_of_stable_diffusion_1() -> None:
    assert UNetConfig.from_dict({"cross_attention_dim": 768}) == UNetConfig()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"class_embed_type": "timestep"}, "class_embed_type = 'timestep' is not supported"),
        ({"addition_embed_type": "image"}, "addition_embed_type = 'image' is not supported"),
        ({"resnet_time_scale_shift": "scale_shift"}, "resnet_time_scale_shift = 'scale_shift' is not supported"),
        ({"num_attention_heads": 4}, "num_attention_heads is not supported"),
        ({"down_block_types": ("AttnDownBlock2D", "DownBlock2D")}, "block 'AttnDownBlock2D' is not supported"),
        ({"cross_attention_dim": [24, 32]}, "must be one number"),
        ({"attention_head_dim": 5}, "16 channels are not a multiple of 5 heads"),
        ({"layers_per_block": [1]}, "needs one entry for each of 2 levels"),
        ({"mid_block_type": "UNetMidBlock2DSimpleCrossAttn"}, "mid_block_type = 'UNetMidBlock2DSimpleCrossAttn'"),
        ({"transformer_layers_per_block": [[1], 1]}, "depth_up is needed too"),
        (
            {"transformer_layers_per_block": [[1, 2], 1], "reverse_transformer_layers_per_block": [1, 1]},
            r"depth \(1, 2\) of level 0 needs one entry for each of its 1 layers",
        ),
        (
            {"reverse_transformer_layers_per_block": [1, [1]]},
            r"depth_up \(1,\) of level 0 needs one entry for each of its 2",
        ),
        (
            {
                "addition_embed_type": "text_time",
                "class_embed_type": "projection",
                "projection_class_embeddings_input_dim": 8,
            },
            "embeds both pooled text with sizes and a vector",
        ),
    ],
)
def test_forms_that_are_not_implemented_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        UNetConfig.from_dict({**BASE, **settings})

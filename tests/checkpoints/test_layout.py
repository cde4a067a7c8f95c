"""Renaming is one for one, and the names are those of transformers and diffusers."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from genpipe.checkpoints.layout import TEXT_ENCODER, UNET, VAE, Layout
from genpipe.models import vae
from genpipe.models.text_encoder import TextEncoder, TextEncoderConfig
from genpipe.models.unet import UNet
from genpipe.models.unet_config import UNetConfig

UNET_CONFIG: dict[str, Any] = {
    "block_out_channels": (32, 64, 64),
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    "transformer_layers_per_block": (1, 2, 1),
    "cross_attention_dim": 16,
    "attention_head_dim": 4,
    "time_cond_proj_dim": 8,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 40,
}
VAE_CONFIG: dict[str, Any] = {
    "block_out_channels": (32, 64),
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
}
TEXT_CONFIG: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_attention_heads": 2,
    "projection_dim": 8,
}


def text_pair(reference: type[nn.Module]) -> tuple[nn.Module, nn.Module]:
    config = CLIPTextConfig(**TEXT_CONFIG, bos_token_id=62, eos_token_id=63)
    ours = TextEncoderConfig.from_dict({**config.to_dict(), "architectures": [reference.__name__]})
    return TextEncoder(ours), reference(config)


def unet_pair() -> tuple[nn.Module, nn.Module]:
    return UNet(UNetConfig.from_dict(UNET_CONFIG)), UNet2DConditionModel(**UNET_CONFIG)


def vae_pair() -> tuple[nn.Module, nn.Module]:
    return vae.VAE(vae.VAEConfig.from_dict(VAE_CONFIG)), AutoencoderKL(**VAE_CONFIG)


PAIRS: dict[str, tuple[Layout, Callable[[], tuple[nn.Module, nn.Module]]]] = {
    "text encoder": (TEXT_ENCODER, lambda: text_pair(CLIPTextModel)),
    "text encoder with projection": (TEXT_ENCODER, lambda: text_pair(CLIPTextModelWithProjection)),
    "U-Net": (UNET, unet_pair),
    "VAE": (VAE, vae_pair),
}


def shapes(module: nn.Module) -> dict[str, torch.Size]:
    return {key: tensor.shape for key, tensor in module.state_dict().items()}


@pytest.mark.parametrize("name", PAIRS)
def test_every_tensor_of_the_reference_has_our_name_and_shape(name: str) -> None:
    layout, pair = PAIRS[name]
    with torch.device("meta"):
        ours, theirs = pair()
    renamed = {layout.ours(key): shape for key, shape in shapes(theirs).items()}
    assert renamed == shapes(ours)


@pytest.mark.parametrize("name", PAIRS)
def test_renaming_there_and_back_is_the_identity(name: str) -> None:
    layout, pair = PAIRS[name]
    with torch.device("meta"):
        ours, theirs = pair()
    assert [layout.ours(layout.theirs(key)) for key in ours.state_dict()] == list(ours.state_dict())
    prefix = "text_model." if name == "text encoder" else ""  # transformers 5 names its CLIPTextModel without
    assert {layout.theirs(key) for key in ours.state_dict()} == {prefix + key for key in theirs.state_dict()}


@pytest.mark.parametrize("layout", [TEXT_ENCODER, UNET, VAE], ids=lambda layout: layout.folder)
def test_no_two_rows_of_a_table_collide(layout: Layout) -> None:
    ours, theirs = zip(*layout.names, strict=True)
    assert len(set(ours)) == len(set(theirs)) == len(layout.names)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("encoder.mid_block.attentions.0.query.weight", "encoder.middle.attentions.0.attention.query.weight"),
        ("encoder.mid_block.attentions.0.key.bias", "encoder.middle.attentions.0.attention.key.bias"),
        ("decoder.mid_block.attentions.0.value.weight", "decoder.middle.attentions.0.attention.value.weight"),
        ("decoder.mid_block.attentions.0.proj_attn.bias", "decoder.middle.attentions.0.attention.out.bias"),
    ],
)
def test_legacy_attention_names_of_the_autoencoder(old: str, new: str) -> None:
    assert VAE.ours(old) == new and VAE.is_alias(old)
    assert not VAE.is_alias(VAE.theirs(new))


@pytest.mark.parametrize(
    ("layout", "key"),
    [
        (UNET, "down_blocks.0.downsamplers.1.conv.weight"),  # there is only ever number 0
        (UNET, "down_blocks.0.attentions.0.transformer_blocks.0.ff.net.1.weight"),
        (UNET, "down_blocks.x.resnets.0.norm1.weight"),
        (UNET, "down_blocks.0.resnets.0.norm1.weights"),
        (UNET, "down_blocks.0.resnets.0.norm1"),
        (UNET, "conv_in.weight.weight"),
        (UNET, ""),
        (VAE, "encoder.mid_block.attentions.0.to_out.1.weight"),
        (TEXT_ENCODER, "text_model.embeddings.token_embedding.bias"),
        (TEXT_ENCODER, "vision_model.encoder.layers.0.mlp.fc1.weight"),
    ],
)
def test_names_outside_the_table_are_not_renamed(layout: Layout, key: str) -> None:
    assert layout.ours(key) is None


def test_position_ids_are_the_one_harmless_extra() -> None:
    assert UNET.harmless == VAE.harmless == ()
    assert TEXT_ENCODER.harmless == ("text_model.embeddings.position_ids", "embeddings.position_ids")
    with pytest.raises(KeyError, match="no foreign name for position_ids"):
        TEXT_ENCODER.theirs("position_ids")

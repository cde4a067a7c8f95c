"""Tiny checkpoints of random weights in the form of each family, with CLIP's tokenizer, as single files need it."""

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from genpipe.checkpoints import Checkpoint
from genpipe.checkpoints.clip_tokenizer import clip_tokenizer
from genpipe.checkpoints.families import FAMILIES, Family
from genpipe.models.text_encoder import TextEncoder, TextEncoderConfig
from genpipe.models.unet import UNet
from genpipe.models.unet_config import UNetConfig
from genpipe.models.vae import VAE, VAEConfig

SD1_TEXT, SD2_TEXT = "cond_stage_model.transformer.", "cond_stage_model.model."
FIRST_TEXT, SECOND_TEXT = "conditioner.embedders.0.transformer.", "conditioner.embedders.1.model."
UNET = "model.diffusion_model."

# A change of a file's tensors.
Change = Callable[[dict[str, Tensor]], dict[str, Tensor]]
NAMES = {family.name: family for family in FAMILIES}
# Stable Diffusion 2 is told by its width; diffusers looks for the tenth layer of the second encoder of XL.
WIDTHS = {"sd1": (64,), "sd2": (1024,), "sdxl": (64, 128), "sdxl-refiner": (128,)}
LAYERS = {"sd1": 2, "sd2": 2, "sdxl": 10, "sdxl-refiner": 10}


def text_encoder(family: Family, index: int) -> TextEncoder:
    form, width = family.texts[index], WIDTHS[family.name][index]
    return TextEncoder(
        TextEncoderConfig(
            hidden_size=width,
            intermediate_size=96,
            num_hidden_layers=LAYERS[family.name],
            num_attention_heads=width // 64,
            hidden_act=form.activation,
            projection_dim=width if form.projected else None,
        )
    )


def unet_config(family: Family) -> UNetConfig:
    context = sum(WIDTHS[family.name])
    pooled = WIDTHS[family.name][-1]
    xl = family.added_numbers > 0
    deepest = family.name == "sdxl"
    return UNetConfig(
        sample_size=family.sample_size,
        channels=(64, 128, 128),
        attention=(not xl, True, deepest),
        attention_up=(not xl, True, deepest),
        layers=(2, 2, 2),
        depth=(1, 2 if xl else 1, 3 if xl else 1),
        heads=(8,) * 3 if family.heads else (1, 2, 2),
        only_cross=(False,) * 3,
        context_channels=context,
        linear_projection=family.name != "sd1",
        added_time_channels=256 if xl else None,
        added_channels=pooled + 256 * family.added_numbers if xl else None,
    )


def tiny(family: Family) -> Checkpoint:
    """A checkpoint of random weights in the form of a family, with CLIP's tokenizer; made once. Do not change it."""
    return _tiny(family.name)


@cache
def _tiny(name: str) -> Checkpoint:
    family = NAMES[name]
    torch.manual_seed(0)
    # In fp16, as these hold nearly all the weights.
    encoders = tuple(text_encoder(family, index).half() for index in range(len(family.texts)))
    size = 8 * family.sample_size
    return Checkpoint(
        text_encoders=encoders,
        tokenizers=tuple(clip_tokenizer(form.pad) for form in family.texts),
        unet=UNet(unet_config(family)),
        vae=VAE(VAEConfig(channels=(32, 64), layers=1, scaling_factor=family.scaling_factor, sample_size=size)),
        scheduler_config=dict(family.scheduler_config),
        defaults={},
        source="tiny",
        family=family,
        zero_empty_negative=family.name == "sdxl",
    )


def marked(**markers: Tensor) -> Change:
    """A change that adds tensors."""
    return lambda state: {**state, **markers}


def only(*prefixes: str, strip: str = "") -> Change:
    """A change that keeps the tensors of these prefixes, and takes `strip` off."""
    return lambda state: {key.removeprefix(strip): tensor for key, tensor in state.items() if key.startswith(prefixes)}

"""Putting the weights of a reference network into ours, and comparing what weights do not show."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import nn

from genpipe.checkpoints.layout import UNET, Layout
from genpipe.models.conditioning import Conditioning
from genpipe.models.cpu.packed import can_pack
from genpipe.models.unet import UNet
from genpipe.models.unet_config import UNetConfig

# For tests of forms that the processor, or this build of torch, may lack.
packs_fp32 = pytest.mark.skipif(not can_pack(torch.float32), reason="this torch lacks oneDNN or its private operators")
packs_bf16 = pytest.mark.skipif(not can_pack(torch.bfloat16), reason="oneDNN does not take bf16 on this processor")
BOTH = [pytest.param(torch.float32, marks=packs_fp32), pytest.param(torch.bfloat16, marks=packs_bf16)]

Copy = Callable[[nn.Module, nn.Module, Layout], None]
UNetPair = Callable[..., tuple[UNet, Any]]

# A U-Net of Stable Diffusion 1 with three narrow levels, as diffusers spells it.
UNET_BASE: dict[str, Any] = {
    "block_out_channels": (16, 32, 48),
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    "layers_per_block": 2,
    "attention_head_dim": 4,
    "cross_attention_dim": 24,
    "norm_num_groups": 8,
    "sample_size": 8,
}
# What SDXL's has in place of that: pooled text of 20 and six sizes of 6.
SDXL_UNET: dict[str, Any] = {
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 3),
    "attention_head_dim": (2, 4, 6),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 6,
    "projection_class_embeddings_input_dim": 20 + 6 * 6,
}
# The families whose U-Nets differ in shape, over `UNET_BASE`.
UNET_FAMILIES: dict[str, dict[str, Any]] = {
    "Stable Diffusion 1": {},
    "SDXL": SDXL_UNET,
    "SDXL refiner": {
        **SDXL_UNET,
        "block_out_channels": (16, 32, 48, 48),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": 2,
        "attention_head_dim": (2, 4, 6, 6),
        "projection_class_embeddings_input_dim": 20 + 5 * 6,
    },
    "SSD-1B": {
        **SDXL_UNET,
        "mid_block_type": "UNetMidBlock2D",
        "transformer_layers_per_block": [1, 2, 2],
        "reverse_transformer_layers_per_block": [[2, 2, 3], [2, 1, 1], 1],
    },
    "Segmind-Vega": {
        **SDXL_UNET,
        "mid_block_type": "UNetMidBlock2D",
        "transformer_layers_per_block": (1, 1, 2),
    },
    "KOALA 700M": {**SDXL_UNET, "layers_per_block": 1, "mid_block_type": None},
    "KOALA 1B": {**SDXL_UNET, "layers_per_block": 1, "transformer_layers_per_block": (0, 2, 3)},
    "BK-SDM tiny": {
        "down_block_types": ("CrossAttnDownBlock2D",) * 3,
        "up_block_types": ("CrossAttnUpBlock2D",) * 3,
        "layers_per_block": 1,
        "mid_block_type": None,
    },
    "uneven on the way down too": {
        **SDXL_UNET,
        "transformer_layers_per_block": [1, [1, 2], [3, 0]],
        "reverse_transformer_layers_per_block": [[1, 0, 2], [2, 1, 1], 1],
    },
    "Stable Diffusion 2.1 unCLIP": {
        "attention_head_dim": (2, 4, 6),
        "use_linear_projection": True,
        "class_embed_type": "projection",
        "projection_class_embeddings_input_dim": 20,
    },
}


@pytest.fixture
def copy_weights() -> Copy:
    """`copy(theirs, ours, layout)`, after moving every parameter of `theirs` off its start: norms at one, biases at zero."""

    def copy(theirs: nn.Module, ours: nn.Module, layout: Layout) -> None:
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in theirs.parameters():
                scale = 0.3 if parameter.ndim == 1 else float(parameter.std())
                parameter += scale * torch.randn(parameter.shape, generator=generator)
        renamed = {
            layout.ours(key): tensor for key, tensor in theirs.state_dict().items() if key not in layout.harmless
        }
        ours.load_state_dict({str(key): tensor for key, tensor in renamed.items()}, strict=True)
        ours.eval()
        theirs.eval()

    return copy


@pytest.fixture
def unet_pair(copy_weights: Copy) -> UNetPair:
    """`unet_pair(**settings)`: our U-Net of `UNET_BASE` and these settings, and diffusers' of the same weights."""

    def pair(**settings: Any) -> tuple[UNet, Any]:
        torch.manual_seed(0)
        theirs: Any = UNet2DConditionModel(**{**UNET_BASE, **settings})
        ours = UNet(UNetConfig.from_dict(theirs.config))
        copy_weights(theirs, ours, UNET)
        return ours, theirs

    return pair


def unet_conditioning(unet: UNet, rows: int, device: torch.device | None = None) -> Conditioning:
    """Random rows, all different, of what a U-Net takes, for 7 tokens of 24; on the CPU, if no device is named."""
    generator, config = torch.Generator().manual_seed(3), unet.config
    context = torch.randn(rows, 7, 24, generator=generator).to(device)
    pooled = torch.randn(rows, 20, generator=generator).to(device)
    if config.added_channels is not None:
        numbers = (config.added_channels - 20) // 6
        time_ids = torch.randint(0, 128, (rows, numbers), generator=generator).float().to(device)
        return Conditioning(context, pooled=pooled, time_ids=time_ids)
    return Conditioning(context, pooled=None if config.class_channels is None else pooled)


def their_inputs(conditioning: Conditioning) -> dict[str, Any]:
    """What diffusers' U-Net takes for it, beside latents and timestep."""
    given: dict[str, Any] = {"encoder_hidden_states": conditioning.context}
    if conditioning.time_ids is not None:
        given["added_cond_kwargs"] = {"text_embeds": conditioning.pooled, "time_ids": conditioning.time_ids}
    elif conditioning.pooled is not None:
        given["class_labels"] = conditioning.pooled
    return given


@pytest.fixture
def same_norms() -> Callable[[nn.Module, nn.Module, Layout], None]:
    """`same_norms(theirs, ours, layout)`: a wrong epsilon moves the output of a random network too little to be seen."""

    def norms(network: nn.Module, name_of: Callable[[str], str | None]) -> dict[str | None, tuple[float, int | None]]:
        return {
            name_of(f"{name}.weight"): (module.eps, getattr(module, "num_groups", None))
            for name, module in network.named_modules()
            if isinstance(module, nn.GroupNorm | nn.LayerNorm)
        }

    def check(theirs: nn.Module, ours: nn.Module, layout: Layout) -> None:
        assert norms(ours, str) == norms(theirs, layout.ours)

    return check

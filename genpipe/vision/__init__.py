"""The vision companion: the networks that look at images, and the conv blocks that all networks here are built from.

    from genpipe.vision import ResidualBlock, conv3x3

The blocks are those of `genpipe.blocks`, imported when the first is asked for.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from genpipe.blocks import (
        Downsample,
        PhaseUpsample,
        ResidualBlock,
        Upsample,
        conv1x1,
        conv3x3,
        conv_output_size,
        conv_unit,
        pooling_head,
        zero_init,
    )

__all__ = [
    "Downsample",
    "PhaseUpsample",
    "ResidualBlock",
    "Upsample",
    "conv1x1",
    "conv3x3",
    "conv_output_size",
    "conv_unit",
    "pooling_head",
    "zero_init",
]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(importlib.import_module("genpipe.blocks"), name)
    raise AttributeError(f"module 'genpipe.vision' has no attribute {name!r}")

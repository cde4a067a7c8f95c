"""Networks whose images have no edges: what leaves on one side comes in on the other, so that copies of the image join.

A convolution sees the other side of the image beyond an edge, and not zeros. Norms and attention know no place, so nothing
else changes.
"""

import copy
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from genpipe.blocks import Downsample, Network, ResidualBlock, is_adding

# Convolutions of the networks that are not in a `ResidualBlock`, by their names.
_CONVOLUTIONS = ("conv_in", "conv_out")


def circular(network: Network) -> Network:
    """Copy a U-Net or an autoencoder, plain or prepared, with circular convolutions. The copy has the same weights in memory.

    Each convolution computes what `torch.nn.Conv2d` does with padding_mode="circular". The sides of all maps have to be even
    wherever the network halves them.
    """
    return _copied(network)


def _copied(module: Any) -> Any:
    if isinstance(module, ResidualBlock):
        return _block(module)
    children = dict(module.named_children())
    if not children:
        return module
    other = copy.copy(module)
    other._modules = {}
    for name, child in children.items():
        if name == "resample":
            child = _CircularDownsample(child) if isinstance(child, Downsample) else _CircularUpsample(child)
        elif name in _CONVOLUTIONS:
            child = _CircularConv(child)
        else:
            child = _copied(child)
        other._modules[name] = child
    return other


def _block(block: ResidualBlock) -> ResidualBlock:
    """A plain block, whose two convolutions are called one by one, of the layers of any block."""
    other = ResidualBlock.__new__(ResidualBlock)
    nn.Module.__init__(other)
    other.embedding = block.embedding
    for name, child in block.named_children():
        other.register_module(name, _CircularConv(child) if name in ("conv1", "conv2") else child)
    return other


def _wrapped(x: Tensor, pixels: int) -> Tensor:
    """Surround a map (B, C, H, W) by so many pixels of its other sides."""
    return F.pad(x, (pixels,) * 4, mode="circular")


class _CircularConv(nn.Module):
    """A 3×3 convolution of stride 1 that pads with zeros: on a map that is one pixel wider on each side, whose rim is cut off."""

    def __init__(self, conv: nn.Module) -> None:
        super().__init__()
        self.conv = conv
        self.adds = is_adding(conv)

    @property
    def weight(self) -> Tensor:
        """As the convolution's: networks ask for its dtype."""
        return self.conv.weight  # pyright: ignore[reportReturnType] - every form of a convolution has one

    def forward(self, x: Tensor, *, shift: Tensor | None = None, plus: Tensor | None = None) -> Tensor:
        """Map (B, C_in, H, W) to (B, C_out, H, W); see `AddingLayer`."""
        wide = _wrapped(x, 1)
        if not self.adds:
            return self.conv(wide)[..., 1:-1, 1:-1]
        plus = None if plus is None else F.pad(plus, (1, 1, 1, 1))
        return self.conv(wide, shift=shift, plus=plus)[..., 1:-1, 1:-1]


class _CircularDownsample(nn.Module):
    """A `Downsample`, whose convolution starts at each second pixel, or at the one before it."""

    def __init__(self, downsample: Downsample) -> None:
        super().__init__()
        self.conv, self._asymmetric = downsample.conv, downsample.asymmetric

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C, H/2, W/2)."""
        if self._asymmetric:  # it pads nothing itself
            return self.conv(F.pad(x, (0, 1, 0, 1), mode="circular"))
        return self.conv(_wrapped(x, 2))[..., 1:-1, 1:-1]


class _CircularUpsample(nn.Module):
    """An `Upsample` in any form: on a map that is one pixel wider on each side, of whose result two are cut off."""

    def __init__(self, upsample: nn.Module) -> None:
        super().__init__()
        self.upsample = upsample

    def forward(self, x: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """Map (B, C, H, W) to (B, C, 2H, 2W), which is what `size` has to be."""
        if size is not None and size != (2 * x.shape[-2], 2 * x.shape[-1]):
            raise ValueError(
                f"a map of {x.shape[-2]}x{x.shape[-1]} has no half of {size[0]}x{size[1]} to be circular over"
            )
        return self.upsample(_wrapped(x, 1))[..., 2:-2, 2:-2]

"""Which class each pixel belongs to: the network of "U-Net: Convolutional Networks for Biomedical Image Segmentation"
(Ronneberger, Fischer and Brox, 2015).

As everyone has built it since, convolutions are padded, so that the map is as large as the image, and batch norms
stand between them and their ReLUs.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from genpipe.blocks import conv1x1, conv_unit
from genpipe.vision.resnet import ResNetEncoder


@dataclass(frozen=True)
class SegmentationConfig:
    """What a `SegmentationUNet` is made of. The defaults are the paper's: 31 million parameters.

    Args:
        classes: of a pixel, 2 or more, the background among them.
        width: channels of the finest level; each level down has twice as many.
        levels: of the contracting path, 2 or more; a ResNet always has five.
        encoder: depth of a ResNet that takes the contracting path's place, 18, 34, 50, 101 or 152; None is the paper's.

    Raises:
        ValueError: classes, width or levels out of range.
    """

    classes: int
    width: int = 64
    levels: int = 5
    encoder: int | None = None

    def __post_init__(self) -> None:
        for name, value, least in (("classes", self.classes, 2), ("width", self.width, 1), ("levels", self.levels, 2)):
            if value < least:
                raise ValueError(f"{name} {value} of a segmentation is too small: use {least} or more")


class SegmentationUNet(nn.Module):
    """A contracting path, whose maps of every level the expanding path takes up again on its way back.

    With a ResNet as `encoder`, whose first map is half as large as the image, the logits are enlarged at the end.
    """

    def __init__(self, config: SegmentationConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = (
            ContractingPath(config.width, config.levels)
            if config.encoder is None
            else ResNetEncoder(config.encoder, width=config.width)
        )
        finest, *coarser = self.encoder.channels
        skips = [finest, *coarser[:-1]]
        self.up = nn.ModuleList(
            UpBlock(below, skip) for below, skip in zip(reversed(coarser), reversed(skips), strict=True)
        )
        self.head = conv1x1(finest, config.classes)

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) of any size -> logits (B, classes, H, W)."""
        *skips, x = self.encoder(pixels)
        for up, skip in zip(self.up, reversed(skips), strict=True):
            x = up(x, skip)
        logits = self.head(x)
        if logits.shape[-2:] != pixels.shape[-2:]:
            logits = F.interpolate(logits, size=pixels.shape[-2:], mode="bilinear", align_corners=False)
        return logits


class ContractingPath(nn.Module):
    """Two convolutions per level, halved in size by max pooling and doubled in channels from one to the next.

    Attributes:
        channels: of the maps that `forward` returns.
    """

    def __init__(self, width: int, levels: int) -> None:
        super().__init__()
        self.channels = tuple(width * 2**level for level in range(levels))
        self.levels = nn.ModuleList(
            two_convs(before, after) for before, after in zip((3, *self.channels), self.channels, strict=False)
        )
        # Rounded up, as a ResNet's strides are, so that the way up only has to cut.
        self.pool = nn.MaxPool2d(2, ceil_mode=True)

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """(B, 3, H, W) -> the maps of every level, at 1, 1/2, 1/4, …"""
        maps: list[Tensor] = []
        for level in self.levels:
            maps.append(level(self.pool(maps[-1]) if maps else pixels))
        return tuple(maps)


class UpBlock(nn.Module):
    """One level of the expanding path: a 2×2 up-convolution, the skip beside it, two convolutions."""

    def __init__(self, in_channels: int, skip_channels: int) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(in_channels, skip_channels, 2, stride=2)
        self.convs = two_convs(2 * skip_channels, skip_channels)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """(B, C_in, ⌈H/2⌉, ⌈W/2⌉) and the skip (B, C, H, W) -> (B, C, H, W)."""
        x = self.up(x)[..., : skip.shape[-2], : skip.shape[-1]]
        return self.convs(torch.cat([skip, x], dim=1))


def two_convs(in_channels: int, out_channels: int) -> nn.Sequential:
    """Build two 3×3 units of convolution, batch norm and ReLU."""
    return nn.Sequential(conv_unit(in_channels, out_channels), conv_unit(out_channels, out_channels))

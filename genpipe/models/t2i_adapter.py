"""T2I-Adapter ("T2I-Adapter: Learning Adapters to Dig out More Controllable Ability", arXiv 2302.08453).

A small network of convolutions that makes of an image one map per level of a U-Net, once for all steps. Each is added to
what its level gives on the way down.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from genpipe.blocks import conv1x1, conv3x3

Form = Literal["full_adapter", "full_adapter_xl", "light_adapter"]
FORMS: tuple[Form, ...] = ("full_adapter", "full_adapter_xl", "light_adapter")


@dataclass(frozen=True)
class T2IAdapterConfig:
    """Shape of a T2I-Adapter.

    Attributes:
        image_channels: 3, or 1 for one that is shown grey images.
        channels: width of each of the maps but, in a light one, of the last, which is as wide as the one before.
        residuals: residual blocks per map.
        factor: pixels per side that become one before the first convolution.
        form: the full one of Stable Diffusion 1.x, that of XL, which begins with the second level's size, or the light one.
    """

    image_channels: int = 3
    channels: tuple[int, ...] = (320, 640, 1280, 1280)
    residuals: int = 2
    factor: int = 8
    form: Form = "full_adapter"

    @property
    def maps(self) -> tuple[tuple[int, int], ...]:
        """Of each map its width, and how often it is halved in height and width after the first convolution."""
        if self.form == "full_adapter_xl":
            return tuple((width, int(index >= 2)) for index, width in enumerate(self.channels))
        channels = (*self.channels, self.channels[-1]) if self.form == "light_adapter" else self.channels
        return tuple((width, index) for index, width in enumerate(channels))

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> Self:
        """Read the `config.json` of a diffusers `T2IAdapter`.

        Raises:
            ValueError: the file asks for another form.
        """
        form = config.get("adapter_type", FORMS[0])
        if form not in FORMS:
            raise ValueError(f"T2I-Adapter config: adapter_type = {form!r} is not supported (only {', '.join(FORMS)})")
        return cls(
            image_channels=config.get("in_channels", 3),
            channels=tuple(config.get("channels", cls.channels)),
            residuals=config.get("num_res_blocks", 2),
            factor=config.get("downscale_factor", 8),
            form=form,
        )


class AdapterResidual(nn.Module):
    """Two convolutions with a ReLU between them, and a residual."""

    def __init__(self, channels: int, *, light: bool) -> None:
        super().__init__()
        self.conv1 = conv3x3(channels, channels)
        self.conv2 = conv3x3(channels, channels) if light else conv1x1(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C, H, W)."""
        return x + self.conv2(F.relu(self.conv1(x)))


class AdapterLevel(nn.Module):
    """The residual blocks of one map; a light one's are four times as narrow as the map."""

    def __init__(self, before: int, after: int, residuals: int, *, halves: bool, light: bool) -> None:
        super().__init__()
        self.halves = halves
        inner = after // 4 if light else after
        self.project_in = conv1x1(before, inner) if light or before != after else None
        self.residuals = nn.ModuleList(AdapterResidual(inner, light=light) for _ in range(residuals))
        self.project_out = conv1x1(inner, after) if light else None

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C_in, H, W) to (B, C_out, H, W), or to ⌈H / 2⌉ and ⌈W / 2⌉ where it halves."""
        if self.halves:
            x = F.avg_pool2d(x, 2, ceil_mode=True)
        if self.project_in is not None:
            x = self.project_in(x)
        for residual in self.residuals:
            x = residual(x)
        return x if self.project_out is None else self.project_out(x)


class T2IAdapter(nn.Module):
    """What an image adds to the levels of a U-Net on the way down."""

    def __init__(self, config: T2IAdapterConfig) -> None:
        super().__init__()
        self.config = config
        light, shown = config.form == "light_adapter", config.image_channels * config.factor**2
        self.conv_in = None if light else conv3x3(shown, config.channels[0])
        self.levels = nn.ModuleList()
        before, halved = (shown if light else config.channels[0]), 0
        for width, halvings in config.maps:
            level = AdapterLevel(before, width, config.residuals, halves=halvings > halved, light=light)
            self.levels.append(level)
            before, halved = width, halvings

    def forward(self, image: Tensor) -> list[Tensor]:
        """Map an image (B, image_channels, H, W) in [0, 1], H and W multiples of `factor`, to the maps of `config.maps`."""
        x = F.pixel_unshuffle(image.to(self._dtype), self.config.factor)
        x = x if self.conv_in is None else self.conv_in(x)
        maps = []
        for level in cast(Iterable[AdapterLevel], self.levels):
            x = level(x)
            maps.append(x)
        return maps

    @property
    def _dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

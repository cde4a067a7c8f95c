"""ControlNet ("Adding Conditional Control to Text-to-Image Diffusion Models", arXiv 2302.05543).

A second way down of a U-Net, which sees an image beside the latents. What it makes of each layer goes through a convolution
that training begins at zero, and is added to what the U-Net's own layer hands on.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Self, cast

import torch
from torch import Tensor, nn

from genpipe.blocks import conv1x1, conv3x3, silu, zero_init
from genpipe.models.attention import KeysValues, repeat_rows
from genpipe.models.contracting import ContractingPath, Shifts
from genpipe.models.unet_config import UNetConfig

# Keys of a diffusers config.json that change the network, with the only values this one implements.
IMPLEMENTED: dict[str, tuple[Any, ...]] = {
    "controlnet_conditioning_channel_order": ("rgb", "bgr"),
    "conditioning_channels": (3,),
}


@dataclass(frozen=True)
class ControlNetConfig(UNetConfig):
    """Shape of a ControlNet: that of the U-Net's way down, and what sees the image.

    Attributes:
        image_channels: widths of the layers that bring the image to the size of the latents; each but the first halves it.
        bgr: whether the image's channels come as blue, green, red.
        pooled: whether only the mean of what it makes of each layer is added (`global_pool_conditions`: shuffle).
    """

    image_channels: tuple[int, ...] = (16, 32, 96, 256)
    bgr: bool = False
    pooled: bool = False

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> Self:
        """Read the `config.json` of a diffusers `ControlNetModel`.

        Raises:
            ValueError: the file asks for a form of the network that is not implemented; names the key and the value.
        """
        for key, allowed in IMPLEMENTED.items():
            if config.get(key, allowed[0]) not in allowed:
                raise ValueError(f"ControlNet config: {key} = {config[key]!r} is not supported (only {allowed[0]!r})")
        down = config.get("down_block_types", ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"])
        # It has no way up; a U-Net's config says how that is.
        up = [kind.replace("Down", "Up") for kind in reversed(down)]
        return replace(
            cast(Self, super().from_dict({**config, "up_block_types": up})),
            image_channels=tuple(config.get("conditioning_embedding_out_channels") or cls.image_channels),
            bgr=config.get("controlnet_conditioning_channel_order", "rgb") == "bgr",
            pooled=bool(config.get("global_pool_conditions", False)),
        )

    def to_dict(self) -> dict[str, Any]:
        """The `config.json` that diffusers' `ControlNetModel` reads."""
        config = super().to_dict()
        # What it has not: a way up, a size of its own, an input for the guidance scale.
        for name in ("up_block_types", "reverse_transformer_layers_per_block", "out_channels", "sample_size"):
            del config[name]
        del config["time_cond_proj_dim"]
        return {
            **config,
            "_class_name": "ControlNetModel",
            "conditioning_embedding_out_channels": list(self.image_channels),
            "controlnet_conditioning_channel_order": "bgr" if self.bgr else "rgb",
            "global_pool_conditions": self.pooled,
        }


class ImageEmbedding(nn.Module):
    """Brings an image to the size and the width of what the first layer makes of the latents."""

    def __init__(self, channels: tuple[int, ...], out_channels: int) -> None:
        super().__init__()
        self.conv_in = conv3x3(3, channels[0])
        self.convs = nn.ModuleList()
        for before, after in pairwise(channels):
            self.convs += [conv3x3(before, before), conv3x3(before, after, stride=2)]
        self.conv_out = zero_init(conv3x3(channels[-1], out_channels))

    def forward(self, image: Tensor) -> Tensor:
        """Map (B, 3, H, W) to (B, C, H / 8, W / 8), or as its channels say."""
        h = silu(self.conv_in(image))
        for conv in self.convs:
            h = silu(conv(h))
        return self.conv_out(h)


class ControlNet(ContractingPath):
    """What an image adds to the skips and the bottom of a U-Net."""

    def __init__(self, config: ControlNetConfig) -> None:
        super().__init__(config)
        self.bgr, self.pooled = config.bgr, config.pooled
        self.image_embedding = ImageEmbedding(config.image_channels, config.channels[0])
        self.zero_skips = nn.ModuleList(zero_init(conv1x1(width, width)) for width in self.skip_channels)
        self.zero_bottom = zero_init(conv1x1(config.channels[-1], config.channels[-1]))

    def forward(
        self,
        latents: Tensor,
        timestep: Tensor,
        context: Tensor,
        image: Tensor,
        *,
        pooled: Tensor | None = None,
        time_ids: Tensor | None = None,
    ) -> list[Tensor]:
        """One evaluation of the network; the image is (B, 3, H, W) in [0, 1], the rest as in `UNet.forward`.

        Returns:
            What is to be added to each skip, and last to what the bottom gives.
        """
        shifts = self.shifts(self.embed(timestep, pooled=pooled, time_ids=time_ids))
        return self.residuals(latents, self.embed_image(image), shifts, self.keys_values(context))

    def embed_image(self, image: Tensor) -> Tensor:
        """Map an image (B, 3, H, W) in [0, 1] to what is added to the first layer's output, (B, C, h, w)."""
        image = image.flip(1) if self.bgr else image
        return self.image_embedding(image.to(self._dtype))

    def residuals(self, latents: Tensor, image: Tensor, shifts: Shifts, prompts: KeysValues) -> list[Tensor]:
        """Evaluate the network, given what does not depend on the latents; `image` is what `embed_image` gives.

        Returns:
            As `forward`; each has a row per image, or k · B for k prompts per image where it depends on them.
        """
        first = self.conv_in(latents.to(self._dtype))
        h, skips = self.contract(first + repeat_rows(image, len(first)), shifts, prompts)
        zeros = cast(Iterable[nn.Module], self.zero_skips)
        found = [zero(skip) for zero, skip in zip(zeros, skips, strict=True)] + [self.zero_bottom(h)]
        return [each.mean(dim=(2, 3), keepdim=True) for each in found] if self.pooled else found


def guess_scales(count: int) -> list[float]:
    """How much each of a ControlNet's residuals counts in guess mode, the bottom's most: 0.1 … 1, each the same times more."""
    return torch.logspace(-1, 0, count).tolist()

"""The tiny autoencoder of TAESD (`AutoencoderTiny` in diffusers): a rough image in a fraction of the time."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from genpipe.blocks import conv1x1, conv3x3

# Keys of a diffusers config.json that change the network, with the only value this one implements.
IMPLEMENTED = {"act_fn": "relu", "upsample_fn": "nearest", "upsampling_scaling_factor": 2, "scaling_factor": 1.0}


@dataclass(frozen=True)
class TinyVAEConfig:
    """Shape of the tiny autoencoder; the tuples have one entry per level, in the order of the layers."""

    in_channels: int = 3
    out_channels: int = 3
    latent_channels: int = 4
    encoder_channels: tuple[int, ...] = (64, 64, 64, 64)
    encoder_blocks: tuple[int, ...] = (1, 3, 3, 3)
    decoder_channels: tuple[int, ...] = (64, 64, 64, 64)
    decoder_blocks: tuple[int, ...] = (3, 3, 3, 1)

    @property
    def factor(self) -> int:
        """Pixels per latent pixel, in each direction."""
        return 2 ** (len(self.decoder_channels) - 1)

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> "TinyVAEConfig":
        """Read the `config.json` of a diffusers `AutoencoderTiny`.

        Raises:
            ValueError: the file describes another network, or a form that is not implemented.
        """
        if config.get("_class_name", "AutoencoderTiny") != "AutoencoderTiny":
            raise ValueError(f"{config['_class_name']} is not a tiny autoencoder (only AutoencoderTiny is)")
        for key, wanted in IMPLEMENTED.items():
            if config.get(key, wanted) != wanted:
                raise ValueError(f"tiny VAE config: {key} = {config[key]!r} is not supported (only {wanted!r})")
        names = {
            "encoder_channels": "encoder_block_out_channels",
            "encoder_blocks": "num_encoder_blocks",
            "decoder_channels": "decoder_block_out_channels",
            "decoder_blocks": "num_decoder_blocks",
        }
        known: dict[str, Any] = {ours: tuple(config[theirs]) for ours, theirs in names.items() if theirs in config}
        known |= {key: config[key] for key in ("in_channels", "out_channels", "latent_channels") if key in config}
        return cls(**known)


class TinyBlock(nn.Module):
    """Three 3×3 convolutions with ReLU between, and a shortcut."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        widths = (in_channels, out_channels, out_channels)
        convs = [conv3x3(width, out_channels) for width in widths]
        self.conv = nn.Sequential(convs[0], nn.ReLU(), convs[1], nn.ReLU(), convs[2])
        self.skip = conv1x1(in_channels, out_channels, bias=False) if in_channels != out_channels else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C_in, H, W) to (B, C_out, H, W)."""
        return torch.relu(self.conv(x) + self.skip(x))


class TinyHalf(nn.Module):
    """The encoder or the decoder: plain layers in a row."""

    def __init__(self, layers: list[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C_in, H, W) to (B, C_out, H', W')."""
        return self.layers(x)


class TinyVAE(nn.Module):
    """The tiny autoencoder. Latents are scaled as the denoiser's, pixels are in [-1, 1]."""

    def __init__(self, config: TinyVAEConfig) -> None:
        super().__init__()
        self.config = config
        layers: list[nn.Module] = []
        for level, (channels, blocks) in enumerate(zip(config.encoder_channels, config.encoder_blocks, strict=True)):
            first = level == 0
            layers.append(
                conv3x3(config.in_channels if first else channels, channels, stride=1 if first else 2, bias=first)
            )
            layers += [TinyBlock(channels, channels) for _ in range(blocks)]
        self.encoder = TinyHalf([*layers, conv3x3(config.encoder_channels[-1], config.latent_channels)])

        layers = [conv3x3(config.latent_channels, config.decoder_channels[0]), nn.ReLU()]
        last = len(config.decoder_channels) - 1
        for level, (channels, blocks) in enumerate(zip(config.decoder_channels, config.decoder_blocks, strict=True)):
            layers += [TinyBlock(channels, channels) for _ in range(blocks)]
            if level != last:
                layers.append(nn.Upsample(scale_factor=2.0, mode="nearest"))
            layers.append(conv3x3(channels, config.out_channels if level == last else channels, bias=level == last))
        self.decoder = TinyHalf(layers)

    def encode(self, pixels: Tensor) -> Tensor:
        """Encode pixels (B, 3, H, W) in [-1, 1] to latents (B, C, h, w)."""
        return self.encoder(((pixels + 1) / 2).to(self._dtype))

    def decode(self, latents: Tensor) -> Tensor:
        """Decode latents (B, C, h, w) to pixels (B, 3, h · factor, w · factor), nominally in [-1, 1], not clamped."""
        return self.decoder((3 * torch.tanh(latents / 3)).to(self._dtype)) * 2 - 1

    @property
    def _dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

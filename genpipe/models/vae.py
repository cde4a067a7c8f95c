"""The autoencoder between pixels and latents: `AutoencoderKL` of Stable Diffusion."""

import copy
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genpipe.blocks import Downsample, ResidualBlock, Upsample, conv1x1, conv3x3, silu
from genpipe.models.attention import SpatialAttention
from genpipe.models.tiles import over_tiles

_EPS = 1e-6  # of every norm in the autoencoder; the denoiser's residual blocks use 1e-5


@dataclass(frozen=True)
class VAEConfig:
    """Shape of the autoencoder; `channels` has one entry per level, finest first.

    Latents are scaled for the denoiser as (z - shift_factor) * scaling_factor, or, where they have a mean and a standard
    deviation per channel (Playground v2.5), as (z - latents_mean) * scaling_factor / latents_std.

    Attributes:
        force_upcast: whether its activations overflow fp16, as those of SDXL's do.
        halved: whether its images are half as wide and high as those of its finest level, see `VAE.halved`.
    """

    in_channels: int = 3
    out_channels: int = 3
    latent_channels: int = 4
    channels: tuple[int, ...] = (128, 256, 512, 512)
    layers: int = 2
    norm_groups: int = 32
    scaling_factor: float = 0.18215
    shift_factor: float = 0.0
    sample_size: int = 512
    quant_conv: bool = True
    post_quant_conv: bool = True
    middle_attention: bool = True
    latents_mean: tuple[float, ...] | None = None
    latents_std: tuple[float, ...] | None = None
    force_upcast: bool = True
    halved: bool = False

    def __post_init__(self) -> None:
        mean, std = self.latents_mean, self.latents_std
        if (mean is None) != (std is None):
            raise ValueError("VAE config: latents_mean and latents_std go together, and one of them is missing")
        if mean is not None and std is not None and {len(mean), len(std)} != {self.latent_channels}:
            raise ValueError(
                f"VAE config: latents_mean and latents_std need {self.latent_channels} numbers each, one per channel"
            )

    @property
    def factor(self) -> int:
        """Pixels per latent pixel, in each direction."""
        return 2 ** (len(self.channels) - 1 - self.halved)

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> "VAEConfig":
        """Read the `config.json` of a diffusers `AutoencoderKL`.

        Raises:
            ValueError: the file asks for a form of the network that is not implemented; names the key and the value.
        """
        for key, wanted in (("down_block_types", "DownEncoderBlock2D"), ("up_block_types", "UpDecoderBlock2D")):
            for kind in config.get(key, ()):
                if kind != wanted:
                    raise ValueError(f"VAE config: block {kind!r} is not supported (only {wanted!r})")
        if config.get("act_fn", "silu") not in ("silu", "swish"):
            raise ValueError(f"VAE config: act_fn {config['act_fn']!r} is not supported (only 'silu')")
        mean, std = (
            None if numbers is None else tuple(numbers)
            for numbers in (config.get("latents_mean"), config.get("latents_std"))
        )
        sample_size = config.get("sample_size") or 32
        return cls(
            in_channels=config.get("in_channels", 3),
            out_channels=config.get("out_channels", 3),
            latent_channels=config.get("latent_channels", 4),
            channels=tuple(config.get("block_out_channels", (64,))),
            layers=config.get("layers_per_block", 1),
            norm_groups=config.get("norm_num_groups", 32),
            scaling_factor=config.get("scaling_factor") or 0.18215,
            shift_factor=config.get("shift_factor") or 0.0,
            sample_size=sample_size if isinstance(sample_size, int) else max(sample_size),
            quant_conv=config.get("use_quant_conv", True),
            post_quant_conv=config.get("use_post_quant_conv", True),
            middle_attention=config.get("mid_block_add_attention", True),
            force_upcast=config.get("force_upcast", True) is not False,
            latents_mean=mean,
            latents_std=std,
        )

    def to_dict(self) -> dict[str, Any]:
        """The `config.json` that diffusers' `AutoencoderKL` reads."""
        return {
            "_class_name": "AutoencoderKL",
            "in_channels": self.in_channels,
            "out_channels": self.out_channels,
            "latent_channels": self.latent_channels,
            "block_out_channels": list(self.channels),
            "down_block_types": ["DownEncoderBlock2D"] * len(self.channels),
            "up_block_types": ["UpDecoderBlock2D"] * len(self.channels),
            "layers_per_block": self.layers,
            "norm_num_groups": self.norm_groups,
            "act_fn": "silu",
            "scaling_factor": self.scaling_factor,
            "shift_factor": self.shift_factor,
            "sample_size": self.sample_size,
            "use_quant_conv": self.quant_conv,
            "use_post_quant_conv": self.post_quant_conv,
            "mid_block_add_attention": self.middle_attention,
            "latents_mean": None if self.latents_mean is None else list(self.latents_mean),
            "latents_std": None if self.latents_std is None else list(self.latents_std),
            "force_upcast": self.force_upcast,
        }


class Level(nn.Module):
    """Residual blocks of one resolution, then a resampling; the same class serves both directions.

    It iterates over its layers, so that a caller who runs them one by one frees each layer's input before the next runs.
    """

    def __init__(
        self, in_channels: int, out_channels: int, *, layers: int, groups: int, resample: nn.Module | None
    ) -> None:
        super().__init__()
        widths = [in_channels] + [out_channels] * (layers - 1)
        self.residuals = nn.ModuleList(ResidualBlock(width, out_channels, groups=groups, eps=_EPS) for width in widths)
        self.resample = resample

    def __iter__(self) -> Iterator[nn.Module]:
        yield from self.residuals
        if self.resample is not None:
            yield self.resample


class Middle(nn.Module):
    """Residual block, self-attention over the pixels, residual block."""

    def __init__(self, channels: int, *, groups: int, attention: bool) -> None:
        super().__init__()
        self.residuals = nn.ModuleList(ResidualBlock(channels, channels, groups=groups, eps=_EPS) for _ in range(2))
        self.attentions = nn.ModuleList([SpatialAttention(channels, groups=groups, eps=_EPS)] if attention else [])

    def forward(self, h: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C, H, W)."""
        h = self.residuals[0](h)
        for attention in self.attentions:
            h = attention(h)
        return self.residuals[1](h)


class Encoder(nn.Module):
    """Pixels to the moments of a Gaussian over latents."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        channels, groups = config.channels, config.norm_groups
        self.conv_in = conv3x3(config.in_channels, channels[0])
        self.down = nn.ModuleList(
            Level(
                channels[max(level - 1, 0)],
                channels[level],
                layers=config.layers,
                groups=groups,
                resample=Downsample(channels[level], asymmetric=True) if level < len(channels) - 1 else None,
            )
            for level in range(len(channels))
        )
        self.middle = Middle(channels[-1], groups=groups, attention=config.middle_attention)
        self.norm_out = nn.GroupNorm(groups, channels[-1], eps=_EPS)
        self.conv_out = conv3x3(channels[-1], 2 * config.latent_channels)

    def forward(self, pixels: Tensor) -> Tensor:
        """Map pixels (B, 3, H, W) to (B, 2·C, H / factor, W / factor)."""
        h = self.conv_in(pixels)
        for layer in chain.from_iterable(cast(Iterable[Level], self.down)):
            h = layer(h)
        return self.conv_out(silu(self.norm_out(self.middle(h))))


class Decoder(nn.Module):
    """Latents to pixels."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        channels, groups = config.channels[::-1], config.norm_groups
        self.conv_in = conv3x3(config.latent_channels, channels[0])
        self.middle = Middle(channels[0], groups=groups, attention=config.middle_attention)
        self.up = nn.ModuleList(
            Level(
                channels[max(level - 1, 0)],
                channels[level],
                layers=config.layers + 1,
                groups=groups,
                resample=Upsample(channels[level]) if level < len(channels) - 1 else None,
            )
            for level in range(len(channels))
        )
        self.norm_out = nn.GroupNorm(groups, channels[-1], eps=_EPS)
        self.conv_out = conv3x3(channels[-1], config.out_channels)

    def forward(self, latents: Tensor) -> Tensor:
        """Map latents (B, C, h, w) to pixels (B, 3, h · factor, w · factor)."""
        h = self.middle(self.conv_in(latents))
        for layer in chain.from_iterable(cast(Iterable[Level], self.up)):
            h = layer(h)
        return self.conv_out(silu(self.norm_out(h)))


class VAE(nn.Module):
    """The autoencoder. Latents handed in and out are scaled for the denoiser; pixels are in [-1, 1]."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        self.config = config
        latent = config.latent_channels
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.to_moments = conv1x1(2 * latent, 2 * latent) if config.quant_conv else nn.Identity()
        self.from_latents = conv1x1(latent, latent) if config.post_quant_conv else nn.Identity()

    def halved(self) -> "VAE":
        """Return this autoencoder for images of half the size: they are enlarged to be encoded, and what is decoded is
        averaged over 2 × 2 pixels. The weights are the same in memory."""
        other = copy.copy(self)
        other.config = replace(self.config, halved=True)
        return other

    def encode(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Encode pixels (B, 3, H, W) in [-1, 1] to the mean and log-variance of unscaled latents, each (B, C, h, w)."""
        if self.config.halved:
            pixels = F.interpolate(pixels, scale_factor=2.0, mode="bicubic")
        mean, logvar = self.to_moments(self.encoder(pixels.to(self._dtype))).chunk(2, dim=1)
        return mean, logvar.clamp(-30.0, 20.0)

    def scale(self, latents: Tensor) -> Tensor:
        """Scale latents, as `encode` gives them, for the denoiser; (B, C, h, w)."""
        config = self.config
        if config.latents_mean is not None and config.latents_std is not None:
            mean, std = (_per_channel(latents, numbers) for numbers in (config.latents_mean, config.latents_std))
            return (latents - mean) * config.scaling_factor / std
        return (latents - config.shift_factor) * config.scaling_factor

    def unscale(self, latents: Tensor) -> Tensor:
        """Undo `scale`."""
        config = self.config
        if config.latents_mean is not None and config.latents_std is not None:
            mean, std = (_per_channel(latents, numbers) for numbers in (config.latents_mean, config.latents_std))
            return latents * std / config.scaling_factor + mean
        return latents / config.scaling_factor + config.shift_factor

    def decode(self, latents: Tensor, *, tile: int | None = None) -> Tensor:
        """Decode scaled latents (B, C, h, w) to pixels (B, 3, h · factor, w · factor), nominally in [-1, 1], not clamped.

        Args:
            latents: as the denoiser leaves them.
            tile: decode in overlapping squares of this many latent pixels (16 or more), blended where they overlap, so
                that memory stays flat for large images; the result differs slightly, since each norm sees one tile only.
                None decodes in one piece.
        """
        latents = self.unscale(latents)
        if tile is None:
            return self._decode(latents)
        return over_tiles(self._decode, latents, tile=tile, factor=self.config.factor)

    @property
    def _dtype(self) -> torch.dtype:
        return self.decoder.conv_in.weight.dtype

    def _decode(self, latents: Tensor) -> Tensor:
        pixels = self.decoder(self.from_latents(latents.to(self._dtype)))
        return F.avg_pool2d(pixels, 2) if self.config.halved else pixels


def _per_channel(latents: Tensor, numbers: tuple[float, ...]) -> Tensor:
    return torch.tensor(numbers, dtype=latents.dtype, device=latents.device)[:, None, None]

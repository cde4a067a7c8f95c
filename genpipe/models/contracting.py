"""The way down of the U-Net and its bottom, with all that they are told: the half that a ControlNet has too."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from genpipe.blocks import Downsample, ResidualBlock, conv3x3
from genpipe.models.attention import KeysValues, SpatialTransformer, add_rows, repeat_rows
from genpipe.models.unet_config import UNetConfig

# What the timestep, and what is embedded with it, adds in each residual block, (1, images or prompts; C_out).
Shifts = Mapping[ResidualBlock, Tensor]


def sinusoidal_embedding(
    values: Tensor, channels: int, *, flip_sin_to_cos: bool = True, freq_shift: float = 0.0
) -> Tensor:
    """Embed numbers (B,) as sines and cosines of falling frequencies, (B, channels) in fp32 (`channels` even)."""
    half = channels // 2
    exponent = -math.log(10000) * torch.arange(half, dtype=torch.float32, device=values.device) / (half - freq_shift)
    angles = values.float()[:, None] * exponent.exp()  # (B, channels / 2)
    parts = (angles.cos(), angles.sin()) if flip_sin_to_cos else (angles.sin(), angles.cos())
    return torch.cat(parts, dim=-1)


class TimeEmbedding(nn.Module):
    """Two linear layers around a SiLU, over a sinusoidal embedding."""

    def __init__(self, in_channels: int, channels: int, *, guidance_channels: int | None = None) -> None:
        super().__init__()
        self.linear1 = nn.Linear(in_channels, channels)
        self.guidance = None if guidance_channels is None else nn.Linear(guidance_channels, in_channels, bias=False)
        self.linear2 = nn.Linear(channels, channels)

    def forward(self, x: Tensor, guidance: Tensor | None = None) -> Tensor:
        """Map (B, C_in), and the embedded guidance scale (B, G) where the network takes one, to (B, C)."""
        if self.guidance is not None and guidance is not None:
            x = x + self.guidance(guidance)
        return self.linear2(F.silu(self.linear1(x)))


class Level(nn.Module):
    """The layers of one resolution, in either direction: residual blocks, their spatial transformers, and a resampling."""

    def __init__(
        self, config: UNetConfig, level: int, in_channels: list[int], resample: nn.Module | None, *, up: bool
    ) -> None:
        super().__init__()
        channels, only_cross = config.channels[level], config.only_cross[level]
        self.residuals = nn.ModuleList(_residual(config, width, channels) for width in in_channels)
        self.transformers = nn.ModuleList(
            _transformer(config, level, depth, only_cross=only_cross) for depth in config.transformers(level, up=up)
        )
        self.resample = resample

    def __len__(self) -> int:
        return len(self.residuals)

    def layer(self, index: int, h: Tensor, shifts: Shifts, prompts: KeysValues) -> Tensor:
        """Run residual block `index` and, where the level has attention, its transformer."""
        residual = cast(ResidualBlock, self.residuals[index])
        h = residual(h, _for_rows(shifts[residual], len(h)))
        return self.transformers[index](h, prompts) if self.transformers else h


class Middle(nn.Module):
    """The bottom of the U-Net: a residual block, and where it attends a spatial transformer and another residual block."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        channels, attends = config.channels[-1], config.middle == "attention"
        self.residuals = nn.ModuleList(_residual(config, channels, channels) for _ in range(1 + attends))
        self.transformers = nn.ModuleList(
            [_transformer(config, len(config.channels) - 1, config.middle_depth, only_cross=False)] if attends else []
        )

    def forward(self, h: Tensor, shifts: Shifts, prompts: KeysValues) -> Tensor:
        """Map (B, C, H, W) to (k · B, C, H, W) with k prompts per image; without attention the rows stay B."""
        first, *others = cast(Iterable[ResidualBlock], self.residuals)
        h = first(h, _for_rows(shifts[first], len(h)))
        for transformer, residual in zip(self.transformers, others, strict=True):
            h = transformer(h, prompts)
            h = residual(h, _for_rows(shifts[residual], len(h)))
        return h


class ContractingPath(nn.Module):
    """What goes down from the latents to the bottom ("contracting path": "U-Net", 2015), and the embedding of the timestep.

    Attributes:
        skip_channels: width of each output of the first layer and of the way down, which skip connections carry.
    """

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        first, embedding_channels = config.channels[0], 4 * config.channels[0]
        self.conv_in = conv3x3(config.in_channels, first)
        self.time_embedding = TimeEmbedding(first, embedding_channels, guidance_channels=config.guidance_channels)
        self.added_embedding = (
            None if config.added_channels is None else TimeEmbedding(config.added_channels, embedding_channels)
        )
        self.class_embedding = (
            None if config.class_channels is None else TimeEmbedding(config.class_channels, embedding_channels)
        )

        last = len(config.channels) - 1
        skips, width = [first], first
        self.down = nn.ModuleList()
        for level, channels in enumerate(config.channels):
            widths = [width] + [channels] * (config.layers[level] - 1)
            resample = None if level == last else Downsample(channels, asymmetric=config.downsample_padding == 0)
            self.down.append(Level(config, level, widths, resample, up=False))
            skips += [channels] * (config.layers[level] + (level != last))
            width = channels
        self.middle = None if config.middle is None else Middle(config)
        self.skip_channels = tuple(skips)

    @property
    def places(self) -> list[tuple[int, int]]:
        """Where the maps of a T2I-Adapter are added, level by level and then to the bottom: the width, and how often halved.

        To a level that reads the prompt a map is added before it is halved, to any other after.
        """
        config, last = self.config, len(self.config.channels) - 1
        levels = [
            (width, level if config.attention[level] or level == last else level + 1)
            for level, width in enumerate(config.channels)
        ]
        return [*levels, (config.channels[-1], last)]

    def contract(
        self, first: Tensor, shifts: Shifts, prompts: KeysValues, maps: Sequence[Tensor] = ()
    ) -> tuple[Tensor, list[Tensor]]:
        """Run the way down and the bottom.

        Args:
            first: what the first layer gave, (B, C, h, w).
            shifts, prompts: as `shifts` and `keys_values` give them, of k · B prompts.
            maps: added to the levels, B rows each, as `places` says; there may be fewer.

        Returns:
            What the bottom gives, and the skips: `first` and the output of each layer and downsampling. Those that come
            before the network first reads a prompt have B rows, the others k · B.
        """
        h, skips, waiting = first, [first], list(maps)
        for level in cast(Iterable[Level], self.down):
            attends = len(level.transformers) > 0
            for index in range(len(level)):
                h = level.layer(index, h, shifts, prompts)
                if attends and waiting and index == len(level) - 1:
                    h = add_rows(h, waiting.pop(0))
                skips.append(h)
            if level.resample is not None:
                h = level.resample(h)
                skips.append(h)
            if not attends and waiting:
                h = skips[-1] = add_rows(h, waiting.pop(0))
        h = h if self.middle is None else self.middle(h, shifts, prompts)
        return add_rows(h, waiting.pop(0)) if waiting else h, skips

    def shifts(self, embedding: Tensor) -> Shifts:
        """Compute what an embedding (B, E) of the timestep adds in each residual block, (B, C_out)."""
        return {block: block.shift(embedding) for block in self.modules() if isinstance(block, ResidualBlock)}

    def keys_values(self, context: Tensor) -> KeysValues:
        """Compute the keys and values of a context (B, T, D) for each attention that reads it."""
        context = context.to(self._dtype)
        transformers = (module for module in self.modules() if isinstance(module, SpatialTransformer))
        return {
            reader: reader.keys_values(context)
            for transformer in transformers
            for reader in transformer.cross_attentions()
        }

    def embed(
        self,
        timestep: Tensor,
        *,
        guidance: Tensor | None = None,
        pooled: Tensor | None = None,
        time_ids: Tensor | None = None,
    ) -> Tensor:
        """Embed timesteps and the other inputs that are numbers, (B, E); arguments as in `forward`."""
        config, dtype = self.config, self._dtype

        def sinusoids(values: Tensor, channels: int) -> Tensor:
            return sinusoidal_embedding(
                values, channels, flip_sin_to_cos=config.flip_sin_to_cos, freq_shift=config.freq_shift
            ).to(dtype)

        embedded_guidance = None
        if config.guidance_channels is None and guidance is not None:
            raise ValueError("this U-Net takes no guidance scale: leave out guidance")
        if config.guidance_channels is not None:
            scale = torch.ones_like(timestep) if guidance is None else guidance
            # LCM embeds scale - 1, sines first, up to the last frequency ("Latent Consistency Models", 2023).
            embedded_guidance = sinusoidal_embedding(
                1000 * (scale - 1), config.guidance_channels, flip_sin_to_cos=False, freq_shift=1
            ).to(dtype)
        embedding = self.time_embedding(sinusoids(timestep, config.channels[0]), embedded_guidance)
        if self.class_embedding is not None:
            if pooled is None or time_ids is not None:
                raise ValueError("this U-Net takes a pooled vector and no sizes (unCLIP): pass pooled alone")
            return embedding + self.class_embedding(pooled.to(dtype))
        if self.added_embedding is None:
            if pooled is not None or time_ids is not None:
                raise ValueError("this U-Net takes no pooled text and no sizes: leave out pooled and time_ids")
            return embedding
        if pooled is None or time_ids is None or config.added_time_channels is None:
            raise ValueError("this U-Net takes pooled text and sizes (SDXL): pass pooled and time_ids")
        times = sinusoids(time_ids.flatten(), config.added_time_channels).unflatten(0, time_ids.shape)
        return embedding + self.added_embedding(torch.cat([pooled.to(dtype), times.flatten(1)], dim=-1))

    @property
    def _dtype(self) -> torch.dtype:
        return self.conv_in.weight.dtype


def _for_rows(shift: Tensor, rows: int) -> Tensor:
    """What to add to `rows` rows: one for all as it is, an image's to each of its prompts."""
    return shift if len(shift) == 1 else repeat_rows(shift, rows)


def _residual(config: UNetConfig, in_channels: int, out_channels: int) -> ResidualBlock:
    return ResidualBlock(
        in_channels,
        out_channels,
        embedding_channels=4 * config.channels[0],
        groups=config.norm_groups,
        eps=config.norm_eps,
    )


def _transformer(config: UNetConfig, level: int, depth: int, *, only_cross: bool) -> SpatialTransformer:
    return SpatialTransformer(
        config.channels[level],
        heads=config.heads[level],
        context_channels=config.context_channels,
        depth=depth,
        linear=config.linear_projection,
        groups=config.norm_groups,
        only_cross=only_cross,
        upcast=config.upcast_attention,
    )

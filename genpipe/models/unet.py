"""The denoiser: the U-Net of Stable Diffusion ("High-Resolution Image Synthesis with Latent Diffusion Models", 2022).

The forward pass reads like the paper: push residuals going down, pop them going up. A level of either direction is the
same class; the widths of the way up are derived from what the way down pushes.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from genpipe.models.attention import KeysValues, SpatialTransformer, matched
from genpipe.vision.blocks import Downsample, ResidualBlock, Upsample, conv3x3, silu

_ATTENTION = {"CrossAttnDownBlock2D": True, "DownBlock2D": False, "CrossAttnUpBlock2D": True, "UpBlock2D": False}
# Keys of a diffusers config.json that change the network, with the only values this one implements.
_REQUIRED: dict[str, tuple[Any, ...]] = {
    "act_fn": ("silu", "swish"),
    "addition_embed_type": (None, "text_time"),
    "attention_type": ("default",),
    "center_input_sample": (False,),
    "class_embed_type": (None,),
    "class_embeddings_concat": (False,),
    "conv_in_kernel": (3,),
    "conv_out_kernel": (3,),
    "dual_cross_attention": (False,),
    "encoder_hid_dim": (None,),
    "encoder_hid_dim_type": (None,),
    "mid_block_only_cross_attention": (None, False),
    "mid_block_scale_factor": (1, 1.0),
    "mid_block_type": ("UNetMidBlock2DCrossAttn",),
    "num_class_embeds": (None,),
    "resnet_out_scale_factor": (1, 1.0),
    "resnet_skip_time_act": (False,),
    "resnet_time_scale_shift": ("default",),
    "reverse_transformer_layers_per_block": (None,),
    "time_embedding_act_fn": (None,),
    "time_embedding_dim": (None,),
    "time_embedding_type": ("positional",),
    "timestep_post_act": (None,),
}


# What the timestep adds in each residual block, (B or 1, C_out).
Shifts = Mapping[ResidualBlock, Tensor]


@dataclass(frozen=True)
class UNetConfig:
    """Shape of the denoiser. The tuples have an entry a level, finest first.

    Attributes:
        sample_size: height and width of the latents it was trained on, in latent pixels.
        channels: width of each level.
        attention: whether the level attends to the prompt on the way down, and `attention_up` on the way up.
        layers: residual blocks a level on the way down (the way up has one more).
        depth: transformer blocks a spatial transformer.
        heads: attention heads.
        context_channels: width of the text encoder's vectors.
        guidance_channels: width of the embedded guidance scale, for distilled checkpoints (LCM); None for none.
        added_time_channels, added_channels: of the added text/time embedding (SDXL); None for none.
    """

    sample_size: int = 64
    in_channels: int = 4
    out_channels: int = 4
    channels: tuple[int, ...] = (320, 640, 1280, 1280)
    attention: tuple[bool, ...] = (True, True, True, False)
    attention_up: tuple[bool, ...] = (True, True, True, False)
    layers: tuple[int, ...] = (2, 2, 2, 2)
    depth: tuple[int, ...] = (1, 1, 1, 1)
    heads: tuple[int, ...] = (8, 8, 8, 8)
    only_cross: tuple[bool, ...] = (False, False, False, False)
    context_channels: int = 768
    linear_projection: bool = False
    upcast_attention: bool = False
    norm_groups: int = 32
    norm_eps: float = 1e-5
    downsample_padding: int = 1
    flip_sin_to_cos: bool = True
    freq_shift: float = 0.0
    guidance_channels: int | None = None
    added_time_channels: int | None = None
    added_channels: int | None = None

    def __post_init__(self) -> None:
        for name in ("attention", "attention_up", "layers", "depth", "heads", "only_cross"):
            if len(getattr(self, name)) != len(self.channels):
                raise ValueError(
                    f"{name} {getattr(self, name)} needs one entry for each of {len(self.channels)} levels"
                )
        for channels, heads in zip(self.channels, self.heads, strict=True):
            if channels % heads or channels % self.norm_groups:
                raise ValueError(
                    f"{channels} channels are not a multiple of {heads} heads and {self.norm_groups} groups"
                )

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> "UNetConfig":
        """Read the `config.json` of a diffusers `UNet2DConditionModel`.

        Raises:
            ValueError: the file asks for a form of the network that is not implemented; names the key and the value.
        """
        for key, allowed in _REQUIRED.items():
            if key in config and config[key] not in allowed:
                raise ValueError(f"U-Net config: {key} = {config[key]!r} is not supported (only {allowed[0]!r})")
        if config.get("num_attention_heads") is not None:
            raise ValueError("U-Net config: num_attention_heads is not supported, use attention_head_dim")
        channels = tuple(config.get("block_out_channels", (320, 640, 1280, 1280)))
        down = config.get("down_block_types", ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"])
        up = config.get("up_block_types", ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3)
        for kind in (*down, *up):
            if kind not in _ATTENTION:
                raise ValueError(f"U-Net config: block {kind!r} is not supported (only {', '.join(_ATTENTION)})")

        def per_level(key: str, default: Any) -> tuple[Any, ...]:
            value = config.get(key, default)
            return tuple(value) if isinstance(value, list | tuple) else (value,) * len(channels)

        context = set(per_level("cross_attention_dim", 1280))
        if len(context) > 1:
            raise ValueError(f"U-Net config: cross_attention_dim {config['cross_attention_dim']} must be one number")
        sample_size = config.get("sample_size") or 64
        return cls(
            sample_size=sample_size if isinstance(sample_size, int) else max(sample_size),
            in_channels=config.get("in_channels", 4),
            out_channels=config.get("out_channels", 4),
            channels=channels,
            attention=tuple(_ATTENTION[kind] for kind in down),
            attention_up=tuple(_ATTENTION[kind] for kind in reversed(up)),
            layers=per_level("layers_per_block", 2),
            depth=per_level("transformer_layers_per_block", 1),
            heads=per_level("attention_head_dim", 8),  # a misnomer in the file: it is the number of heads
            only_cross=per_level("only_cross_attention", False),
            context_channels=context.pop(),
            linear_projection=config.get("use_linear_projection", False),
            upcast_attention=bool(config.get("upcast_attention", False)),
            norm_groups=config.get("norm_num_groups", 32),
            norm_eps=config.get("norm_eps", 1e-5),
            downsample_padding=config.get("downsample_padding", 1),
            flip_sin_to_cos=config.get("flip_sin_to_cos", True),
            freq_shift=config.get("freq_shift", 0),
            guidance_channels=config.get("time_cond_proj_dim"),
            added_time_channels=config.get("addition_time_embed_dim"),
            added_channels=config.get("projection_class_embeddings_input_dim")
            if config.get("addition_embed_type")
            else None,
        )

    def to_dict(self) -> dict[str, Any]:
        """The `config.json` that diffusers' `UNet2DConditionModel` reads."""
        return {
            "_class_name": "UNet2DConditionModel",
            "sample_size": self.sample_size,
            "in_channels": self.in_channels,
            "out_channels": self.out_channels,
            "block_out_channels": list(self.channels),
            "down_block_types": ["CrossAttnDownBlock2D" if a else "DownBlock2D" for a in self.attention],
            "up_block_types": ["CrossAttnUpBlock2D" if a else "UpBlock2D" for a in reversed(self.attention_up)],
            "layers_per_block": list(self.layers),
            "transformer_layers_per_block": list(self.depth),
            "attention_head_dim": list(self.heads),
            "only_cross_attention": list(self.only_cross),
            "cross_attention_dim": self.context_channels,
            "use_linear_projection": self.linear_projection,
            "upcast_attention": self.upcast_attention,
            "norm_num_groups": self.norm_groups,
            "norm_eps": self.norm_eps,
            "downsample_padding": self.downsample_padding,
            "flip_sin_to_cos": self.flip_sin_to_cos,
            "freq_shift": self.freq_shift,
            "time_cond_proj_dim": self.guidance_channels,
            "addition_embed_type": None if self.added_channels is None else "text_time",
            "addition_time_embed_dim": self.added_time_channels,
            "projection_class_embeddings_input_dim": self.added_channels,
        }


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
        """(B, C_in), and the embedded guidance scale (B, G) where the network takes one -> (B, C)."""
        if self.guidance is not None and guidance is not None:
            x = x + self.guidance(guidance)
        return self.linear2(F.silu(self.linear1(x)))


class Level(nn.Module):
    """The layers of one resolution, in either direction: residual blocks, their spatial transformers, and a resampling."""

    def __init__(
        self, config: UNetConfig, level: int, in_channels: list[int], attention: bool, resample: nn.Module | None
    ) -> None:
        super().__init__()
        channels = config.channels[level]
        self.residuals = nn.ModuleList(_residual(config, width, channels) for width in in_channels)
        self.transformers = nn.ModuleList(_transformer(config, level) for _ in in_channels if attention)
        self.resample = resample

    def __len__(self) -> int:
        return len(self.residuals)

    def layer(self, index: int, h: Tensor, shifts: Shifts, prompts: KeysValues) -> Tensor:
        """Residual block `index` and, where the level has attention, its transformer."""
        residual = cast(ResidualBlock, self.residuals[index])
        h = residual(h, shifts[residual])
        return self.transformers[index](h, prompts) if self.transformers else h


class Middle(nn.Module):
    """The bottom of the U-Net: residual block, spatial transformer, residual block."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        channels = config.channels[-1]
        self.residuals = nn.ModuleList(_residual(config, channels, channels) for _ in range(2))
        self.transformers = nn.ModuleList([_transformer(config, len(config.channels) - 1, only_cross=False)])

    def forward(self, h: Tensor, shifts: Shifts, prompts: KeysValues) -> Tensor:
        """(B, C, H, W) -> (as many as prompts, C, H, W)."""
        first, second = cast(Iterable[ResidualBlock], self.residuals)
        h = self.transformers[0](first(h, shifts[first]), prompts)
        return second(h, shifts[second])


class UNet(nn.Module):
    """The denoiser: noisy latents, a timestep and a prompt's context to the model output (noise, velocity or sample)."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        first, embedding_channels = config.channels[0], 4 * config.channels[0]
        self.conv_in = conv3x3(config.in_channels, first)
        self.time_embedding = TimeEmbedding(first, embedding_channels, guidance_channels=config.guidance_channels)
        self.added_embedding = (
            None if config.added_channels is None else TimeEmbedding(config.added_channels, embedding_channels)
        )

        last = len(config.channels) - 1
        skips, width = [first], first
        self.down = nn.ModuleList()
        for level, channels in enumerate(config.channels):
            widths = [width] + [channels] * (config.layers[level] - 1)
            resample = None if level == last else Downsample(channels, asymmetric=config.downsample_padding == 0)
            self.down.append(Level(config, level, widths, config.attention[level], resample))
            skips += [channels] * (config.layers[level] + (level != last))
            width = channels
        self.middle = Middle(config)
        self.up = nn.ModuleList()
        for level in range(last, -1, -1):
            widths = []
            for _ in range(config.layers[level] + 1):
                widths.append(width + skips.pop())
                width = config.channels[level]
            resample = None if level == 0 else Upsample(width)
            self.up.append(Level(config, level, widths, config.attention_up[level], resample))

        self.norm_out = nn.GroupNorm(config.norm_groups, first, eps=config.norm_eps)
        self.conv_out = conv3x3(first, config.out_channels)

    def forward(
        self,
        latents: Tensor,
        timestep: Tensor,
        context: Tensor,
        *,
        guidance: Tensor | None = None,
        added_text: Tensor | None = None,
        added_times: Tensor | None = None,
    ) -> Tensor:
        """One evaluation of the network.

        Args:
            latents: (B, C_in, H, W), noisy, in the variance-preserving scaling.
            timestep: (B,), 0 … 999.
            context: (B, T, D), one vector a token of the prompt.
            guidance: (B,), the guidance scale, where the config has `guidance_channels`; taken as 1 if None.
            added_text, added_times: (B, P) and (B, K), SDXL's pooled prompt and sizes, where the config has them.

        Returns:
            (B, C_out, H, W); what it means (epsilon, v, sample) is the schedule's to say.
        """
        embedding = self.embed(timestep, guidance=guidance, added_text=added_text, added_times=added_times)
        output, _ = self.denoise(latents, self.shifts(embedding), self.keys_values(context))
        return output

    def denoise(
        self, latents: Tensor, shifts: Shifts, prompts: KeysValues, deep: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """`forward`, given what does not depend on the latents; see `inference.Denoiser`.

        Args:
            latents: (B, C_in, H, W).
            shifts: what the timestep adds, as `shifts` gives it.
            prompts: the keys and values of B prompts, or of a multiple of B, as `keys_values` gives them. What comes
                before the network first reads a prompt is then computed once for all prompts of a picture.
            deep: the deep features of an earlier evaluation of the same batch, in place of computing them.

        Returns:
            The output (as many as prompts, C_out, H, W) and the deep features: what the last layer adds the first skip to.
            With k prompts a picture, the B pictures of the first prompts come first.
        """
        first = self.conv_in(latents.to(self._dtype))
        if deep is None:
            deep = self._deep(first, shifts, prompts)
        level = cast(Level, self.up[-1])
        joined = torch.cat([deep, matched(first, len(deep))], dim=1)
        h = level.layer(len(level) - 1, joined, shifts, prompts)
        return self.conv_out(silu(self.norm_out(h))), deep

    def _deep(self, first: Tensor, shifts: Shifts, prompts: KeysValues) -> Tensor:
        """All but the first and the last layer: the way down, the middle, and the way up to before the first skip."""
        h, skips = first, [first]
        for level in cast(Iterable[Level], self.down):
            for index in range(len(level)):
                h = level.layer(index, h, shifts, prompts)
                skips.append(h)
            if level.resample is not None:
                h = level.resample(h)
                skips.append(h)

        h = self.middle(h, shifts, prompts)

        for level in cast(Iterable[Level], self.up):
            for index in range(len(level) - (level.resample is None)):
                h = level.layer(index, torch.cat([h, matched(skips.pop(), len(h))], dim=1), shifts, prompts)
            if level.resample is not None:
                h = level.resample(h, size=skips[-1].shape[-2:])
        return h

    def shifts(self, embedding: Tensor) -> Shifts:
        """What an embedding (B, E) of the timestep adds in each residual block, (B, C_out)."""
        return {block: block.shift(embedding) for block in self.modules() if isinstance(block, ResidualBlock)}

    def keys_values(self, context: Tensor) -> KeysValues:
        """The keys and values of a context (B, T, D), for each attention that reads it."""
        context = context.to(self._dtype)
        transformers = (module for module in self.modules() if isinstance(module, SpatialTransformer))
        return {reader: reader.keys_values(context) for transformer in transformers for reader in transformer.readers()}

    def embed(
        self,
        timestep: Tensor,
        *,
        guidance: Tensor | None = None,
        added_text: Tensor | None = None,
        added_times: Tensor | None = None,
    ) -> Tensor:
        """The embedding (B, E) of timesteps and the other inputs that are numbers; arguments as in `forward`."""
        config, dtype = self.config, self._dtype

        def sinusoids(values: Tensor, channels: int) -> Tensor:
            return sinusoidal_embedding(
                values, channels, flip_sin_to_cos=config.flip_sin_to_cos, freq_shift=config.freq_shift
            ).to(dtype)

        embedded_guidance = None
        if config.guidance_channels is not None:
            scale = torch.ones_like(timestep) if guidance is None else guidance
            # LCM's own embedding of (scale - 1): no flip, frequencies to the last ("Latent Consistency Models", 2023).
            embedded_guidance = sinusoidal_embedding(
                1000 * (scale - 1), config.guidance_channels, flip_sin_to_cos=False, freq_shift=1
            ).to(dtype)
        embedding = self.time_embedding(sinusoids(timestep, config.channels[0]), embedded_guidance)
        if self.added_embedding is None:
            return embedding
        if added_text is None or added_times is None or config.added_time_channels is None:
            raise ValueError("this U-Net takes added text and times (SDXL): pass added_text and added_times")
        times = sinusoids(added_times.flatten(), config.added_time_channels).unflatten(0, added_times.shape)
        return embedding + self.added_embedding(torch.cat([added_text.to(dtype), times.flatten(1)], dim=-1))

    @property
    def _dtype(self) -> torch.dtype:
        return self.conv_in.weight.dtype


def _residual(config: UNetConfig, in_channels: int, out_channels: int) -> ResidualBlock:
    return ResidualBlock(
        in_channels,
        out_channels,
        embedding_channels=4 * config.channels[0],
        groups=config.norm_groups,
        eps=config.norm_eps,
    )


def _transformer(config: UNetConfig, level: int, *, only_cross: bool | None = None) -> SpatialTransformer:
    return SpatialTransformer(
        config.channels[level],
        heads=config.heads[level],
        context_channels=config.context_channels,
        depth=config.depth[level],
        linear=config.linear_projection,
        groups=config.norm_groups,
        only_cross=config.only_cross[level] if only_cross is None else only_cross,
        upcast=config.upcast_attention,
    )

"""The shape of the denoiser, read from and written as the `config.json` of diffusers."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

# Transformer blocks of a level's spatial transformers: of each, or one number per layer.
Depth = int | tuple[int, ...]

_ATTENTION = {"CrossAttnDownBlock2D": True, "DownBlock2D": False, "CrossAttnUpBlock2D": True, "UpBlock2D": False}
_MIDDLES: dict[str | None, Literal["attention", "residual"] | None] = {
    "UNetMidBlock2DCrossAttn": "attention",
    "UNetMidBlock2D": "residual",
    None: None,
}
# Keys of a diffusers config.json that change the network, with the only values this one implements.
IMPLEMENTED: dict[str, tuple[Any, ...]] = {
    "act_fn": ("silu", "swish"),
    "addition_embed_type": (None, "text_time"),
    "attention_type": ("default",),
    "center_input_sample": (False,),
    "class_embed_type": (None, "projection"),
    "class_embeddings_concat": (False,),
    "conv_in_kernel": (3,),
    "conv_out_kernel": (3,),
    "cross_attention_norm": (None,),
    "dual_cross_attention": (False,),
    "encoder_hid_dim": (None,),
    "encoder_hid_dim_type": (None,),
    "mid_block_only_cross_attention": (None, False),
    "mid_block_scale_factor": (1, 1.0),
    "mid_block_type": ("UNetMidBlock2DCrossAttn", "UNetMidBlock2D", None),
    "num_class_embeds": (None,),
    "resnet_out_scale_factor": (1, 1.0),
    "resnet_skip_time_act": (False,),
    "resnet_time_scale_shift": ("default",),
    "time_embedding_act_fn": (None,),
    "time_embedding_dim": (None,),
    "time_embedding_type": ("positional",),
    "timestep_post_act": (None,),
}


@dataclass(frozen=True)
class UNetConfig:
    """Shape of the denoiser. The tuples have one entry per level, finest first.

    Attributes:
        sample_size: height and width of the latents it was trained on, in latent pixels; one number for a square.
        channels: width of each level.
        attention: whether the level attends to the prompt on the way down, and `attention_up` on the way up.
        layers: residual blocks per level on the way down (the way up has one more).
        depth: transformer blocks per spatial transformer; a tuple has one number per layer of the level.
        depth_up: the same on the way up; None for the same as on the way down.
        middle: the bottom: "attention" between two residual blocks, one "residual" block alone (SSD-1B), or nothing.
        heads: attention heads.
        context_channels: width of the text encoder's vectors.
        guidance_channels: width of the embedded guidance scale, for distilled checkpoints (LCM); None for none.
        added_time_channels, added_channels: widths of one embedded size and of all sizes beside the pooled text (SDXL);
            None for none.
        class_channels: width of a vector that is embedded by itself (the image's, for unCLIP); None for none.
    """

    sample_size: int | tuple[int, int] = 64
    in_channels: int = 4
    out_channels: int = 4
    channels: tuple[int, ...] = (320, 640, 1280, 1280)
    attention: tuple[bool, ...] = (True, True, True, False)
    attention_up: tuple[bool, ...] = (True, True, True, False)
    layers: tuple[int, ...] = (2, 2, 2, 2)
    depth: tuple[Depth, ...] = (1, 1, 1, 1)
    depth_up: tuple[Depth, ...] | None = None
    middle: Literal["attention", "residual"] | None = "attention"
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
    class_channels: int | None = None

    def __post_init__(self) -> None:
        for name in ("attention", "attention_up", "layers", "depth", "depth_up", "heads", "only_cross"):
            value = getattr(self, name)
            if value is not None and len(value) != len(self.channels):
                raise ValueError(f"{name} {value} needs one entry for each of {len(self.channels)} levels")
        if self.added_channels is not None and self.class_channels is not None:
            raise ValueError("a U-Net that embeds both pooled text with sizes and a vector of its own is not supported")
        if self.depth_up is None and any(isinstance(depth, tuple) for depth in self.depth):
            raise ValueError(f"depth {self.depth} differs by layer, so that depth_up is needed too")
        for up, name in ((False, "depth"), (True, "depth_up")):
            for level in range(len(self.channels)):
                found, layers = self.transformers(level, up=up), self.layers[level] + up
                if found and len(found) != layers:
                    raise ValueError(f"{name} {found} of level {level} needs one entry for each of its {layers} layers")
        for channels, heads in zip(self.channels, self.heads, strict=True):
            if channels % heads or channels % self.norm_groups:
                raise ValueError(
                    f"{channels} channels are not a multiple of {heads} heads and {self.norm_groups} groups"
                )

    @property
    def sample_shape(self) -> tuple[int, int]:
        """Height and width of the latents it was trained on, in latent pixels."""
        size = self.sample_size
        return (size, size) if isinstance(size, int) else size

    def transformers(self, level: int, *, up: bool) -> tuple[int, ...]:
        """Transformer blocks of the spatial transformer of each layer of a level; () for a level without attention."""
        if not (self.attention_up if up else self.attention)[level]:
            return ()
        depth = (self.depth_up if up and self.depth_up is not None else self.depth)[level]
        return (depth,) * (self.layers[level] + up) if isinstance(depth, int) else depth

    @property
    def middle_depth(self) -> int:
        """Transformer blocks of the middle's spatial transformer: as many as the coarsest level's first."""
        return self.depth[-1] if isinstance(self.depth[-1], int) else self.depth[-1][0]

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> "UNetConfig":
        """Read the `config.json` of a diffusers `UNet2DConditionModel`.

        Raises:
            ValueError: the file asks for a form of the network that is not implemented; names the key and the value.
        """
        for key, allowed in IMPLEMENTED.items():
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
        reversed_depth = config.get("reverse_transformer_layers_per_block")
        projected = config.get("projection_class_embeddings_input_dim")
        return cls(
            sample_size=_sample_size(config),
            in_channels=config.get("in_channels", 4),
            out_channels=config.get("out_channels", 4),
            channels=channels,
            attention=tuple(_ATTENTION[kind] for kind in down),
            attention_up=tuple(_ATTENTION[kind] for kind in reversed(up)),
            layers=per_level("layers_per_block", 2),
            depth=tuple(map(_depth, per_level("transformer_layers_per_block", 1))),
            depth_up=None if reversed_depth is None else tuple(map(_depth, reversed(reversed_depth))),
            middle=_MIDDLES[config.get("mid_block_type", "UNetMidBlock2DCrossAttn")],
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
            added_channels=projected if config.get("addition_embed_type") else None,
            class_channels=projected if config.get("class_embed_type") else None,
        )

    def to_dict(self) -> dict[str, Any]:
        """The `config.json` that diffusers' `UNet2DConditionModel` reads."""
        return {
            "_class_name": "UNet2DConditionModel",
            "sample_size": self.sample_size if isinstance(self.sample_size, int) else list(self.sample_size),
            "in_channels": self.in_channels,
            "out_channels": self.out_channels,
            "block_out_channels": list(self.channels),
            "down_block_types": ["CrossAttnDownBlock2D" if a else "DownBlock2D" for a in self.attention],
            "up_block_types": ["CrossAttnUpBlock2D" if a else "UpBlock2D" for a in reversed(self.attention_up)],
            # One number where it can be: diffusers' reader of single files takes no list.
            "layers_per_block": list(self.layers) if len(set(self.layers)) > 1 else self.layers[0],
            "transformer_layers_per_block": _listed(self.depth),
            "reverse_transformer_layers_per_block": None if self.depth_up is None else _listed(self.depth_up[::-1]),
            "mid_block_type": next(name for name, middle in _MIDDLES.items() if middle == self.middle),
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
            "class_embed_type": None if self.class_channels is None else "projection",
            "projection_class_embeddings_input_dim": self.added_channels or self.class_channels,
        }


def _sample_size(config: Mapping[str, Any]) -> int | tuple[int, int]:
    """The file's size; for 32 as written by diffusers before 0.9, whatever the network was trained at, 64 as it reads that."""
    size = config.get("sample_size") or 64
    if not isinstance(size, int):
        height, width = size
        return height, width
    version = re.match(r"(\d+)\.(\d+)", str(config.get("_diffusers_version", "")))
    old = version is not None and (int(version[1]), int(version[2])) < (0, 9)
    return 64 if old and size < 64 else size


def _depth(value: Any) -> Depth:
    return tuple(value) if isinstance(value, list | tuple) else value


def _listed(depths: tuple[Depth, ...]) -> list[Any]:
    return [depth if isinstance(depth, int) else list(depth) for depth in depths]

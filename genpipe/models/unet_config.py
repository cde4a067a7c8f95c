"""The shape of the denoiser, read from and written as the `config.json` of diffusers."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_ATTENTION = {"CrossAttnDownBlock2D": True, "DownBlock2D": False, "CrossAttnUpBlock2D": True, "UpBlock2D": False}
# Keys of a diffusers config.json that change the network, with the only values this one implements.
IMPLEMENTED: dict[str, tuple[Any, ...]] = {
    "act_fn": ("silu", "swish"),
    "addition_embed_type": (None, "text_time"),
    "attention_type": ("default",),
    "center_input_sample": (False,),
    "class_embed_type": (None,),
    "class_embeddings_concat": (False,),
    "conv_in_kernel": (3,),
    "conv_out_kernel": (3,),
    "cross_attention_norm": (None,),
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

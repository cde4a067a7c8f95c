"""The image encoder: CLIP's vision transformer ("Learning Transferable Visual Models From Natural Language Supervision", 2021)."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn

from genpipe.models.text_encoder import ACTIVATIONS, EncoderLayer


@dataclass(frozen=True)
class ImageEncoderConfig:
    """Shape of a CLIP vision transformer; field names are those of a transformers `config.json`."""

    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    image_size: int = 224
    patch_size: int = 32
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5
    projection_dim: int = 512

    def __post_init__(self) -> None:
        if self.hidden_act not in ACTIVATIONS:
            raise ValueError(f"hidden_act {self.hidden_act!r} is not supported: use one of {', '.join(ACTIVATIONS)}")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(f"hidden_size {self.hidden_size} is not a multiple of {self.num_attention_heads} heads")

    @property
    def tokens(self) -> int:
        """How many vectors an image becomes: one for the whole, and one per patch."""
        return 1 + (self.image_size // self.patch_size) ** 2

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> Self:
        """Read a transformers `config.json` (of a vision model, or a CLIP model holding a `vision_config`)."""
        config = {**config, **(config.get("vision_config") or {})}
        return cls(**{field.name: config[field.name] for field in fields(cls) if config.get(field.name) is not None})


class ImageEncoding(NamedTuple):
    """What an image becomes: `hidden` (B, T, D), its vectors before the last layer, and `pooled` (B, P), one for the whole."""

    hidden: Tensor
    pooled: Tensor


class Learned(nn.Module):
    """Numbers that are learned, and that no layer multiplies."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(shape))


class ImageEncoder(nn.Module):
    """CLIP's vision transformer: an image to a vector for the whole of it and one per patch."""

    def __init__(self, config: ImageEncoderConfig) -> None:
        super().__init__()
        self.config = config
        width = config.hidden_size
        self.class_embedding = Learned(width)
        self.patch_embedding = nn.Conv2d(3, width, config.patch_size, stride=config.patch_size, bias=False)
        self.position_embedding = nn.Embedding(config.tokens, width)
        self.first_norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.layers = nn.ModuleList(
            EncoderLayer(
                width,
                config.intermediate_size,
                heads=config.num_attention_heads,
                activation=config.hidden_act,
                eps=config.layer_norm_eps,
                causal=False,
            )
            for _ in range(config.num_hidden_layers)
        )
        self.final_norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.projection = nn.Linear(width, config.projection_dim, bias=False)

    def forward(self, pixels: Tensor) -> ImageEncoding:
        """Encode images (B, 3, S, S), S being `image_size`, with the mean and the spread that CLIP was trained with."""
        patches = (
            self.patch_embedding(pixels.to(self.class_embedding.weight.dtype)).flatten(2).transpose(1, 2)
        )  # (B, T - 1, D)
        first = self.class_embedding.weight.expand(len(patches), 1, -1)
        x = self.first_norm(torch.cat([first, patches], dim=1) + self.position_embedding.weight)
        hidden = x
        for layer in self.layers:
            hidden, x = x, layer(x)
        return ImageEncoding(hidden, self.projection(self.final_norm(x[:, 0])))

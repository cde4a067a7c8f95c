"""The text encoder: CLIP's text transformer ("Learning Transferable Visual Models From Natural Language Supervision", 2021)."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class TextEncoderConfig:
    """Shape of a CLIP text transformer; field names are those of a transformers `config.json`."""

    vocab_size: int = 49408
    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    max_position_embeddings: int = 77
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5
    eos_token_id: int = 49407
    projection_dim: int | None = None

    def __post_init__(self) -> None:
        if self.hidden_act not in ACTIVATIONS:
            raise ValueError(f"hidden_act {self.hidden_act!r} is not supported: use one of {', '.join(ACTIVATIONS)}")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(f"hidden_size {self.hidden_size} is not a multiple of {self.num_attention_heads} heads")

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> "TextEncoderConfig":
        """Read a transformers `config.json` (of a text model, or a CLIP model holding a `text_config`).

        Only `CLIPTextModelWithProjection` projects the pooled output; other files name a `projection_dim` they don't use.
        """
        config = {**config, **(config.get("text_config") or {})}
        known = {f.name: config[f.name] for f in fields(cls) if config.get(f.name) is not None}
        if "CLIPTextModelWithProjection" not in (config.get("architectures") or []):
            known.pop("projection_dim", None)
        return cls(**known)

    def to_dict(self) -> dict[str, Any]:
        """The `config.json` that transformers' `CLIPTextModel` reads."""
        projected = self.projection_dim is not None
        return {
            **{key: value for key, value in asdict(self).items() if value is not None},
            "architectures": ["CLIPTextModelWithProjection" if projected else "CLIPTextModel"],
            "model_type": "clip_text_model",
            # Not used by a plain text model, but its reader wants a number.
            "projection_dim": self.projection_dim if projected else self.hidden_size,
        }


class TextEncoding(NamedTuple):
    """What a prompt becomes: `context` (B, T, D), one vector per token, and `pooled` (B, P), one for the whole."""

    context: Tensor
    pooled: Tensor


def _quick_gelu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"quick_gelu": _quick_gelu, "gelu": F.gelu}


class SelfAttention(nn.Module):
    """Multi-head self-attention; where it is `causal`, each token reads itself and the tokens before it alone."""

    def __init__(self, width: int, heads: int, *, causal: bool) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, T, D) to (B, T, D)."""
        q, k, v = (
            layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, heads, T, D / heads)
            for layer in (self.query, self.key, self.value)
        )
        h = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        return self.out(h.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """Two linear layers around the activation that the config names."""

    def __init__(self, width: int, inner: int, activation: str) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[activation]
        self.linear1 = nn.Linear(width, inner)
        self.linear2 = nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, T, D) to (B, T, D)."""
        return self.linear2(self.activation(self.linear1(x)))


class EncoderLayer(nn.Module):
    """One pre-norm transformer layer, of texts (`causal`) or of images."""

    def __init__(self, width: int, inner: int, *, heads: int, activation: str, eps: float, causal: bool) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=eps)
        self.attention = SelfAttention(width, heads, causal=causal)
        self.norm2 = nn.LayerNorm(width, eps=eps)
        self.feed_forward = FeedForward(width, inner, activation)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, T, D) to (B, T, D)."""
        x = x + self.attention(self.norm1(x))
        return x + self.feed_forward(self.norm2(x))


class TextEncoder(nn.Module):
    """CLIP's text transformer: token ids to one vector per token and one for the whole prompt."""

    def __init__(self, config: TextEncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.position_embedding = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.layers = nn.ModuleList(
            EncoderLayer(
                config.hidden_size,
                config.intermediate_size,
                heads=config.num_attention_heads,
                activation=config.hidden_act,
                eps=config.layer_norm_eps,
                causal=True,
            )
            for _ in range(config.num_hidden_layers)
        )
        self.final_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.projection = (
            None if config.projection_dim is None else nn.Linear(config.hidden_size, config.projection_dim, bias=False)
        )

    def forward(
        self, ids: Tensor, *, clip_skip: int = 0, penultimate: bool = False, learned: Tensor | None = None
    ) -> TextEncoding:
        """Encode token ids (B, T).

        Args:
            ids: int64, T up to `max_position_embeddings`, begun and ended by the tokenizer's marks.
            clip_skip: how many of the last layers the context leaves out, 0 … layers - 1; `pooled` always uses all.
            penultimate: leave one layer more out of the context, and the final norm: what SDXL attends to.
            learned: vectors (n, D) of textual inversions, which the ids from `vocab_size` on stand for.

        Returns:
            context (B, T, D), after the final norm unless `penultimate`, and pooled (B, D or projection_dim), read at the
            end of the text after the final norm.

        Raises:
            ValueError: `clip_skip` outside its range, or more tokens than there are positions.
        """
        if not 0 <= clip_skip < len(self.layers):
            raise ValueError(
                f"clip_skip {clip_skip} is out of range: this text encoder takes 0 to {len(self.layers) - 1}"
            )
        if ids.shape[1] > self.config.max_position_embeddings:
            raise ValueError(f"{ids.shape[1]} tokens are more than the {self.config.max_position_embeddings} positions")
        dtype = self.final_norm.weight.dtype  # the embeddings may still have the file's own dtype
        if learned is None:
            x = self.token_embedding(ids)
        else:
            new = ids >= self.config.vocab_size
            place = (ids - self.config.vocab_size).clamp(min=0)
            ids = ids.where(~new, 0)  # a learned vector is not the end of the text, either
            known = self.token_embedding(ids)
            x = torch.where(new[..., None], learned.to(known.dtype)[place], known)
        x = x.to(dtype) + self.position_embedding.weight[: ids.shape[1]].to(dtype)  # (B, T, D)
        context, layers = x, len(self.layers) - clip_skip - penultimate
        for index, layer in enumerate(self.layers, start=1):
            x = layer(x)
            if index == layers:
                context = x
        last = self.final_norm(x)
        if not penultimate:
            context = self.final_norm(context)
        # Configs written before transformers 4.31 hold a wrong id 2; there the end mark is the largest id.
        ends = ids if self.config.eos_token_id == 2 else (ids == self.config.eos_token_id).int()
        pooled = last[torch.arange(len(ids), device=ids.device), ends.argmax(dim=-1)]  # (B, D)
        return TextEncoding(context, pooled if self.projection is None else self.projection(pooled))

"""Attention and the transformer blocks of the denoiser and the autoencoder."""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from genpipe.blocks import conv1x1, layer_plus
from genpipe.models.cpu.attention import blocked_attention


class Attention(nn.Module):
    """Multi-head attention ("Attention Is All You Need", 2017) from `x` to `context`, or to `x` itself.

    Args:
        channels: width of `x` and of the result.
        heads: number of heads; must divide the inner width.
        context_channels: width of `context`; None for self-attention.
        bias: whether queries, keys and values have a bias (the Stable Diffusion denoiser has none).
        upcast: compute the scores in fp32, for checkpoints whose scores overflow 16 bits (Stable Diffusion 2.1).
    """

    def __init__(
        self,
        channels: int,
        *,
        heads: int,
        head_channels: int | None = None,
        context_channels: int | None = None,
        bias: bool = False,
        upcast: bool = False,
    ) -> None:
        super().__init__()
        inner = channels if head_channels is None else heads * head_channels
        context_channels = channels if context_channels is None else context_channels
        self.heads, self.head_channels = heads, inner // heads
        self.upcast = upcast
        self.query = nn.Linear(channels, inner, bias=bias)
        self.key = nn.Linear(context_channels, inner, bias=bias)
        self.value = nn.Linear(context_channels, inner, bias=bias)
        self.out = nn.Linear(inner, channels)

    def keys_values(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """Map a context (B, M, D), which is to be attended to, to keys and values, each (B, heads, M, head_channels)."""
        return self._by_head(self.key(context)), self._by_head(self.value(context))

    def forward(
        self, x: Tensor, keys_values: tuple[Tensor, ...] | None = None, *, plus: Tensor | None = None
    ) -> Tensor:
        """Attend from x (B, N, C) to the `keys_values` of a context, or without them to x itself.

        After those of the context, keys and values of an image may come: what they give is added (`models.ip_adapter`).

        Returns:
            (B, N, C), with `plus`, of the same shape, added.
        """
        return layer_plus(self.out, self.attend(x, keys_values), plus)

    def attend(self, x: Tensor, keys_values: tuple[Tensor, ...] | None = None) -> Tensor:
        """Do the same up to the last layer, `out`."""
        return self.attended(self.query(x), self.keys_values(x) if keys_values is None else keys_values)

    def attended(self, queries: Tensor, keys_values: tuple[Tensor, ...]) -> Tensor:
        """Do the same for queries (B, N, inner)."""
        q, (k, v, *of_image) = self._by_head(queries), keys_values
        h = _attend(q, k, v, scale=None, upcast=self.upcast)
        if of_image:
            k, v = of_image
            h = h + _attend(q, k, v, scale=None, upcast=self.upcast)
        return h.transpose(1, 2).flatten(2)

    def _by_head(self, projected: Tensor) -> Tensor:
        return projected.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, heads, N, head_channels)


def _attend(q: Tensor, k: Tensor, v: Tensor, *, scale: float | None, upcast: bool) -> Tensor:
    if upcast and q.dtype != torch.float32:
        return F.scaled_dot_product_attention(q.float(), k.float(), v.float(), scale=scale).to(q.dtype)
    return F.scaled_dot_product_attention(q, k, v, scale=scale)


class FusedSelfAttention(nn.Module):
    """An `Attention` of `x` to itself with one product for queries (already scaled), keys and values.

    For inference: it is built from an `Attention`, and the product's weights are fp32 until they are converted.

    Args:
        attention: what to compute.
        blocked_from: use `blocked_attention` in bf16 from this many keys on; None for never.
    """

    def __init__(self, attention: Attention, blocked_from: int | None = None) -> None:
        super().__init__()
        layers = (attention.query, attention.key, attention.value)
        self.heads, self.upcast, self.blocked_from = attention.heads, attention.upcast, blocked_from
        biased = attention.query.bias is not None
        scales = (attention.head_channels**-0.5, 1.0, 1.0)
        with torch.device("meta"):
            self.project = nn.Linear(layers[0].in_features, sum(layer.out_features for layer in layers), bias=biased)
        pairs = list(zip(scales, layers, strict=True))
        weight = torch.cat([scale * layer.weight.detach().float() for scale, layer in pairs])
        self.project.weight = nn.Parameter(weight, requires_grad=False)
        if biased:
            bias = torch.cat([scale * layer.bias.detach().float() for scale, layer in pairs])
            self.project.bias = nn.Parameter(bias, requires_grad=False)
        self.out = attention.out

    def forward(self, x: Tensor, keys_values: None = None, *, plus: Tensor | None = None) -> Tensor:
        """Map (B, N, C) to (B, N, C), with `plus` added."""
        return layer_plus(self.out, self.attend(x), plus)

    def attend(self, x: Tensor, keys_values: None = None) -> Tensor:
        """Do the same up to the last layer, `out`."""
        return self.attended(self.project(x))

    def attended(self, projected: Tensor) -> Tensor:
        """Do the same for queries, keys and values side by side, (B, N, 3 · inner)."""
        q, k, v = projected.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # (B, heads, N, d) each
        if self.blocked_from is not None and k.shape[2] >= self.blocked_from and q.dtype == torch.bfloat16:
            h = blocked_attention(q, k, v)  # its scores are never rounded: it needs no upcasting
        else:
            h = _attend(q, k, v, scale=1.0, upcast=self.upcast)
        return h.transpose(1, 2).flatten(2)


# Keys and values of the prompts, and perhaps of images beside them, for each attention that reads them.
KeysValues = Mapping[Attention, tuple[Tensor, ...]]


def repeat_rows(x: Tensor, rows: int) -> Tensor:
    """Repeat x (B, ...) to `rows`, a multiple of B, so that what the prompts of an image share is computed only once."""
    return x if len(x) == rows else torch.cat([x] * (rows // len(x)))  # unlike `repeat`, `cat` keeps channels_last


def add_rows(x: Tensor, y: Tensor) -> Tensor:
    """Add two tensors, of which one may have a row per image and the other one per prompt."""
    rows = max(len(x), len(y))
    return repeat_rows(x, rows) + repeat_rows(y, rows)


def _tokens(x: Tensor) -> Tensor:
    """Map (B, C, H, W) to (B, H·W, C)."""
    return x.flatten(2).transpose(1, 2)


class SpatialAttention(nn.Module):
    """Self-attention over the pixels of a feature map, with a residual: the middle of the autoencoder."""

    def __init__(self, channels: int, *, heads: int = 1, groups: int = 32, eps: float = 1e-6) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels, eps=eps)
        self.attention = Attention(channels, heads=heads, bias=True)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C, H, W)."""
        h = self.attention(_tokens(self.norm(x)), plus=_tokens(x))
        return h.transpose(1, 2).unflatten(-1, x.shape[-2:])


class GatedFeedForward(nn.Module):
    """Feed-forward layer with a GEGLU gate ("GLU Variants Improve Transformer", 2020), four times as wide inside."""

    def __init__(self, channels: int, *, expansion: int = 4) -> None:
        super().__init__()
        self.project = nn.Linear(channels, 2 * expansion * channels)
        self.out = nn.Linear(expansion * channels, channels)

    def forward(self, x: Tensor, *, plus: Tensor | None = None) -> Tensor:
        """Map (B, N, C) to (B, N, C), with `plus` added."""
        value, gate = self.project(x).chunk(2, dim=-1)
        return layer_plus(self.out, value * F.gelu(gate), plus)


class TransformerBlock(nn.Module):
    """Self-attention, cross-attention to the prompt and a feed-forward layer, each behind a LayerNorm."""

    def __init__(
        self, channels: int, *, heads: int, context_channels: int, only_cross: bool = False, upcast: bool = False
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels)
        self.attention1 = Attention(
            channels, heads=heads, context_channels=context_channels if only_cross else None, upcast=upcast
        )
        self.norm2 = nn.LayerNorm(channels)
        self.attention2 = Attention(channels, heads=heads, context_channels=context_channels, upcast=upcast)
        self.norm3 = nn.LayerNorm(channels)
        self.feed_forward = GatedFeedForward(channels)
        self.only_cross = only_cross

    def cross_attentions(self) -> Iterator[Attention]:
        """Yield the attentions that read the prompt."""
        if self.only_cross:
            yield self.attention1
        yield self.attention2

    def forward(self, x: Tensor, prompts: KeysValues) -> Tensor:
        """Map x (B, N, C), with the keys and values of k · B prompts, to (k · B, N, C)."""
        return self.attend(x, prompts.get(self.attention1), prompts[self.attention2])

    def attend(self, x: Tensor, own: tuple[Tensor, ...] | None, prompts: tuple[Tensor, ...]) -> Tensor:
        """Do so with the keys and values of the two attentions; None where the first attends to x itself."""
        rows = len(prompts[0])
        if self.only_cross:
            x = repeat_rows(x, rows)
        x = self.attention1(self.norm1(x), own, plus=x)
        x = repeat_rows(x, rows)
        x = self.attention2(self.norm2(x), prompts, plus=x)
        return self.feed_forward(self.norm3(x), plus=x)


class SpatialTransformer(nn.Module):
    """Transformer blocks over the pixels of a feature map ("High-Resolution Image Synthesis with Latent Diffusion", 2022).

    `linear` projects in and out with linear layers (Stable Diffusion 2) in place of 1×1 convolutions (1.x); their weights
    differ in shape, not in effect.
    """

    def __init__(
        self,
        channels: int,
        *,
        heads: int,
        context_channels: int,
        depth: int = 1,
        linear: bool = False,
        groups: int = 32,
        only_cross: bool = False,
        upcast: bool = False,
    ) -> None:
        super().__init__()
        self.linear = linear
        self.norm = nn.GroupNorm(groups, channels, eps=1e-6)
        self.project_in = nn.Linear(channels, channels) if linear else conv1x1(channels, channels)
        self.blocks = nn.ModuleList(
            TransformerBlock(
                channels, heads=heads, context_channels=context_channels, only_cross=only_cross, upcast=upcast
            )
            for _ in range(depth)
        )
        self.project_out = nn.Linear(channels, channels) if linear else conv1x1(channels, channels)

    def cross_attentions(self) -> Iterator[Attention]:
        """Yield the attentions that read the prompt."""
        for block in self.blocks:
            assert isinstance(block, TransformerBlock)
            yield from block.cross_attentions()

    def forward(self, x: Tensor, prompts: KeysValues) -> Tensor:
        """Map x (B, C, H, W), with the keys and values of k · B prompts, to (k · B, C, H, W)."""
        height, width = x.shape[-2:]
        h = self.norm(x)
        h = self.project_in(_tokens(h)) if self.linear else _tokens(self.project_in(h))
        for block in self.blocks:
            h = block(h, prompts)
        x = repeat_rows(x, len(h))
        if self.linear:
            return layer_plus(self.project_out, h, _tokens(x)).transpose(1, 2).unflatten(-1, (height, width))
        return layer_plus(self.project_out, h.transpose(1, 2).unflatten(-1, (height, width)), x)

"""Attention and the transformer blocks of the denoiser and the autoencoder."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from genpipe.vision.blocks import conv1x1


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
        self.heads = heads
        self.upcast = upcast
        self.query = nn.Linear(channels, inner, bias=bias)
        self.key = nn.Linear(context_channels, inner, bias=bias)
        self.value = nn.Linear(context_channels, inner, bias=bias)
        self.out = nn.Linear(inner, channels)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """(B, N, C) and an optional context (B, M, D) -> (B, N, C)."""
        context = x if context is None else context
        q, k, v = (
            projected.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, heads, N, head_channels)
            for projected in (self.query(x), self.key(context), self.value(context))
        )
        if self.upcast and x.dtype != torch.float32:
            h = F.scaled_dot_product_attention(q.float(), k.float(), v.float()).to(x.dtype)
        else:
            h = F.scaled_dot_product_attention(q, k, v)
        return self.out(h.transpose(1, 2).flatten(2))  # (B, N, C)


class SpatialAttention(nn.Module):
    """Self-attention over the pixels of a feature map, with a residual: the middle of the autoencoder."""

    def __init__(self, channels: int, *, heads: int = 1, groups: int = 32, eps: float = 1e-6) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels, eps=eps)
        self.attention = Attention(channels, heads=heads, bias=True)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        tokens = self.norm(x).flatten(2).transpose(1, 2)  # (B, H·W, C)
        return x + self.attention(tokens).transpose(1, 2).unflatten(-1, x.shape[-2:])


class GatedFeedForward(nn.Module):
    """Feed-forward layer with a GEGLU gate ("GLU Variants Improve Transformer", 2020), four times as wide inside."""

    def __init__(self, channels: int, *, expansion: int = 4) -> None:
        super().__init__()
        self.project = nn.Linear(channels, 2 * expansion * channels)
        self.out = nn.Linear(expansion * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, C) -> (B, N, C)."""
        value, gate = self.project(x).chunk(2, dim=-1)
        return self.out(value * F.gelu(gate))


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

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """(B, N, C) and a context (B, M, D) -> (B, N, C)."""
        x = x + self.attention1(self.norm1(x), context if self.only_cross else None)
        x = x + self.attention2(self.norm2(x), context)
        return x + self.feed_forward(self.norm3(x))


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

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """(B, C, H, W) and a context (B, M, D) -> (B, C, H, W)."""
        height, width = x.shape[-2:]
        h = self.norm(x)
        if self.linear:
            h = self.project_in(h.flatten(2).transpose(1, 2))  # (B, H·W, C)
        else:
            h = self.project_in(h).flatten(2).transpose(1, 2)
        for block in self.blocks:
            h = block(h, context)
        if self.linear:
            return x + self.project_out(h).transpose(1, 2).unflatten(-1, (height, width))
        return x + self.project_out(h.transpose(1, 2).unflatten(-1, (height, width)))

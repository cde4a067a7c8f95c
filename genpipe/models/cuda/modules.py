"""Modules of the networks whose norms, activations and additions run as Triton kernels.

Each is built from the plain module, whose weights it takes over, and computes the same up to rounding. It works in
channels_last, in any dtype, for inference.
"""

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from genpipe.blocks import ResidualBlock
from genpipe.models.attention import (
    Attention,
    FusedSelfAttention,
    KeysValues,
    SpatialTransformer,
    TransformerBlock,
    repeat_rows,
)
from genpipe.models.contracting import Level, Middle
from genpipe.models.cuda import kernels
from genpipe.models.cuda.fp8 import Fp8Linear, suits_fp8
from genpipe.models.cuda.group_norm import group_norm
from genpipe.models.stored import StoredLayer


def fuse(network: nn.Module) -> None:
    """Put the modules below in the place of the plain ones, in a network whose weights have their device and dtype.

    Blocks with weights that are stored in fewer bits stay as they are, but for their norms.
    """
    _fuse(network)
    for level in network.modules():
        if isinstance(level, Level | Middle):
            residuals, transformers = cast(nn.ModuleList, level.residuals), cast(nn.ModuleList, level.transformers)
            for residual, transformer in zip(residuals, transformers, strict=False):
                if isinstance(residual, FusedResidualBlock) and isinstance(transformer, FusedSpatialTransformer):
                    transformer.follow(residual)


def to_fp8(network: nn.Module) -> None:
    """Let the layers that follow the norms of fused transformer blocks multiply in fp8."""
    for block in network.modules():
        if isinstance(block, FusedTransformerBlock):
            for parent, name in (
                (block.attention1, "project" if isinstance(block.attention1, FusedSelfAttention) else "query"),
                (block.attention2, "query"),
                (block.feed_forward, "project"),
            ):
                layer = getattr(parent, name)
                if suits_fp8(layer):
                    parent.register_module(name, Fp8Linear(layer))


def _fuse(network: nn.Module) -> None:
    for name, child in network.named_children():
        if any(isinstance(module, StoredLayer) for module in child.modules()):
            _fuse(child)
        elif isinstance(child, ResidualBlock):
            network.register_module(name, FusedResidualBlock(child))
        elif isinstance(child, SpatialTransformer):
            network.register_module(name, FusedSpatialTransformer(child))
        elif isinstance(child, nn.GroupNorm):
            network.register_module(name, FusedGroupNorm(child))
        else:
            _fuse(child)


class FusedGroupNorm(nn.GroupNorm):
    """A `GroupNorm` of channels_last maps."""

    def __init__(self, norm: nn.GroupNorm) -> None:
        super().__init__(norm.num_groups, norm.num_channels, eps=norm.eps, device="meta")
        self.weight, self.bias = norm.weight, norm.bias

    def forward(
        self, x: Tensor, *, silu: bool = False, before: Tensor | None = None, shift: Tensor | None = None
    ) -> Tensor:
        """Map (B, C, H, W) to (B, C, H, W); the arguments are those of `group_norm`."""
        return group_norm(x, self.num_groups, self.weight, self.bias, self.eps, silu=silu, before=before, shift=shift)


class FusedResidualBlock(ResidualBlock):
    """A `ResidualBlock` of two convolutions and five kernels: biases and shift are added where the next kernel reads."""

    def __init__(self, block: ResidualBlock) -> None:
        nn.Module.__init__(self)
        self.norm1, self.norm2 = FusedGroupNorm(block.norm1), FusedGroupNorm(block.norm2)
        self.conv1, self.conv2 = block.conv1, block.conv2
        self.embedding, self.shortcut = block.embedding, block.shortcut
        assert block.conv2.bias is not None
        self.bias: Tensor
        self.register_buffer("bias", block.conv2.bias.detach().float())

    def forward(self, x: Tensor, shift: Tensor | None = None) -> Tensor:
        """Map (B, C_in, H, W) to (B, C_out, H, W); `shift` is (B or 1, C_out) where the block takes an embedding."""
        if (self.embedding is None) != (shift is None):
            raise ValueError("a residual block needs a shift where it was built with an embedding, and only there")
        h = self.norm1(x, silu=True)
        h = _without_bias(self.conv1, h)
        h = self.norm2(h, silu=True, before=self.conv1.bias, shift=shift)
        h = _without_bias(self.conv2, h)
        return kernels.add(h, _pixelwise(self.shortcut, x), self.bias)


class FusedTransformerBlock(TransformerBlock):
    """A `TransformerBlock` whose products add to x in place.

    The biases of its three output layers are not added to x, but where x is next read: `before` (4, C), in fp32, holds what
    x lacks at each norm, and when it leaves.

    Args:
        block: whose attention of x to itself may be fused already.
        lacking: what x lacks when it comes in, (C,) in fp32.
    """

    def __init__(self, block: TransformerBlock, lacking: Tensor) -> None:
        nn.Module.__init__(self)
        self.only_cross = block.only_cross
        self.norm1, self.attention1 = block.norm1, block.attention1
        self.norm2, self.attention2 = block.norm2, block.attention2
        self.norm3, self.feed_forward = block.norm3, block.feed_forward
        lacks = [lacking]
        for layer in (self.attention1.out, self.attention2.out, self.feed_forward.out):
            lacks.append(lacks[-1] + layer.bias.detach().float())
        self.before: Tensor
        self.register_buffer("before", torch.stack(lacks))

    def attend(self, x: Tensor, own: tuple[Tensor, ...] | None, prompts: tuple[Tensor, ...]) -> Tensor:
        """As `TransformerBlock`, but that x is overwritten."""
        rows = len(prompts[0])
        if self.only_cross:
            x = repeat_rows(x, rows)
        first = cast(nn.Module, self.attention1)
        if isinstance(first, FusedSelfAttention):
            h = first.attended(_projected(first.project, self.norm1, x, self.before[0]))
        else:
            assert isinstance(first, Attention) and own is not None
            h = first.attended(_projected(first.query, self.norm1, x, self.before[0]), own)
        x = repeat_rows(_plus(x, self.attention1.out, h), rows)
        h = self.attention2.attended(_projected(self.attention2.query, self.norm2, x, self.before[1]), prompts)
        x = _plus(x, self.attention2.out, h)
        h = _projected(self.feed_forward.project, self.norm3, x, self.before[2])
        return _plus(x, self.feed_forward.out, kernels.gated_gelu(h))


class FusedSpatialTransformer(SpatialTransformer):
    """A `SpatialTransformer` of `FusedTransformerBlock`s; its projections are products of pixels, not convolutions.

    One that follows a residual block lets that add the bias of its last product, and adds the product to x in place.
    """

    def __init__(self, transformer: SpatialTransformer) -> None:
        nn.Module.__init__(self)
        self.linear = transformer.linear
        self.norm = FusedGroupNorm(transformer.norm)
        self.project_in, self.project_out = transformer.project_in, transformer.project_out
        lacking = torch.zeros_like(transformer.norm.weight, dtype=torch.float32)
        blocks = []
        for block in transformer.blocks:
            assert isinstance(block, TransformerBlock)
            blocks.append(FusedTransformerBlock(block, lacking))
            lacking = blocks[-1].before[3]
        self.blocks = nn.ModuleList(blocks)
        assert self.project_out.bias is not None
        bias = self.project_out.bias.detach().float() + self.project_out.weight.detach().flatten(1).float() @ lacking
        self.bias: Tensor
        self.before: Tensor | None
        self.register_buffer("bias", bias)
        self.register_buffer("before", None)

    def follow(self, residual: FusedResidualBlock) -> None:
        """Run after a residual block, of whose output nothing else is made, and overwrite that."""
        residual.bias += self.bias
        self.before = -self.bias

    def forward(self, x: Tensor, prompts: KeysValues) -> Tensor:
        """Map x (B, C, H, W), with the keys and values of k · B prompts, to (k · B, C, H, W); see `follow`."""
        height, width = x.shape[-2:]
        h = self.norm(x, before=self.before).movedim(1, -1).flatten(1, 2)  # (B, H · W, C)
        h = F.linear(h, self.project_in.weight.flatten(1), self.project_in.bias)
        for block in self.blocks:
            h = block(h, prompts)
        x, weight = repeat_rows(x, len(h)), self.project_out.weight.flatten(1)
        if self.before is None:
            h = F.linear(h, weight, self.bias.to(h.dtype))
            return h.unflatten(1, (height, width)).movedim(-1, 1).add_(x)
        x.movedim(1, -1).view(-1, x.shape[1]).addmm_(h.flatten(0, 1), weight.T)
        return x


def _projected(layer: nn.Module, norm: nn.LayerNorm, x: Tensor, before: Tensor) -> Tensor:
    if isinstance(layer, Fp8Linear):
        return layer(*kernels.layer_norm_fp8(x, norm.weight, norm.bias, norm.eps, before=before))
    return layer(kernels.layer_norm(x, norm.weight, norm.bias, norm.eps, before=before))


def _plus(x: Tensor, layer: nn.Linear, h: Tensor) -> Tensor:
    """Add layer(h), less its bias, to x (B, N, C) in place, inside the product."""
    x.view(-1, x.shape[-1]).addmm_(h.reshape(-1, h.shape[-1]), layer.weight.T)
    return x


def _without_bias(layer: nn.Conv2d, x: Tensor) -> Tensor:
    return F.conv2d(x, layer.weight, None, layer.stride, layer.padding)


def _pixelwise(shortcut: nn.Module, x: Tensor) -> Tensor:
    """A 1×1 convolution as a product of pixels, which adds its bias itself; the identity as it is."""
    if not isinstance(shortcut, nn.Conv2d):
        return x
    x = x.contiguous(memory_format=torch.channels_last).movedim(1, -1)
    return F.linear(x, shortcut.weight.flatten(1), shortcut.bias).movedim(-1, 1)

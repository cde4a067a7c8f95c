"""Triton kernels for what lies between the products: each reads and writes a tensor once, and computes in fp32.

Maps are channels_last, so that a kernel sees a matrix of one row per pixel and one column per channel. Sizes of blocks are
fixed: nothing is measured at run time. Few numbers are constants of a kernel, so that few forms of it are compiled.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

# Numbers per program at a time; with `WARPS` warps that is 16 per thread, two loads of 16 bytes in 16 bits.
TILE, WARPS = 4096, 8
# Channels per program of kernels that know no groups: 128 bytes in 16 bits, what a device fetches at once.
COLUMNS = 64


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float, *, before: Tensor) -> Tensor:
    """LayerNorm ("Layer Normalization", 2016) of x + before, for x (..., C) and the others (C,)."""
    result = torch.empty_like(x, memory_format=torch.contiguous_format)
    _layer_norm_into(result, None, x, weight, bias, eps, before)
    return result


def layer_norm_fp8(x: Tensor, weight: Tensor, bias: Tensor, eps: float, *, before: Tensor) -> tuple[Tensor, Tensor]:
    """Do the same in fp8 (e4m3), (..., C), each row divided by a scale of its own, (rows, 1) in fp32."""
    result = torch.empty(x.shape, dtype=torch.float8_e4m3fn, device=x.device)
    scales = torch.empty(x.numel() // x.shape[-1], 1, dtype=torch.float32, device=x.device)
    _layer_norm_into(result, scales, x, weight, bias, eps, before)
    return result, scales


def _layer_norm_into(
    result: Tensor, scales: Tensor | None, x: Tensor, weight: Tensor, bias: Tensor, eps: float, before: Tensor
) -> None:
    x = x.contiguous()
    channels = x.shape[-1]
    count, padded = x.numel() // channels, power(channels)
    tile = max(1, TILE // padded)
    given = x, before, weight, bias, result, weight if scales is None else scales
    constants = {"CHANNELS": channels, "TILE": tile, "C": padded, "SCALED": scales is not None}
    launch(_layer_norm, (divided(count, tile),), *given, count, eps, **constants)


def gated_gelu(x: Tensor) -> Tensor:
    """The first half of x (..., 2C) times GELU of the second ("GLU Variants Improve Transformer", 2020), (..., C)."""
    x = x.contiguous()
    channels = x.shape[-1] // 2
    count, block = x.numel() // (2 * channels), 256
    result = x.new_empty(*x.shape[:-1], channels)
    tile = TILE // block
    grid = divided(count, tile), divided(channels, block)
    launch(_gated_gelu, grid, x, result, count, channels, TILE=tile, C=block)
    return result


def add(h: Tensor, x: Tensor, bias: Tensor) -> Tensor:
    """Give h + x + bias of maps (B, C, H, W) and one number per channel (C,), in the place of h, channels_last."""
    h, x = (one.contiguous(memory_format=torch.channels_last) for one in (h, x))
    channels = h.shape[1]
    count, block = h.numel() // channels, COLUMNS
    tile = TILE // block
    grid = divided(count, tile), divided(channels, block)
    launch(_add, grid, h, x, bias, count, channels, TILE=tile, C=block)
    return h


def divided(count: int, size: int) -> int:
    """How many parts of a size hold a count, the last perhaps in part."""
    return -(-count // size)


def power(count: int) -> int:
    """The least power of two that is no less: blocks have such sides."""
    return 1 << (count - 1).bit_length()


def launch(kernel: Any, grid: tuple[int, ...], *given: Tensor | float, **constants: int) -> None:
    with torch.cuda.device_of(given[0]):
        kernel[grid](*given, **constants, num_warps=WARPS)


@triton.jit(do_not_specialize=["count", "eps"])
def _layer_norm(
    x, before, weight, bias, result, scales, count, eps,
    CHANNELS: tl.constexpr, TILE: tl.constexpr, C: tl.constexpr, SCALED: tl.constexpr,
):  # fmt: skip
    first = tl.program_id(0) * TILE
    row, column = tl.arange(0, TILE), tl.arange(0, C)
    there = column < CHANNELS
    inside = (row < count - first)[:, None] & there[None, :]
    tile = first.to(tl.int64) * CHANNELS + (row * CHANNELS)[:, None] + column[None, :]
    value = tl.load(x + tile, mask=inside, other=0.0).to(tl.float32)
    value += tl.load(before + column, mask=there, other=0.0).to(tl.float32)[None, :]
    value -= (tl.sum(value, 1) / CHANNELS)[:, None]
    value = tl.where(there[None, :], value, 0.0)
    value *= tl.rsqrt(tl.sum(value * value, 1) / CHANNELS + eps)[:, None]
    value *= tl.load(weight + column, mask=there, other=0.0).to(tl.float32)[None, :]
    value += tl.load(bias + column, mask=there, other=0.0).to(tl.float32)[None, :]
    if SCALED:
        scale = tl.maximum(tl.max(tl.abs(value), 1), 1e-12) / 448.0  # the largest number of e4m3
        value /= scale[:, None]
        tl.store(scales + first + row, scale, mask=row < count - first)
    tl.store(result + tile, value.to(result.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["count"])
def _gated_gelu(x, result, count, channels, TILE: tl.constexpr, C: tl.constexpr):
    first = tl.program_id(0) * TILE
    row, column = tl.arange(0, TILE), tl.program_id(1) * C + tl.arange(0, C)
    inside = (row < count - first)[:, None] & (column < channels)[None, :]
    tile = (row * channels)[:, None] + column[None, :]
    x += first.to(tl.int64) * 2 * channels
    wide = (row * 2 * channels)[:, None] + column[None, :]
    value = tl.load(x + wide, mask=inside, other=0.0).to(tl.float32)
    gate = tl.load(x + wide + channels, mask=inside, other=0.0).to(tl.float32)
    value *= 0.5 * gate * (1.0 + tl.erf(gate * 0.7071067811865476))
    tl.store(result + first.to(tl.int64) * channels + tile, value.to(result.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["count"])
def _add(h, x, bias, count, channels, TILE: tl.constexpr, C: tl.constexpr):
    first = tl.program_id(0) * TILE
    row, column = tl.arange(0, TILE), tl.program_id(1) * C + tl.arange(0, C)
    there = column < channels
    inside = (row < count - first)[:, None] & there[None, :]
    tile = first.to(tl.int64) * channels + (row * channels)[:, None] + column[None, :]
    value = tl.load(h + tile, mask=inside, other=0.0).to(tl.float32)
    value += tl.load(x + tile, mask=inside, other=0.0).to(tl.float32)
    value += tl.load(bias + column, mask=there, other=0.0).to(tl.float32)[None, :]
    tl.store(h + tile, value.to(h.dtype.element_ty), mask=inside)

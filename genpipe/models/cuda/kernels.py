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
# Programs that fill a large device several times over, so that the last ones to finish leave little of it idle.
PROGRAMS = 1056
# Parts that the pixels of an image are summed in, at most, and how many partial sums are added at a time.
PIECES, CHUNK = 128, 64


def group_norm(
    x: Tensor,
    groups: int,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    *,
    silu: bool = False,
    before: Tensor | None = None,
    shift: Tensor | None = None,
) -> Tensor:
    """GroupNorm ("Group Normalization", 2018) of x + before + shift, and SiLU of it.

    Args:
        x: (B, C, H, W).
        groups: of neighbouring channels.
        weight, bias: (C,).
        before: (C,), added to every image first, as the bias of the convolution that gave x.
        shift: (B or 1, C), added first too, of stride 1 along the channels.

    Returns:
        (B, C, H, W), channels_last.
    """
    x = x.contiguous(memory_format=torch.channels_last)
    batch, channels, height, width = x.shape
    rows, per_group = height * width, channels // groups
    padded = _power(groups), _power(per_group)
    tile = max(1, TILE // (padded[0] * padded[1]))
    wanted = min(_divided(PROGRAMS, batch), _divided(rows, tile))
    part = _divided(_divided(rows, wanted), tile) * tile
    summed = _divided(_divided(rows, min(wanted, PIECES)), tile) * tile
    pieces = _divided(rows, summed)
    sums = torch.empty(batch, pieces, 2, groups, dtype=torch.float32, device=x.device)
    result = torch.empty_like(x)
    stride = 0 if shift is None or len(shift) == 1 else shift.stride(0)
    given = x, weight if before is None else before, weight if shift is None else shift, sums
    has = int(before is not None), int(shift is not None)
    constants = {"CHANNELS": channels, "GROUPS": groups, "PER_GROUP": per_group}
    constants |= {"TILE": tile, "G": padded[0], "W": padded[1]}
    _launch(_moments, (pieces, batch), *given, rows, summed, stride, *has, **constants)
    grid = _divided(rows, part), batch
    numbers = rows, part, pieces, stride, eps, *has, int(silu)
    _launch(_normalise, grid, *given, weight, bias, result, *numbers, **constants, CHUNK=CHUNK)
    return result


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float, *, before: Tensor) -> Tensor:
    """LayerNorm ("Layer Normalization", 2016) of x + before, for x (..., C) and the others (C,)."""
    x = x.contiguous()
    channels = x.shape[-1]
    count, padded = x.numel() // channels, _power(channels)
    tile = max(1, TILE // padded)
    result = torch.empty_like(x)
    grid = (_divided(count, tile),)
    _launch(_layer_norm, grid, x, before, weight, bias, result, count, eps, CHANNELS=channels, TILE=tile, C=padded)
    return result


def gated_gelu(x: Tensor) -> Tensor:
    """The first half of x (..., 2C) times GELU of the second ("GLU Variants Improve Transformer", 2020), (..., C)."""
    x = x.contiguous()
    channels = x.shape[-1] // 2
    count, block = x.numel() // (2 * channels), 256
    result = x.new_empty(*x.shape[:-1], channels)
    tile = TILE // block
    grid = _divided(count, tile), _divided(channels, block)
    _launch(_gated_gelu, grid, x, result, count, channels, TILE=tile, C=block)
    return result


def add(h: Tensor, x: Tensor, bias: Tensor) -> Tensor:
    """Give h + x + bias of maps (B, C, H, W) and one number per channel (C,), in the place of h, channels_last."""
    h, x = (one.contiguous(memory_format=torch.channels_last) for one in (h, x))
    channels = h.shape[1]
    count, block = h.numel() // channels, 64
    tile = TILE // block
    grid = _divided(count, tile), _divided(channels, block)
    _launch(_add, grid, h, x, bias, count, channels, TILE=tile, C=block)
    return h


def _divided(count: int, size: int) -> int:
    """How many parts of a size hold a count, the last perhaps in part."""
    return -(-count // size)


def _power(count: int) -> int:
    """The least power of two that is no less: blocks have such sides."""
    return 1 << (count - 1).bit_length()


def _launch(kernel: Any, grid: tuple[int, ...], *given: Tensor | float, **constants: int) -> None:
    with torch.cuda.device_of(given[0]):
        kernel[grid](*given, **constants, num_warps=WARPS)


@triton.jit
def _added(before, shift, offsets, mask, has_before, has_shift):
    """What is added to channels before they are normalised."""
    value = tl.load(before + offsets, mask=mask & (has_before > 0), other=0.0).to(tl.float32)
    return value + tl.load(shift + offsets, mask=mask & (has_shift > 0), other=0.0).to(tl.float32)


@triton.jit
def _pivot(
    x, before, shift, has_before, has_shift, GROUPS: tl.constexpr, PER_GROUP: tl.constexpr, G: tl.constexpr
):  # fmt: skip
    """A value of each group, which is subtracted before squares are summed: else they would cancel where means are large."""
    group = tl.arange(0, G)
    mask = group < GROUPS
    first = tl.load(x + group * PER_GROUP, mask=mask, other=0.0).to(tl.float32)
    return first + _added(before, shift, group * PER_GROUP, mask, has_before, has_shift)


@triton.jit(do_not_specialize=["rows", "part", "stride", "has_before", "has_shift"])
def _moments(
    x, before, shift, sums, rows, part, stride, has_before, has_shift,
    CHANNELS: tl.constexpr, GROUPS: tl.constexpr, PER_GROUP: tl.constexpr, TILE: tl.constexpr, G: tl.constexpr, W: tl.constexpr,
):  # fmt: skip
    """Sum each group, less its pivot, and its squares over one part of an image's pixels."""
    piece, image = tl.program_id(0), tl.program_id(1)
    x += image.to(tl.int64) * rows * CHANNELS
    shift += image * stride
    group, channel = tl.arange(0, G), tl.arange(0, W)
    columns = group[:, None] * PER_GROUP + channel[None, :]  # (G, W)
    mask = (group[:, None] < GROUPS) & (channel[None, :] < PER_GROUP)
    pivot = _pivot(x, before, shift, has_before, has_shift, GROUPS, PER_GROUP, G)
    added = _added(before, shift, columns, mask, has_before, has_shift) - pivot[:, None]
    total = tl.zeros((TILE, G, W), tl.float32)
    squares = tl.zeros((TILE, G, W), tl.float32)
    top = piece * part
    last = tl.minimum(top + part, rows)
    row = tl.arange(0, TILE)
    while top < last:
        inside = (row < last - top)[:, None, None] & mask[None, :, :]
        tile = x + top.to(tl.int64) * CHANNELS + (row * CHANNELS)[:, None, None] + columns[None, :, :]
        value = tl.load(tile, mask=inside, other=0.0).to(tl.float32) + added[None, :, :]
        value = tl.where(inside, value, 0.0)
        total += value
        squares += value * value
        top += TILE
    sums += (image * tl.num_programs(0) + piece) * 2 * GROUPS + group
    tl.store(sums, tl.sum(tl.sum(total, 2), 0), mask=group < GROUPS)
    tl.store(sums + GROUPS, tl.sum(tl.sum(squares, 2), 0), mask=group < GROUPS)


@triton.jit(do_not_specialize=["rows", "part", "pieces", "stride", "eps", "has_before", "has_shift", "silu"])
def _normalise(
    x, before, shift, sums, weight, bias, result, rows, part, pieces, stride, eps, has_before, has_shift, silu,
    CHANNELS: tl.constexpr, GROUPS: tl.constexpr, PER_GROUP: tl.constexpr, TILE: tl.constexpr, G: tl.constexpr, W: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """Normalise one part of an image's pixels by the sums of all parts."""
    piece, image = tl.program_id(0), tl.program_id(1)
    x += image.to(tl.int64) * rows * CHANNELS
    result += image.to(tl.int64) * rows * CHANNELS
    shift += image * stride
    sums += image * pieces * 2 * GROUPS
    group, channel, chunk = tl.arange(0, G), tl.arange(0, W), tl.arange(0, CHUNK)
    total = tl.zeros((G,), tl.float32)
    squares = tl.zeros((G,), tl.float32)
    start = 0
    while start < pieces:
        index = ((start + chunk) * 2 * GROUPS)[:, None] + group[None, :]
        there = (start + chunk < pieces)[:, None] & (group < GROUPS)[None, :]
        total += tl.sum(tl.load(sums + index, mask=there, other=0.0), 0)
        squares += tl.sum(tl.load(sums + index + GROUPS, mask=there, other=0.0), 0)
        start += CHUNK
    count = rows.to(tl.float32) * PER_GROUP
    mean = total / count
    variance = tl.maximum(squares / count - mean * mean, 0.0)
    mean += _pivot(x, before, shift, has_before, has_shift, GROUPS, PER_GROUP, G)

    columns = group[:, None] * PER_GROUP + channel[None, :]  # (G, W)
    mask = (group[:, None] < GROUPS) & (channel[None, :] < PER_GROUP)
    scale = tl.load(weight + columns, mask=mask, other=0.0).to(tl.float32) * tl.rsqrt(variance + eps)[:, None]
    offset = (_added(before, shift, columns, mask, has_before, has_shift) - mean[:, None]) * scale
    offset += tl.load(bias + columns, mask=mask, other=0.0).to(tl.float32)
    top = piece * part
    last = tl.minimum(top + part, rows)
    row = tl.arange(0, TILE)
    while top < last:
        inside = (row < last - top)[:, None, None] & mask[None, :, :]
        tile = top.to(tl.int64) * CHANNELS + (row * CHANNELS)[:, None, None] + columns[None, :, :]
        value = tl.load(x + tile, mask=inside, other=0.0).to(tl.float32) * scale[None, :, :] + offset[None, :, :]
        value = tl.where(silu > 0, value / (1.0 + tl.exp(-value)), value)
        tl.store(result + tile, value.to(result.dtype.element_ty), mask=inside)
        top += TILE


@triton.jit(do_not_specialize=["count", "eps"])
def _layer_norm(
    x, before, weight, bias, result, count, eps, CHANNELS: tl.constexpr, TILE: tl.constexpr, C: tl.constexpr
):
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

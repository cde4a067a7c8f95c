"""GroupNorm of channels_last maps in two Triton kernels: the sums of each group, then the rest in one reading and writing."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from genpipe.models.cuda.kernels import COLUMNS, TILE, divided, launch, power

# Programs of the two kernels of a group norm, at most: three and four times what an H100 runs at once.
SUMMING, NORMALISING = 1188, 2112
# Parts that the pixels of an image are summed in, at most.
PIECES = 32


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
    wide = 128 if per_group <= 64 else power(3 * per_group)
    together = min(groups, wide // per_group)  # groups per program
    blocks, tile = divided(groups, together), max(1, TILE // wide)
    pieces = max(1, min(PIECES, divided(rows, tile), SUMMING // (batch * blocks)))
    part = divided(divided(rows, pieces), tile) * tile
    pieces = divided(rows, part)
    sums = torch.empty(batch, pieces, 2, groups, dtype=torch.float32, device=x.device)
    result = torch.empty_like(x)
    stride = 0 if shift is None or len(shift) == 1 else shift.stride(0)
    given = x, weight if before is None else before, weight if shift is None else shift, sums
    numbers = rows, channels, stride, int(before is not None), int(shift is not None)
    constants = {"STEP": together * per_group, "TILE": tile, "C": wide, "G": max(32, power(together))}
    launch(_moments, (pieces, blocks, batch), *given, *numbers, part, groups, per_group, together, **constants)

    tile, blocks = TILE // COLUMNS, divided(channels, COLUMNS)
    part = divided(divided(rows, max(1, NORMALISING // (batch * blocks))), tile) * tile
    grid = divided(rows, part), blocks, batch
    numbers = *numbers, part, groups, per_group, pieces, eps, int(silu)
    launch(_normalise, grid, *given, weight, bias, result, *numbers, TILE=tile, C=COLUMNS, PIECES=PIECES)
    return result


@triton.jit
def _added(before, shift, columns, mask, has_before, has_shift):
    """What is added to channels before they are normalised."""
    # "!= 0": in the interpreter of later releases a scalar's comparison is a number, and so is what it is joined with.
    value = tl.load(before + columns, mask=(mask & (has_before > 0)) != 0, other=0.0).to(tl.float32)
    return value + tl.load(shift + columns, mask=(mask & (has_shift > 0)) != 0, other=0.0).to(tl.float32)


@triton.jit
def _value(x, before, shift, columns, mask, has_before, has_shift):
    """The first pixel with what is added to it.

    The first channel of a group is subtracted before squares are summed: else they would cancel where means are large.
    """
    first = tl.load(x + columns, mask=mask, other=0.0).to(tl.float32)
    return first + _added(before, shift, columns, mask, has_before, has_shift)


@triton.jit(
    do_not_specialize=[
        "rows", "stride", "has_before", "has_shift", "part", "groups", "per_group", "together"
    ]
)  # fmt: skip
def _moments(
    x, before, shift, sums, rows, channels, stride, has_before, has_shift, part, groups, per_group, together,
    STEP: tl.constexpr, TILE: tl.constexpr, C: tl.constexpr, G: tl.constexpr,
):  # fmt: skip
    """Sum some groups, less their first values, and their squares over one part of an image's pixels."""
    piece, image = tl.program_id(0), tl.program_id(2)
    x += image.to(tl.int64) * rows * channels
    shift += image * stride
    lane = tl.arange(0, C)
    column = tl.program_id(1) * STEP + lane
    there = (lane < STEP) & (column < channels)
    first = _value(x, before, shift, column // per_group * per_group, there, has_before, has_shift)
    added = _added(before, shift, column, there, has_before, has_shift) - first
    total = tl.zeros((TILE, C), tl.float32)
    squares = tl.zeros((TILE, C), tl.float32)
    top = piece * part
    last = tl.minimum(top + part, rows)
    row = tl.arange(0, TILE)
    while top < last:
        inside = (row < last - top)[:, None] & there[None, :]
        tile = x + top.to(tl.int64) * channels + (row * channels)[:, None] + column[None, :]
        value = tl.load(tile, mask=inside, other=0.0).to(tl.float32) + added[None, :]
        value = tl.where(inside, value, 0.0)
        total += value
        squares += value * value
        top += TILE
    index = tl.arange(0, G)
    group = tl.program_id(1) * together + index
    mine = (column // per_group)[None, :] == group[:, None]  # (G, C)
    sums += (image * tl.num_programs(0) + piece) * 2 * groups + group
    stored = (index < together) & (group < groups)
    tl.store(sums, tl.sum(tl.where(mine, tl.expand_dims(tl.sum(total, 0), 0), 0.0), 1), mask=stored)
    tl.store(sums + groups, tl.sum(tl.where(mine, tl.expand_dims(tl.sum(squares, 0), 0), 0.0), 1), mask=stored)


@triton.jit(
    do_not_specialize=[
        "rows", "stride", "has_before", "has_shift", "part", "groups", "per_group", "pieces", "eps", "silu"
    ]
)  # fmt: skip
def _normalise(
    x, before, shift, sums, weight, bias, result,
    rows, channels, stride, has_before, has_shift, part, groups, per_group, pieces, eps, silu,
    TILE: tl.constexpr, C: tl.constexpr, PIECES: tl.constexpr,
):  # fmt: skip
    """Normalise some channels of one part of an image's pixels by the sums of all parts."""
    image = tl.program_id(2)
    x += image.to(tl.int64) * rows * channels
    result += image.to(tl.int64) * rows * channels
    shift += image * stride
    column, piece = tl.program_id(1) * C + tl.arange(0, C), tl.arange(0, PIECES)
    there = column < channels
    group = column // per_group
    index = ((image * pieces + piece) * 2 * groups)[:, None] + group[None, :]
    mask = (piece < pieces)[:, None] & there[None, :]
    count = rows.to(tl.float32) * per_group
    mean = tl.sum(tl.load(sums + index, mask=mask, other=0.0), 0) / count
    variance = tl.sum(tl.load(sums + groups + index, mask=mask, other=0.0), 0) / count - mean * mean
    mean += _value(x, before, shift, group * per_group, there, has_before, has_shift)
    scale = tl.load(weight + column, mask=there, other=0.0).to(tl.float32)
    scale *= tl.rsqrt(tl.maximum(variance, 0.0) + eps)
    offset = (_added(before, shift, column, there, has_before, has_shift) - mean) * scale
    offset += tl.load(bias + column, mask=there, other=0.0).to(tl.float32)
    top = tl.program_id(0) * part
    last = tl.minimum(top + part, rows)
    row = tl.arange(0, TILE)
    while top < last:
        inside = (row < last - top)[:, None] & there[None, :]
        tile = top.to(tl.int64) * channels + (row * channels)[:, None] + column[None, :]
        value = tl.load(x + tile, mask=inside, other=0.0).to(tl.float32) * scale[None, :] + offset[None, :]
        value = tl.where(silu > 0, value / (1.0 + tl.exp(-value)), value)
        tl.store(result + tile, value.to(result.dtype.element_ty), mask=inside)
        top += TILE

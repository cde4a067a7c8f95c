"""Networks over large maps, in overlapping squares, so that memory stays flat."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

SMALLEST_TILE = 16  # latent pixels: with less, a tile is all overlap


def over_tiles(apply: Callable[[Tensor], Tensor], latents: Tensor, *, tile: int, factor: int) -> Tensor:
    """Apply a function to squares of latents, which are blended where they overlap, by a quarter of their side.

    Args:
        apply: of latents (B, C, h, w), to maps (B', C', h · factor, w · factor).
        latents: (B, C, h, w); to those that fit into one tile it is applied in one piece.
        tile: side of a square in latent pixels, 16 or more.
        factor: pixels of a result per latent pixel, in each direction.

    Returns:
        (B', C', h · factor, w · factor), in fp32 where there is more than one tile.

    Raises:
        ValueError: `tile` is too small.
    """
    if tile < SMALLEST_TILE:
        raise ValueError(f"tile {tile} is too small: use {SMALLEST_TILE} latent pixels or more")
    height, width = latents.shape[-2:]
    if max(height, width) <= tile:
        return apply(latents)
    overlap = tile // 4
    pixels = weights = None
    for top in _tile_starts(height, tile, tile - overlap):
        for left in _tile_starts(width, tile, tile - overlap):
            piece = apply(latents[:, :, top : top + tile, left : left + tile]).float()
            ramp = _ramp(piece.shape[-2], overlap * factor)[:, None] * _ramp(piece.shape[-1], overlap * factor)
            ramp = ramp.to(piece.device)
            if pixels is None or weights is None:
                pixels = piece.new_zeros(*piece.shape[:2], height * factor, width * factor)
                weights = piece.new_zeros(height * factor, width * factor)
            rows = slice(top * factor, top * factor + piece.shape[-2])
            columns = slice(left * factor, left * factor + piece.shape[-1])
            pixels[:, :, rows, columns] += piece * ramp
            weights[rows, columns] += ramp
    assert pixels is not None and weights is not None
    return pixels / weights


def _tile_starts(length: int, tile: int, stride: int) -> Iterator[int]:
    """Starts of tiles that cover `length`, the last flush with the end."""
    start = 0
    while start + tile < length:
        yield start
        start += stride
    yield max(length - tile, 0)


def _ramp(length: int, overlap: int) -> Tensor:
    """Blending weights (length,) that rise from near 0 over `overlap` pixels at either end."""
    position = torch.arange(length, dtype=torch.float32) + 0.5
    return torch.minimum(position, length - position).div(overlap).clamp(max=1.0)

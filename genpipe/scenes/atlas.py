"""The sprites: one shipped image holding a square per sprite, written by scripts/make/sprites.py."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

SPRITE_SIDE = 128  # pixels per side of a sprite


@cache
def owners() -> tuple[str, ...]:
    """Return the concept that each sprite shows, in the order of the atlas."""
    return tuple((files("genpipe.scenes") / "atlas.txt").read_text(encoding="utf-8").split("\n")[:-1])


@cache
def variants(concept: str) -> tuple[int, ...]:
    """Return the numbers of a concept's sprites; the first is the canonical one."""
    return tuple(i for i, owner in enumerate(owners()) if owner == concept)


@cache
def sprites() -> Tensor:
    """Return all sprites, premultiplied RGBA: (N, 4, SPRITE_SIDE, SPRITE_SIDE) uint8."""
    import numpy as np
    import torch
    from PIL import Image

    with (files("genpipe.scenes") / "atlas.webp").open("rb") as file, Image.open(file) as image:
        sheet = np.asarray(image.convert("RGBA").convert("RGBa"))
    rows, columns = sheet.shape[0] // SPRITE_SIDE, sheet.shape[1] // SPRITE_SIDE
    squares = sheet.reshape(rows, SPRITE_SIDE, columns, SPRITE_SIDE, 4).transpose(0, 2, 4, 1, 3)
    return torch.from_numpy(squares.reshape(rows * columns, 4, SPRITE_SIDE, SPRITE_SIDE)[: len(owners())].copy())

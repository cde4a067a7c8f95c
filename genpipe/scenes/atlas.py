"""The sprites: one shipped picture holding a square per sprite, written by scripts/make/sprites.py."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

SIDE = 128  # pixels a side of one sprite


@cache
def owners() -> tuple[str, ...]:
    """The concept that each sprite shows, in the order of the atlas."""
    return tuple((files("genpipe.scenes") / "atlas.txt").read_text(encoding="utf-8").split("\n")[:-1])


@cache
def variants(concept: str) -> tuple[int, ...]:
    """The sprites of a concept; the first is the canonical one."""
    return tuple(i for i, owner in enumerate(owners()) if owner == concept)


@cache
def sprites() -> Tensor:
    """All sprites, premultiplied RGBA: (N, 4, SIDE, SIDE) uint8."""
    import numpy as np
    import torch
    from PIL import Image

    with (files("genpipe.scenes") / "atlas.webp").open("rb") as file, Image.open(file) as image:
        sheet = np.asarray(image.convert("RGBA").convert("RGBa"))
    rows, columns = sheet.shape[0] // SIDE, sheet.shape[1] // SIDE
    squares = sheet.reshape(rows, SIDE, columns, SIDE, 4).transpose(0, 2, 4, 1, 3)
    return torch.from_numpy(squares.reshape(rows * columns, 4, SIDE, SIDE)[: len(owners())].copy())

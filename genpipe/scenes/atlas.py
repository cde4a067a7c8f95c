"""The sprites: one shipped image holding a square per sprite, written by scripts/make/sprites.py."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

SPRITE_SIDE = 256  # pixels per side of a sprite
SMALLEST = 16  # and of its smallest version


@cache
def owners() -> tuple[str, ...]:
    """Return the concept that each sprite shows, in the order of the atlas."""
    return tuple((files("genpipe.scenes") / "atlas.txt").read_text(encoding="utf-8").split("\n")[:-1])


@cache
def variants(concept: str) -> tuple[int, ...]:
    """Return the numbers of a concept's sprites; the first is the canonical one."""
    return tuple(i for i, owner in enumerate(owners()) if owner == concept)


@cache
def pyramid(largest: int) -> tuple[Tensor, ...]:
    """Return all sprites, premultiplied RGBA, in halved sizes: (N, 4, S, S) uint8 with S from `largest` to SMALLEST.

    Each is the average of the one before it, from the drawings of SPRITE_SIDE pixels on; those larger than `largest`
    are not kept.
    """
    import torch
    import torch.nn.functional as F

    with (files("genpipe.scenes") / "atlas.webp").open("rb") as file:
        level, levels = read_sprites(file, len(owners())), []
    while True:
        if level.shape[-1] <= largest:
            levels.append(level)
        if level.shape[-1] <= SMALLEST:
            return tuple(levels)
        level = torch.cat([F.avg_pool2d(part.float(), 2).round().to(torch.uint8) for part in level.split(64)])


def read_sprites(file: IO[bytes], count: int) -> Tensor:
    """Read the sprites of an atlas: (count, 4, SPRITE_SIDE, SPRITE_SIDE) uint8, premultiplied RGBA.

    Raises:
        ValueError: there are fewer.
    """
    import numpy as np
    import torch
    from PIL import Image

    bands = []
    with Image.open(file) as image:
        for top in range(0, image.height, SPRITE_SIDE):
            band = image.crop((0, top, image.width, top + SPRITE_SIDE)).convert("RGBA").convert("RGBa")
            squares = np.asarray(band).reshape(SPRITE_SIDE, -1, SPRITE_SIDE, 4).transpose(1, 3, 0, 2)
            bands.append(torch.from_numpy(squares.copy()))
    sprites = torch.cat(bands)
    if len(sprites) < count:
        raise ValueError(
            f"the atlas of sprites has room for {len(sprites)}, not for the {count} that atlas.txt names: install genpipe "
            "again, or make both anew with python -m scripts.make.sprites"
        )
    return sprites[:count]

"""What a scene is, and how scenes are drawn at random for training.

Layouts are canonical and of low entropy on purpose, since a small network has to learn them: one large centred object
in the setting that suits it is what a bare noun means, and everything else departs from that in one or two named ways.
"""

import random
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import accumulate

from genpipe.scenes import atlas
from genpipe.scenes.colours import COLOURS
from genpipe.scenes.concepts import concepts, names
from genpipe.scenes.places import LOOK, SETTINGS

LARGE, SMALL, BIG = 0.80, 0.40, 0.97  # share of the image's side
RELATIONS = {  # where the first object and the second one stand
    "left": ((0.27, 0.52), (0.73, 0.52)),
    "right": ((0.73, 0.52), (0.27, 0.52)),
    "above": ((0.5, 0.26), (0.5, 0.74)),
    "below": ((0.5, 0.74), (0.5, 0.26)),
}
ROWS = {  # where one, two, three or four of a thing stand
    1: ((0.5, 0.5),),
    2: ((0.27, 0.52), (0.73, 0.52)),
    3: ((0.5, 0.27), (0.27, 0.73), (0.73, 0.73)),
    4: ((0.27, 0.27), (0.73, 0.27), (0.27, 0.73), (0.73, 0.73)),
}
HALF = 0.46  # size of an object that shares the image
FAVOURITES = {"pirate ship": 8.0, "ship": 3.0, "sailboat": 2.0}  # drawn so many times more often
KINDS = {"bare": 0.42, "setting": 0.25, "colour": 0.11, "size": 0.04, "pair": 0.10, "count": 0.06, "place": 0.02}
UNUSUAL = 0.15  # how often a concept's other sprites stand in for its first
HELD_OUT_SHARE = 20  # one combination in this many


@dataclass(frozen=True)
class Placed:
    """One object: its centre and size in shares of the image's side, turned by `rotation` degrees clockwise."""

    concept: str
    sprite: int
    x: float
    y: float
    scale: float
    flip: bool = False
    rotation: float = 0.0
    colour: str | None = None


@dataclass(frozen=True)
class Scene:
    """An image to be drawn.

    Attributes:
        kind: the pattern that it follows, one of KINDS; a "place" has no objects.
        look: LOOK numbers in [0, 1] that vary the setting.
        relation: how a pair stands, if a caption is to say so.
        size: "small" or "big" where the object is.
    """

    kind: str
    setting: str
    look: tuple[float, ...]
    objects: tuple[Placed, ...]
    relation: str | None = None
    size: str | None = None


def _held(*combination: str) -> bool:
    return zlib.crc32("|".join(combination).encode()) % HELD_OUT_SHARE == 0


def held_out(scene: Scene) -> bool:
    """Return whether the scene shows a combination that no training image may show.

    That is an object in a setting that is not its home, an object in a colour, or a pair. The choice is a fixed function
    of the names (CRC-32).
    """
    for placed in scene.objects:
        if placed.colour and _held("colour", placed.concept, placed.colour):
            return True
        if scene.setting != concepts()[placed.concept].home and _held("setting", placed.concept, scene.setting):
            return True
    pair = sorted({placed.concept for placed in scene.objects})
    return len(pair) == 2 and _held("pair", *pair)


@cache
def _weights(pool: tuple[str, ...]) -> tuple[float, ...]:
    return tuple(accumulate(FAVOURITES.get(name, 1.0) for name in pool))


def canonical(concept: str) -> Scene:
    """Return the one scene that a bare noun means: large, centred, at home, nothing left to chance."""
    placed = Placed(concept, atlas.variants(concept)[0], 0.5, 0.5, LARGE)
    return Scene("bare", concepts()[concept].home, (0.5,) * LOOK, (placed,))


def _variant(rng: random.Random, concept: str) -> int:
    first, *others = atlas.variants(concept)
    return rng.choice(others) if others and rng.random() < UNUSUAL else first


def _place(
    rng: random.Random,
    concept: str,
    at: tuple[float, float],
    scale: float,
    *,
    jitter: float = 0.015,
    sprite: int | None = None,
    colour: str | None = None,
) -> Placed:
    return Placed(
        concept,
        _variant(rng, concept) if sprite is None else sprite,
        x=at[0] + rng.uniform(-jitter, jitter),
        y=at[1] + rng.uniform(-jitter, jitter),
        scale=scale * rng.uniform(1 - 2 * jitter, 1 + 2 * jitter),
        colour=colour,
    )  # fmt: skip


def _draw(rng: random.Random, pool: tuple[str, ...]) -> Scene:
    kind = rng.choices(list(KINDS), list(KINDS.values()))[0]
    first = rng.choices(pool, cum_weights=_weights(pool))[0]
    spread = 0.15 if kind == "bare" else 0.5
    look = tuple(0.5 + spread * rng.uniform(-1, 1) for _ in range(LOOK))
    home, anywhere = concepts()[first].home, rng.choice(SETTINGS)
    centre = (0.5, 0.5)
    if kind == "bare":
        placed = _place(rng, first, centre, LARGE, jitter=0.008, sprite=atlas.variants(first)[0])
        return Scene(kind, home, look, (placed,))
    if kind == "setting":
        return Scene(kind, anywhere, look, (_place(rng, first, centre, LARGE),))
    if kind == "colour":
        colour = rng.choice(list(COLOURS))
        place = anywhere if rng.random() < 0.35 else home
        return Scene(kind, place, look, (_place(rng, first, centre, LARGE, colour=colour),))
    if kind == "place":
        return Scene(kind, anywhere, look, ())
    if kind == "size":
        size, scale, at = rng.choice((("small", SMALL, (0.5, 0.55)), ("big", BIG, centre)))
        return Scene(kind, home, look, (_place(rng, first, at, scale),), size=size)
    place = anywhere if rng.random() < 0.5 else home
    if kind == "count":
        spots = ROWS[rng.choices((1, 2, 3, 4), (1, 3, 3, 3))[0]]
        sprite, scale = atlas.variants(first)[0], LARGE if len(spots) == 1 else HALF
        return Scene(kind, place, look, tuple(_place(rng, first, at, scale, sprite=sprite) for at in spots))
    if len(pool) < 2:
        return _draw(rng, pool)  # no pair to be had
    second = first
    while second == first:
        second = rng.choice(pool)
    relation = rng.choice((None, None, *RELATIONS))
    spots = RELATIONS[relation or "left"]
    pair = tuple(_place(rng, name, at, HALF) for name, at in zip((first, second), spots, strict=True))
    return Scene(kind, place, look, pair, relation)


def sample(rng: random.Random, pool: Sequence[str] | None = None, *, held: bool = False) -> Scene:
    """Draw a random scene of the concepts in `pool` (default: all).

    Held-out combinations never come, unless `held` asks for nothing else.
    """
    pool = names() if pool is None else tuple(pool)
    while True:
        scene = _draw(rng, pool)
        if held_out(scene) is held:
            return scene


def sample_batch(rng: random.Random, n: int, *, pool: Sequence[str] | None = None) -> list[Scene]:
    """Draw `n` training scenes of the concepts in `pool` (default: all), ships more often than the rest."""
    return [sample(rng, pool) for _ in range(n)]

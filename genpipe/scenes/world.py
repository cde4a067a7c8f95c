"""What a scene is, and how scenes are drawn at random for training.

What a caption leaves open is chosen at random, so that two images of one caption differ as a person would have them
differ: where a thing stands and how large, in which of the places that suit it, the light of the day, what is far away.
Each is a choice among a few that have words of their own (`genpipe.scenes.details`), since a small network draws what it
is told more sharply than what it has to choose. Things are neither mirrored nor far from the middle: the judges that
evaluate do not know them so (mirrored, 41 % of canonical things are taken for others).
"""

import random
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import accumulate

from genpipe.scenes import atlas
from genpipe.scenes.colours import COLOURS
from genpipe.scenes.concepts import concepts, names
from genpipe.scenes.places import FAR, KINDRED, LOOK, OUTDOORS, SETTINGS

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
KINDS = {"bare": 0.39, "setting": 0.24, "colour": 0.11, "size": 0.08, "pair": 0.10, "count": 0.06, "place": 0.02}
STANDS = (((0.5, 0.5), LARGE), ((0.42, 0.52), 0.72), ((0.58, 0.52), 0.72), ((0.5, 0.54), 0.66), ((0.5, 0.49), 0.90))
RIGHTWARD = 2
STAND_SHARES = {  # by the kind; a thing in another colour is harder to know away from the middle
    "bare": (0.36, 0.18, 0.18, 0.13, 0.15),
    "setting": (0.60, 0.12, 0.12, 0.06, 0.10),
    "count": (0.60, 0.12, 0.12, 0.06, 0.10),
    "colour": (0.84, 0.04, 0.04, 0.03, 0.05),
}
SHADES = 3  # of a thing's natural colours: as they are, darker, paler
BY_DAY = {"day": 0.65, "sunny": 0.35}  # light in which every setting is what it is called
ANY_LIGHT = {"day": 0.30, "sunny": 0.16, "morning": 0.14, "evening": 0.16, "night": 0.16, "grey": 0.08}
FAR_SEEN = {**dict.fromkeys(KINDS, 0.4), "bare": 0.8, "colour": 0.2}  # how often something may be far away
AT_HOME = 0.6  # how often a thing of which nothing is said is in its home setting, else in one that is KINDRED
ELSEWHERE = {"bare": 0.0, "setting": 1.0, "colour": 0.35, "size": 0.5, "pair": 0.5, "count": 0.5, "place": 1.0}
MENTION = 0.2  # how often captions of a thing at home say so
JITTER = 0.006
UNUSUAL = 0.25  # how often a concept's other sprites stand in for its first
CORE, HARDER = 2.0, 4.0  # see Pool
HELD_OUT_SHARE = 20  # one combination in this many


@dataclass(frozen=True)
class Placed:
    """One object: its centre and size in shares of the image's side, turned by `rotation` degrees clockwise.

    `colour` is one of COLOURS; without one it has its natural colours in a `shade`, a number below SHADES.
    """

    concept: str
    sprite: int
    x: float
    y: float
    scale: float
    flip: bool = False
    rotation: float = 0.0
    colour: str | None = None
    shade: int = 0


@dataclass(frozen=True)
class Scene:
    """An image to be drawn.

    Attributes:
        kind: the pattern that it follows, one of KINDS; a "place" has no objects.
        look: LOOK numbers in [0, 1] that vary the setting.
        relation: how a pair stands, if a caption is to say so.
        size: "small" or "big" where the object is.
        light: of the day, one of LIGHTS; it is to be seen in OUTDOORS only.
        far: which of the setting's far things is to be seen, a number below FAR; 0 for none.
        stand: where the only thing stands, a number below the length of STANDS; of a pair of which captions do not say how
            it stands, RIGHTWARD where the first is at the right.
        stated: whether captions say the setting.
    """

    kind: str
    setting: str
    look: tuple[float, ...]
    objects: tuple[Placed, ...]
    relation: str | None = None
    size: str | None = None
    light: str = "day"
    far: int = 0
    stand: int = 0
    stated: bool = False

    @property
    def anywhere(self) -> bool:
        """Whether its things may be in any setting that suits them, for all that captions say."""
        return bool(self.objects) and not self.stated


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


class Pool:
    """Concepts to draw scenes of, some of them more often than others.

    Core concepts come CORE times as often as the rest and those of FAVOURITES more often still. `accuracy`, the share
    of its images that an evaluation found right for each concept, gives those that are mostly wrong more of the
    training: up to HARDER times as much.
    """

    def __init__(self, concepts: Sequence[str] | None = None, accuracy: Mapping[str, float] | None = None) -> None:
        self.names = names() if concepts is None else tuple(concepts)
        known = {} if accuracy is None else accuracy
        self.weights = [_often(name) * (HARDER - (HARDER - 1) * known.get(name, 1.0)) for name in self.names]
        self._sums = list(accumulate(self.weights))

    def choose(self, rng: random.Random) -> str:
        """Return one of them."""
        return rng.choices(self.names, cum_weights=self._sums)[0]


def _often(name: str) -> float:
    return FAVOURITES.get(name, 1.0) * (CORE if concepts()[name].core else 1.0)


@cache
def _pool(concepts: tuple[str, ...]) -> Pool:
    return Pool(concepts)


def canonical(concept: str) -> Scene:
    """Return the plainest scene of a bare noun: large, centred, at home, by day, nothing left to chance."""
    placed = Placed(concept, atlas.variants(concept)[0], 0.5, 0.5, LARGE)
    return Scene("bare", concepts()[concept].home, (0.5,) * LOOK, (placed,))


def _variant(rng: random.Random, concept: str) -> int:
    first, *others = atlas.variants(concept)
    return rng.choice(others) if others and rng.random() < UNUSUAL else first


def settle(rng: random.Random, scene: Scene) -> Scene:
    """Choose what captions of `scene` leave open and `genpipe.scenes.captions.details` has words for."""
    bare, alone = scene.kind == "bare", len(scene.objects) == 1
    setting = _somewhere(rng, scene.objects) if scene.anywhere else scene.setting
    lights = ANY_LIGHT if scene.anywhere else BY_DAY
    stand = rng.choices(range(len(STANDS)), STAND_SHARES[scene.kind])[0] if alone and scene.size is None else 0
    if scene.kind == "pair" and scene.relation is None:
        stand = rng.choice((0, RIGHTWARD))
    shade = rng.randrange(SHADES) if bare else 0
    return replace(
        scene,
        setting=setting,
        light=rng.choices(list(lights), list(lights.values()))[0] if setting in OUTDOORS else "day",
        far=rng.randrange(FAR) if rng.random() < FAR_SEEN[scene.kind] else 0,
        stand=stand,
        objects=tuple(replace(placed, shade=shade) for placed in scene.objects),
    )


def vary(rng: random.Random, scene: Scene) -> Scene:
    """Draw a scene again that the captions of `scene` describe: whatever they leave open is chosen anew."""
    scene = settle(rng, scene)
    spots, scale = _layout(scene)
    objects: list[Placed] = []
    for placed, (x, y) in zip(scene.objects, spots, strict=True):
        if not objects or placed.concept != objects[-1].concept:  # else as the one before it
            sprite = _variant(rng, placed.concept)
        x, y = x + rng.uniform(-JITTER, JITTER), y + rng.uniform(-JITTER, JITTER)
        size = scale * rng.uniform(1 - 2 * JITTER, 1 + 2 * JITTER)
        objects.append(replace(placed, sprite=sprite, x=x, y=y, scale=size, rotation=0.0, flip=False))
    return replace(scene, look=tuple(rng.random() for _ in range(LOOK)), objects=tuple(objects))


def _somewhere(rng: random.Random, objects: Sequence[Placed]) -> str:
    """Where things are of which nothing is said: most often where the first is at home."""
    home = concepts()[objects[0].concept].home
    known = {placed.concept for placed in objects}
    open_to = [
        place
        for place in (home, *KINDRED[home])
        if not any(_held("setting", concept, place) and place != concepts()[concept].home for concept in known)
    ]
    others = open_to[1:] if open_to[:1] == [home] else open_to
    return rng.choice(others) if others and (home not in open_to or rng.random() > AT_HOME) else home


def _layout(scene: Scene) -> tuple[tuple[tuple[float, float], ...], float]:
    """Where the middles of a scene's objects are, and how large they are."""
    many = len(scene.objects)
    if scene.size is not None:
        return (((0.5, 0.55),), SMALL) if scene.size == "small" else (((0.5, 0.5),), BIG)
    if scene.kind == "pair":
        return RELATIONS[scene.relation or ("right" if scene.stand == RIGHTWARD else "left")], HALF
    if many != 1:
        return ROWS[many] if many else (), HALF
    middle, scale = STANDS[scene.stand]
    return (middle,), scale


def _draw(rng: random.Random, pool: Pool) -> Scene:
    kind = rng.choices(list(KINDS), list(KINDS.values()))[0]
    first = pool.choose(rng)
    elsewhere, home = rng.random() < ELSEWHERE[kind], concepts()[first].home
    place = rng.choice(SETTINGS) if elsewhere else home
    stated = elsewhere or (kind != "bare" and rng.random() < MENTION)
    things, colour, relation, size = (first,), None, None, None
    if kind == "place":
        things = ()
    elif kind == "colour":
        colour = rng.choice(list(COLOURS))
    elif kind == "size":
        size = rng.choice(("small", "big"))
    elif kind == "count":
        things *= rng.choices((1, 2, 3, 4), (1, 3, 3, 3))[0]
    elif kind == "pair":
        others = [name for name in rng.sample(pool.names, min(2, len(pool.names))) if name != first]
        if not others:
            return _draw(rng, pool)  # no pair to be had
        things, relation = (first, others[0]), rng.choice((None, None, *RELATIONS))
    objects = tuple(Placed(name, atlas.variants(name)[0], 0.5, 0.5, LARGE, colour=colour) for name in things)
    return vary(rng, Scene(kind, place, (0.5,) * LOOK, objects, relation, size, stated=stated))


def sample(
    rng: random.Random, pool: Pool | Sequence[str] | None = None, *, held: bool = False, kind: str | None = None
) -> Scene:
    """Draw a random scene of the concepts in `pool` (default: all).

    Held-out combinations never come, unless `held` asks for nothing else; `kind` asks for one of KINDS alone, which the
    concepts must allow: of one there is no pair.
    """
    if not isinstance(pool, Pool):
        pool = _pool(names() if pool is None else tuple(pool))
    while True:
        scene = _draw(rng, pool)
        if kind in (None, scene.kind) and held_out(scene) is held:
            return scene


def sample_batch(rng: random.Random, n: int, *, pool: Pool | Sequence[str] | None = None) -> list[Scene]:
    """Draw `n` training scenes of the concepts in `pool` (default: all), ships more often than the rest."""
    return [sample(rng, pool) for _ in range(n)]

"""Scenes of held-out combinations, and images of them, for the scripts that measure."""

import random
from collections.abc import Iterator, Sequence

from PIL import Image

from genpipe.images import to_pil
from genpipe.pipeline import BATCH, Pipeline
from genpipe.progress import Progress
from genpipe.scenes import COLOURS, SETTINGS, Placed, Scene, concepts, held_out, sample
from genpipe.scenes.compose import Composer
from genpipe.scenes.places import LOOK

COMBINATIONS = ("setting", "colour", "pair", "count")  # kinds of scenes, a quarter of the images each
FIRST_SEED = 1000


def held_out_scenes(rng: random.Random, pool: Sequence[str], n: int) -> list[Scene]:
    """Return `n` scenes of combinations that no training image shows, of each kind as many as the concepts have.

    Raises:
        ValueError: these concepts have no held-out combination.
    """
    kinds = [kind for kind in COMBINATIONS if _has_held_out(pool, kind)]
    if not kinds:
        raise ValueError(f"the {len(pool)} concepts of this model have no held-out combination: train it on more")
    scenes: list[Scene] = []
    for index, kind in enumerate(kinds):
        wanted = (n * (index + 1)) // len(kinds)
        while len(scenes) < wanted:
            scenes.append(sample(rng, pool, held=True, kind=kind))
    return scenes


def _has_held_out(pool: Sequence[str], kind: str) -> bool:
    def held(setting: str, *things: str, colour: str | None = None) -> bool:
        objects = tuple(Placed(thing, 0, 0.5, 0.5, 0.5, colour=colour) for thing in things)
        return held_out(Scene(kind, setting, (0.5,) * LOOK, objects))

    anywhere = any(held(setting, thing) for thing in pool for setting in SETTINGS)
    if kind == "pair":
        pairs = (held(concepts()[a].home, a, b) for a in pool for b in pool if a != b)
        return len(pool) > 1 and (anywhere or any(pairs))
    coloured = (held(concepts()[thing].home, thing, colour=colour) for thing in pool for colour in COLOURS)
    return anywhere or (kind == "colour" and any(coloured))


def draw(
    pipeline: Pipeline, prompts: Sequence[str], seeds: Sequence[int], title: str, *, speed: str = "exact"
) -> list[Image.Image]:
    """Draw an image for each prompt and seed, at the model's default steps."""
    images: list[Image.Image] = []
    with Progress(len(prompts), unit="image", label=title) as progress:
        for start in range(0, len(prompts), BATCH):
            part = slice(start, start + BATCH)
            images += pipeline(list(prompts[part]), seeds=list(seeds[part]), speed=speed, progress=False)
            progress.update(len(prompts[part]))
    return images


def render(scenes: Sequence[Scene], size: int) -> list[Image.Image]:
    """Return the scenes as genpipe.scenes draws them."""
    composer = Composer(size=size)
    return [image for part in chunks(scenes) for image in to_pil(composer.render(part))]


def chunks(scenes: Sequence[Scene], size: int = 64) -> Iterator[Sequence[Scene]]:
    return (scenes[start : start + size] for start in range(0, len(scenes), size))

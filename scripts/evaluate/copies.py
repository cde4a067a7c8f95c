"""Whether a model draws its training images again."""

import random
from collections.abc import Sequence
from dataclasses import replace

import torch
from PIL import Image
from torch import Tensor

from genpipe.images import from_pil
from genpipe.scenes import Scene, canonical
from scripts.evaluate.held_out import render


def copies(images: Sequence[Image.Image], scenes: Sequence[Scene], pool: Sequence[str], size: int) -> dict[str, float]:
    """Measure whether held-out images are canonical training images again.

    An image counts as a copy if it is as near to a canonical layout of any concept, in root mean square over its pixels,
    as layouts that differ from it by next to nothing mostly are (their 95th percentile).
    """
    layouts = _flat(render([canonical(name) for name in pool], size))
    rng = random.Random("variants")
    own = [rng.randrange(len(pool)) for _ in range(200)]
    variants = _flat(render([shaken(rng, canonical(pool[i])) for i in own], size))
    limit = float((variants - layouts[torch.tensor(own)]).square().mean(1).sqrt().quantile(0.95))
    generated = _flat(images)
    nearest, index = (torch.cdist(generated, layouts) / layouts.shape[1] ** 0.5).min(dim=1)
    asked = [scene.objects[0].concept for scene in scenes]
    same = sum(pool[i] == name for i, name in zip(index.tolist(), asked, strict=True))
    return {
        "copies": float((nearest < limit).float().mean()),
        "distance_of_a_copy": limit,
        "median_distance_to_nearest": float(nearest.median()),
        "nearest_shows_the_same_concept": same / len(asked),
    }


def shaken(rng: random.Random, scene: Scene) -> Scene:
    """Return nearly the same scene: what varies in its setting by 0.15, its things by a hundredth of the image's side."""
    look = tuple(number + rng.uniform(-0.15, 0.15) for number in scene.look)
    objects = (replace(o, x=o.x + rng.uniform(-0.01, 0.01), y=o.y + rng.uniform(-0.01, 0.01)) for o in scene.objects)
    return replace(scene, look=look, objects=tuple(objects))


def _flat(images: Sequence[Image.Image]) -> Tensor:
    return from_pil(images).flatten(1)

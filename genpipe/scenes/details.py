"""Prompts that leave nothing open, as a model was trained on captions that leave nothing open.

What a prompt does not say (where a thing is, in which light, how near) the seed says in its place. So the images of one
prompt differ from seed to seed, and each is drawn as sharply as if a person had asked for just that. It is done for
"Improving Image Generation with Better Captions" (2023, section 3.5), too, by a language model.
"""

import random
import re
from dataclasses import replace
from functools import lru_cache

from genpipe.scenes.captions import FAR_WORDS, LIGHT_WORDS, SHADE_WORDS, STAND_WORDS, details
from genpipe.scenes.concepts import concepts
from genpipe.scenes.normalise import normalise
from genpipe.scenes.parse import WantedObject, WantedScene, parse
from genpipe.scenes.places import LOOK
from genpipe.scenes.vocabulary import WORD
from genpipe.scenes.world import LARGE, Placed, Scene, settle

WORDS = 12  # of the longest prompt that is added to: a longer one is no caption of the world


@lru_cache(maxsize=2048)
def open_details(prompt: str, seed: int, pool: tuple[str, ...] | None = None) -> str:
    """Return what a seed says of all that a prompt leaves open, in words that are to follow the prompt.

    For "penguin" that is "in the mountains evening left", or "close view". Nothing is said where the prompt shows nothing of
    the world, or is too long to be a caption of it.

    Args:
        prompt: without signs of weights.
        seed: of the image.
        pool: the concepts that a model has learned (default: all of the world's).
    """
    text = normalise(prompt, pool).text
    said, wanted = set(WORD.findall(text)), parse(text)
    if len(said) > WORDS or not (wanted.objects or wanted.setting):
        return ""
    scene = settle(random.Random(f"{seed} {text}"), _scene(wanted))
    shade = 0 if said & set(SHADE_WORDS) else scene.objects[0].shade if scene.objects else 0
    scene = replace(
        scene,
        light="day" if said & set(LIGHT_WORDS.values()) else scene.light,
        stand=0 if said & set(STAND_WORDS) else scene.stand,
        far=0 if said & set(FAR_WORDS) else scene.far,
        objects=tuple(replace(placed, shade=shade) for placed in scene.objects),
    )
    return details(scene, "ru" if re.search("[а-яё]", text) else "en")


def _scene(wanted: WantedScene) -> Scene:
    """A scene of what is wanted, of the kind that decides what its captions leave open."""
    first = wanted.objects[0] if wanted.objects else None
    count = sum(each.count or 1 for each in wanted.objects)
    bare = first == WantedObject(first.concept) and count == 1 and wanted.setting is None if first else False
    objects = tuple(Placed(each.concept, 0, 0.5, 0.5, LARGE) for each in wanted.objects for _ in range(each.count or 1))
    setting = wanted.setting or concepts()[wanted.objects[0].concept].home
    size = first.size if first and count == 1 else None
    return Scene("bare" if bare else "setting", setting, (0.5,) * LOOK, objects, wanted.relation, size)

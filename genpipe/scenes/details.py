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
    """A scene of what is wanted, of a kind and in a setting that leave open what its captions do."""
    things = wanted.objects
    objects = tuple(Placed(each.concept, 0, 0.5, 0.5, LARGE) for each in things for _ in range(each.count or 1))
    one = things[0] if len(objects) == 1 else None
    kind = "pair" if len(objects) == len(things) == 2 else "setting"
    if one is not None and wanted.setting is None and one == WantedObject(one.concept):
        kind = "bare"
    elif one is not None and one.colour is not None:
        kind = "colour"
    home = concepts()[things[0].concept].home if things else ""
    stated = wanted.setting is not None
    return Scene(kind, wanted.setting or home, (0.5,) * LOOK, objects, wanted.relation, one and one.size, stated=stated)

import random

import pytest

from genpipe.scenes import caption, sample
from genpipe.scenes.parse import WantedObject, WantedScene, parse

# "two eyes" may be two of either: these pairs share their words.
SHARED = {"eyes": "eye", "musical notes": "musical note", "stack of books": "book"}


@pytest.mark.parametrize("language", ["en", "ru"])
@pytest.mark.parametrize("style", ["full", "short", "bare"])
def test_a_caption_is_read_back_as_the_scene_that_it_was_worded_for(language, style):
    rng = random.Random(f"{language}/{style}")
    for held in [False] * 500 + [True] * 30:
        scene = sample(rng, held=held)
        text = caption(scene, rng, language=language, style=style)
        if "two swords" in text:  # which is a name of crossed swords, too
            continue
        wanted_scene = parse(text)
        said = [
            (SHARED.get(thing.concept, thing.concept), thing.colour, thing.size)
            for thing in wanted_scene.objects
            for _ in range(thing.count or 1)
        ]
        assert said == [
            (SHARED.get(placed.concept, placed.concept), placed.colour, scene.size) for placed in scene.objects
        ], text
        assert wanted_scene.relation == scene.relation, text
        assert wanted_scene.setting == (scene.setting if scene.stated or not scene.objects else None), text


@pytest.mark.parametrize(
    ("prompt", "wanted_scene"),
    [
        ("Please draw me two kittens, and some PUPPIES!", WantedScene((WantedObject("cat", count=2), WantedObject("dog")))),
        ("three red cars in the woods", WantedScene((WantedObject("car", "red", count=3),), "forest")),
        ("an orange", WantedScene((WantedObject("orange"),))),
        ("an orange orange", WantedScene((WantedObject("orange", "orange"),))),
        ("an orange and an apple", WantedScene((WantedObject("orange"), WantedObject("apple")))),
        ("ship under water", WantedScene((WantedObject("ship"),), "underwater")),
        ("a ship under a bird", WantedScene((WantedObject("ship"), WantedObject("bird")), relation="below")),
        ("mountains", WantedScene((), "mountains")),
        ("слон дома", WantedScene((WantedObject("elephant"),), "room")),
        ("слон слева от дома", WantedScene((WantedObject("elephant"), WantedObject("house")), relation="left")),
        ("две банки", WantedScene((WantedObject("jar", count=2),))),
        ("синяя кошка под красной собакой", WantedScene((WantedObject("cat", "blue"), WantedObject("dog", "red")), relation="below")),
        ("большой жёлтый кот", WantedScene((WantedObject("cat", "yellow", "big"),))),
        ("a flibbertigibbet", WantedScene()),
        ("", WantedScene()),
    ],
)  # fmt: skip
def test_prompts_are_understood(prompt, wanted_scene):
    assert parse(prompt) == wanted_scene

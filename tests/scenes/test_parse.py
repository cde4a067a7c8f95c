import random

import pytest

from genpipe.scenes import Scene, caption, concepts, sample
from genpipe.scenes.parse import Wanted, Wish, parse

# "two eyes" may be two of either: these pairs share their words.
SHARED = {"eyes": "eye", "musical notes": "musical note", "stack of books": "book"}


@pytest.mark.parametrize("language", ["en", "ru"])
@pytest.mark.parametrize("style", ["full", "short", "bare"])
def test_a_caption_is_read_back_as_the_scene_that_it_was_worded_for(language, style):
    rng = random.Random(f"{language}/{style}")
    for held in [False] * 500 + [True] * 30:
        scene = sample(rng, held=held)
        text = caption(scene, rng, language=language, style=style)
        wish = parse(text)
        said = [
            (SHARED.get(thing.concept, thing.concept), thing.colour, thing.size)
            for thing in wish.objects
            for _ in range(thing.count or 1)
        ]
        assert said == [
            (SHARED.get(placed.concept, placed.concept), placed.colour, scene.size) for placed in scene.objects
        ], text
        assert wish.relation == scene.relation, text
        assert wish.setting == scene.setting or (wish.setting is None and at_home(scene)), text


def at_home(scene: Scene) -> bool:
    return bool(scene.objects) and scene.setting == concepts()[scene.objects[0].concept].home


@pytest.mark.parametrize(
    ("prompt", "wish"),
    [
        ("Please draw me two kittens, and some PUPPIES!", Wish((Wanted("cat", count=2), Wanted("dog")))),
        ("three red cars in the woods", Wish((Wanted("car", "red", count=3),), "forest")),
        ("an orange", Wish((Wanted("orange"),))),
        ("an orange orange", Wish((Wanted("orange", "orange"),))),
        ("an orange and an apple", Wish((Wanted("orange"), Wanted("apple")))),
        ("ship under water", Wish((Wanted("ship"),), "underwater")),
        ("a ship under a bird", Wish((Wanted("ship"), Wanted("bird")), relation="below")),
        ("mountains", Wish((), "mountains")),
        ("слон дома", Wish((Wanted("elephant"),), "room")),
        ("слон слева от дома", Wish((Wanted("elephant"), Wanted("house")), relation="left")),
        ("две банки", Wish((Wanted("jar", count=2),))),
        ("синяя кошка под красной собакой", Wish((Wanted("cat", "blue"), Wanted("dog", "red")), relation="below")),
        ("большой жёлтый кот", Wish((Wanted("cat", "yellow", "big"),))),
        ("a flibbertigibbet", Wish()),
        ("", Wish()),
    ],
)  # fmt: skip
def test_prompts_are_understood(prompt, wish):
    assert parse(prompt) == wish

import random
import warnings

import pytest

from genpipe.embedded import learned_concepts
from genpipe.scenes import caption, concepts, sample
from genpipe.scenes.captions import Language, Style
from genpipe.scenes.normalise import normalise, plain_words, slip
from genpipe.scenes.parse import parse

LEARNED = learned_concepts()


def test_captions_come_out_as_they_went_in() -> None:
    rng = random.Random(0)
    languages: tuple[Language, ...] = ("en", "ru")
    styles: tuple[Style, ...] = ("full", "short", "bare")
    for _ in range(500):
        scene = sample(rng)
        for language in languages:
            for style in styles:
                text = caption(scene, rng, language, style)
                assert normalise(text).text == text.lower()


@pytest.mark.parametrize(
    ("prompt", "text"),
    [
        ("SHIP!!!", "ship"),
        ("«Пиратский» КОРАБЛЬ…", "пиратский корабль"),
        ("A cat, and a dog -- at night?!", "a cat and a dog at night"),
        ("  two\n\tapples. ", "two apples"),
        ("Pirate Ship; SPACE.", "pirate ship, space"),
        ("ｓｈｉｐ", "ship"),
        ("Картинка кот", "картинка: кот"),
        ("T-Rex", "t-rex"),
        ("", ""),
        ("?!", ""),
    ],
)
def test_capitals_and_punctuation_change_nothing(prompt: str, text: str) -> None:
    assert normalise(prompt) == normalise(prompt, LEARNED) and normalise(prompt).text == text
    assert not normalise(prompt).corrected and not normalise(prompt).dropped


@pytest.mark.parametrize(
    ("prompt", "text"),
    [
        ("🐈 in the snow", "cat in the snow"),
        ("🐱 в снегу", "морда кошки в снегу"),
        ("🍎🍎🍎", "three apples"),
        ("two 🍎", "two apples"),
        ("два 🍎", "два яблока"),
        ("🍎🍎 на столе", "два яблока на столе"),
        ("🐈🐕", "cat and dog"),
        ("🐈 🐕 на пляже", "кошка и собака на пляже"),
        ("❤️", "heart"),
        ("👩🏽‍🚀", "astronaut"),
        ("🧙‍♀️ at night", "wizard at night"),
        ("🚀!", "rocket"),
    ],
)
def test_emoji_are_words(prompt: str, text: str) -> None:
    assert normalise(prompt, LEARNED).text == text


def test_every_sprite_that_is_an_emoji_can_be_asked_for_by_it() -> None:
    for name, concept in concepts().items():
        for recipe in concept.recipes:
            if not recipe.startswith("@"):
                assert normalise(recipe).text == name
                assert [wanted.concept for wanted in parse(normalise(recipe).text).objects] == [name]


def test_a_face_is_the_animal_where_only_that_was_learned() -> None:
    assert normalise("🐱").text == "cat face" and normalise("🐱", ("cat",)).text == "cat"
    assert normalise("🐱", ("cat", "cat face")).text == "cat face"


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("shp", "ship"), ("hrs", None), ("brid", "bird"), ("catt", "cat"), ("castel", "castle"), ("wizzard", "wizard"),
        ("ballons", "balloons"), ("tigar", "tiger"), ("elephent", "elephant"), ("dargon", "dragon"),
        ("unicron", "unicorn"), ("pengiun", "penguin"), ("карабль", "корабль"), ("кошкка", "кошка"),
        # Words of the world, words with a hint, words that mean something else, and no words at all.
        *((word, None) for word in ("ship", "galleon", "the", "42", "at", "accordion", "", "ct")),
        *((word, None) for word in ["sharp", "nice", "old", "shop", "there", "short", "while", "whole", "stage", "cart", "time", "plan", "dark", "her"]),
    ],
)  # fmt: skip
def test_a_slip_is_one_letter_and_gives_no_other_word(word: str, meant: str | None) -> None:
    assert slip(word, LEARNED) == meant


def test_what_is_corrected_and_dropped_is_told() -> None:
    plain = normalise("a pirate shp 🀄 in spcae", LEARNED)
    assert plain.text == "a pirate ship in space"
    assert plain.corrected == {"shp": "ship", "spcae": "space"} and plain.dropped == ("🀄",)
    with pytest.warns(UserWarning) as caught:
        assert plain_words("a pirate shp 🀄 in spcae", LEARNED) == plain.text
    assert [str(one.message) for one in caught] == [
        "the model reads 'shp' as 'ship'",
        "the model reads 'spcae' as 'space'",
        "the model has no word for 🀄: it draws the rest",
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert plain_words("A Pirate Ship!") == "a pirate ship"


def test_what_a_model_has_not_learned_is_not_corrected_to() -> None:
    assert slip("shp", ("cat",)) is None and slip("catt", ("cat",)) == "cat" and slip("catt", ("ship",)) is None

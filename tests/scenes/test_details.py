import random
from collections import Counter

import pytest

from genpipe.scenes import caption, concepts, names, sample_batch, vary
from genpipe.scenes.captions import (
    DETAIL_WORDS,
    FAR_WORDS,
    LIGHT_WORDS,
    SHADE_WORDS,
    STAND_WORDS,
    Style,
    details,
    in_full,
)
from genpipe.scenes.details import WORDS, open_details
from genpipe.scenes.normalise import normalise
from genpipe.scenes.parse import parse
from genpipe.scenes.places import FAR, KINDRED, LIGHTS
from genpipe.scenes.vocabulary import unknown_words
from genpipe.scenes.world import RIGHTWARD, SHADES, STANDS, Scene, canonical

STYLES: tuple[Style, ...] = ("full", "short", "bare")


def left_open(scene: Scene) -> tuple[object, ...]:
    """All that a caption may leave open, but the look of the setting."""
    return scene.setting, scene.light, scene.far, scene.stand, tuple(placed.shade for placed in scene.objects)


def test_there_is_a_word_for_each_choice_and_no_two_share_one():
    assert tuple(LIGHT_WORDS) == LIGHTS
    assert (len(STAND_WORDS), len(SHADE_WORDS), len(FAR_WORDS)) == (len(STANDS), SHADES, FAR)
    assert len(set(DETAIL_WORDS)) == len(DETAIL_WORDS) and not unknown_words(" ".join(DETAIL_WORDS))
    assert all(parse(f"cat {word}") == parse("cat") for word in DETAIL_WORDS)


def test_two_scenes_of_which_captions_and_details_say_the_same_differ_in_their_look_alone():
    known: dict[str, tuple[object, ...]] = {}
    rng, repeated = random.Random(1), 0
    for scene in sample_batch(random.Random(0), 6000, pool=names(core=True)[:12]):
        said = in_full(caption(scene, rng), details(scene))
        repeated += said in known
        assert known.setdefault(said, left_open(scene)) == left_open(scene), said
    assert repeated > 600
    assert details(canonical("cat")) == ""


@pytest.mark.parametrize("language", ["en", "ru"])
def test_what_is_said_in_full_is_in_the_words_that_a_model_reads(language):
    rng = random.Random(2)
    for number, scene in enumerate(sample_batch(random.Random(3), 600)):
        said = in_full(caption(scene, rng, language, STYLES[number % 3]), details(scene, language))
        plain = normalise(said)
        assert plain.text == said.lower() and not plain.corrected


def test_a_seed_says_what_a_prompt_leaves_open_as_often_as_the_world_has_it():
    rng = random.Random(4)
    said = Counter(open_details("a penguin", seed) for seed in range(3000))
    drawn = Counter(details(vary(rng, canonical("penguin"))) for _ in range(3000))
    for words in (*LIGHT_WORDS.values(), *STAND_WORDS, *SHADE_WORDS, *FAR_WORDS, "in the mountains", "in the forest"):
        shares = [sum(n for text, n in each.items() if words in text) / 3000 for each in (said, drawn)]
        assert abs(shares[0] - shares[1]) < 0.04, words
    assert len(said) > 200


@pytest.mark.parametrize("language", ["en", "ru"])
def test_a_seed_never_says_what_a_prompt_says(language):
    for seed, scene in enumerate(sample_batch(random.Random(5), 500)):
        prompt = caption(scene, language=language)
        said, asked = parse(f"{prompt} {open_details(prompt, seed)}"), parse(prompt)
        assert said.objects == asked.objects and said.relation == asked.relation
        if said.setting != asked.setting:  # where a thing is of which nothing is said
            assert not scene.stated and said.setting in KINDRED[concepts()[scene.objects[0].concept].home]


@pytest.mark.parametrize(
    ("prompt", "kept"),
    [
        ("a dark castle in the evening", {*LIGHT_WORDS.values(), *SHADE_WORDS}),
        ("a tree, close", set(STAND_WORDS)),
        ("a tree and a view", set(FAR_WORDS)),
    ],
)
def test_words_of_a_kind_that_a_prompt_has_are_not_added_to(prompt, kept):
    added = [set(open_details(prompt, seed).split()) for seed in range(60)]
    assert not set().union(*added) & kept and any(added)


def test_a_seed_says_the_same_each_time_however_a_prompt_is_written():
    said = [open_details("penguin", seed) for seed in range(20)]
    assert (
        [open_details("PENGUIN!!!", seed) for seed in range(20)] == said == [open_details("🐧", s) for s in range(20)]
    )


def test_a_seed_chooses_where_a_single_thing_stands_and_on_which_side_the_first_of_a_pair():
    def added(prompt: str) -> set[str]:
        return set().union(*(open_details(prompt, seed).split() for seed in range(99))) & {*STAND_WORDS, *SHADE_WORDS}

    assert added("apple") == {*STAND_WORDS, *SHADE_WORDS} - {""} and added("red apple") == set(STAND_WORDS) - {""}
    assert added("a dog and a cat") == {STAND_WORDS[RIGHTWARD]}
    for prompt in ("two apples", "a dog above a cat", "a cat, a dog and a bird", "four castles in the forest", "a sea"):
        assert not added(prompt), prompt


@pytest.mark.parametrize("prompt", ["", "something of no world", "cat " + " ".join("abcdefghijklmnop"[:WORDS])])
def test_nothing_is_said_of_what_is_not_of_the_world_or_too_long(prompt):
    assert {open_details(prompt, seed) for seed in range(20)} == {""}

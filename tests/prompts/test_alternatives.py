"""Alternatives that the seed chooses from."""

import time
from collections import Counter

import pytest

from genpipe.prompts.alternatives import choose


def choices(prompt: str, seeds: int = 40) -> set[str]:
    return {choose(prompt, seed) for seed in range(seeds)}


@pytest.mark.parametrize(
    ("prompt", "texts"),
    [
        ("a {red|blue} cat", {"a red cat", "a blue cat"}),
        ("{|big }cat", {"cat", "big cat"}),
        ("{a|{b|c}}", {"a", "b", "c"}),
        ("{красный|синий} кот", {"красный кот", "синий кот"}),
        ("{(red:1.3)|[blue]}", {"(red:1.3)", "[blue]"}),
        ("{[a|b]|c}", {"[a|b]", "c"}),
        ("{[a|b}", {"{[a|b}"}),
        ("{prompt}", {"{prompt}"}),
        ("{a|b", {"{a|b"}),
        ("a|b}", {"a|b}"}),
        ("{a|b}}", {"a}", "b}"}),
        (r"\{a|b\}", {r"\{a|b\}"}),
        (r"{a\|b|c}", {r"a\|b", "c"}),
        ("a [b|c]", {"a [b|c]"}),
        ("no signs", {"no signs"}),
    ],
)
def test_one_of_the_alternatives_is_taken(prompt: str, texts: set[str]) -> None:
    assert choices(prompt) == texts


def test_a_seed_always_chooses_the_same_and_seeds_choose_evenly() -> None:
    prompt = "{a|b|c} {1|2|3|4}"
    counts = Counter(choose(prompt, seed) for seed in range(2400))
    assert len(counts) == 12 and all(140 <= count <= 260 for count in counts.values())
    # For ever: images are drawn again from their files.
    assert [choose(prompt, seed) for seed in (0, 1, 7, 2**64 - 1)] == ["c 2", "b 4", "c 2", "a 1"]


def test_prompt_and_negative_prompt_choose_apart() -> None:
    both = {(choose("{a|b}", seed), choose("{a|b}", seed, of="negative_prompt")) for seed in range(40)}
    assert len(both) == 4


def test_what_stands_before_changes_no_choice() -> None:
    for seed in range(20):
        assert choose("a very {red|blue} cat", seed) == "a very " + choose("{red|blue} cat", seed)


@pytest.mark.parametrize("piece", ["{", "[", "}", "{a|", "[}", "{[", "{a|b}", "\\"])
def test_long_prompts_take_no_longer_than_they_are(piece: str) -> None:
    started = time.process_time()
    choose("{" + piece * (20_000 // len(piece)) + "}" * 5000, 1)
    assert time.process_time() - started < 2

"""A1111's prompt matrix."""

import pytest

from genpipe.prompts.matrix import MAX_PARTS, combinations


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [
        ("a city|night", ["a city", "a city, night"]),
        ("a | b | c", ["a", "a, b", "a, c", "a, b, c"]),
        ("|b", ["", "b"]),
        ("a [b|c]|d", ["a [b|c]", "a [b|c], d"]),
        ("{a|b}|c", ["{a|b}", "{a|b}, c"]),
        (r"a\|b|c", [r"a\|b", r"a\|b, c"]),
        ("a)|b", ["a)", "a), b"]),
    ],
)
def test_all_combinations_of_the_parts_are_given(prompt: str, prompts: list[str]) -> None:
    assert combinations(prompt) == prompts


@pytest.mark.parametrize(
    ("prompt", "reason"), [("a cat", r"has no \| for a matrix"), ("a" + "|b" * (MAX_PARTS + 1), "11 bars")]
)
def test_other_prompts_are_refused(prompt: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        combinations(prompt)

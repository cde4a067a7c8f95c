"""What a prompt and its negative prompt say at each step."""

import pytest

from genpipe.prompts.reading import check_prompt, read_prompts, words_of


def said(prompt: str, negative: str = "", **settings) -> list[tuple[list[str], str]]:
    """The prompts of each step, and the negative prompt."""
    stages = read_prompts(prompt, negative, **{"seed": 1, "steps": 4, **settings})
    assert [number for stage in stages for number in stage.steps] == [1, 2, 3, 4]
    return [([part.text for part in stage.parts], stage.negative) for stage in stages for _ in stage.steps]


def test_prompt_and_negative_prompt_change_each_in_their_time() -> None:
    assert said("[a:b:1]", "[c:d:3]") == [(["a"], "c"), (["b"], "c"), (["b"], "c"), (["b"], "d")]
    assert said("a AND b", "c AND d") == [(["a ".strip(), " b"], "c AND d")] * 4
    assert len(read_prompts("a cat", "fog", seed=1, steps=4)) == 1


def test_alternatives_are_chosen_before_all_else() -> None:
    texts = {said("{[a:b:2]|c AND d}", seed=seed)[3][0][0] for seed in range(20)}
    assert texts == {"b", "c"}


def test_plain_syntax_reads_no_sign() -> None:
    assert said("[a|b] AND {c|d}", "[e|f]", syntax="plain") == [(["[a|b] AND {c|d}"], "[e|f]")] * 4


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("a pirate ship, at night: 3 of them", "a pirate ship, at night: 3 of them"),
        ("(a [red] cat:1.3) BREAK in the snow", "a red cat in the snow"),
        ("[a cat:a dog:0.9]", "a dog"),
        ("a cat AND a dog :0.5 AND rain :-1", "a cat, a dog"),
        ("(красный:1.3) кот", "красный кот"),
    ],
)
def test_words_are_what_the_image_shows_in_the_end(prompt: str, words: str) -> None:
    assert words_of(prompt, seed=1) == words
    assert words_of(prompt, seed=1, syntax="plain") == prompt


def test_weights_out_of_range_are_found_without_an_image() -> None:
    with pytest.raises(ValueError, match="1e9"):
        check_prompt("a (cat:1e9)")
    check_prompt("a (cat:1e9)", syntax="plain")

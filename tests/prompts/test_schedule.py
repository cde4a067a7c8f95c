"""Prompts that change over the steps."""

import time

import pytest

from genpipe.prompts.schedule import MAX_LENGTH, conditionings, scheduled


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a cat", [(10, "a cat")]),
        ("a [cat:dog:0.5]", [(5, "a cat"), (10, "a dog")]),
        ("a [cat:dog:3]", [(3, "a cat"), (10, "a dog")]),
        ("a [cat:dog: 3 ]!", [(3, "a cat!"), (10, "a dog!")]),
        ("a [cat:dog:.25]", [(2, "a cat"), (10, "a dog")]),
        ("a [cat:4]", [(4, "a "), (10, "a cat")]),
        ("a [cat::4]", [(4, "a cat"), (10, "a ")]),
        ("a [:cat:4]", [(4, "a "), (10, "a cat")]),
        ("a [cat:dog:0]", [(10, "a dog")]),
        ("a [cat:dog:-3]", [(10, "a dog")]),
        ("a [cat:dog:99]", [(10, "a cat")]),
        ("a [cat:dog:1e999]", [(10, "a cat")]),
        ("a [cat:dog:1.0]", [(10, "a cat")]),
        ("[a:[b:c:6]:3] d", [(3, "a d"), (6, "b d"), (10, "c d")]),
        ("[a:b:3][c:d:6]", [(3, "ac"), (6, "bc"), (10, "bd")]),
        ("[(red:1.3):[blue]:5] cat", [(5, "(red:1.3) cat"), (10, "[blue] cat")]),
        (r"[a\:b:c:5]", [(5, r"a\:b"), (10, "c")]),
        ("[кот:пёс:5]", [(5, "кот"), (10, "пёс")]),
    ],
)
def test_a_prompt_changes_at_its_steps(prompt, expected):
    assert scheduled(prompt, 10) == expected


@pytest.mark.parametrize(
    ("prompt", "turns"),
    [
        ("[a|b]", ["a", "b", "a", "b", "a"]),
        ("[a|b|]c", ["ac", "bc", "c", "ac", "bc"]),
        ("[|a]", ["", "a", "", "a", ""]),
        ("[[a|b]|c]", ["a", "c", "a", "c", "a"]),
        ("[a|b:c]", ["[a|b:c]"] * 5),
        ("[[a|b]:c:3]", ["a", "b", "a", "c", "c"]),
        ("[(a:1.2)|b]", ["(a:1.2)", "b", "(a:1.2)", "b", "(a:1.2)"]),
    ],
)
def test_alternatives_take_turns(prompt, turns):
    found = scheduled(prompt, 5)
    assert [next(text for end, text in found if step <= end) for step in range(1, 6)] == turns


@pytest.mark.parametrize(
    "prompt",
    [
        "a [cat]",
        "a [cat:dog]",
        "a [cat:dog:soon]",
        "a [b:c:d:5]",
        "(cat:1.3)",
        "a [cat:dog:5",
        "a cat:dog:5]",
        "a [(cat:dog:5]",
        r"a \[cat:dog:5\]",
        "cat|dog [a:b:5]",
        "(cat|dog) [a:b:5]",
        "[cat|dog [a:b:5]",
        "[a:b:5] \\",
        "[a:(b:c:d):5]",
        "",
    ],
)
def test_what_the_grammar_cannot_read_stays_as_it_is(prompt):
    assert scheduled(prompt, 10) == [(10, prompt)]


def test_a_schedule_is_read_inside_brackets_that_are_text():
    assert scheduled("((a][:b:c [d:3]", 10) == [(3, "((a][:b:c "), (10, "((a][:b:c d")]
    assert scheduled("note: [a:b:3] :)", 10) == [(3, "note: a :)"), (10, "note: b :)")]


def test_conditionings_name_every_step_once():
    found = conditionings("[a:b:3] AND [c|d] :0.5", 6)
    assert [number for each in found for number in each.steps] == [1, 2, 3, 4, 5, 6]
    said = {number: each.parts for each in found for number in each.steps}
    assert [[part.text.strip() for part in said[number]] for number in range(1, 7)] == [
        *(["a", "c"], ["a", "d"], ["a", "c"]),
        *(["b", "d"], ["b", "c"], ["b", "d"]),
    ]
    assert all([part.weight for part in parts] == [1.0, 0.5] for parts in said.values())


def test_a_prompt_without_signs_is_one_conditioning():
    (only,) = conditionings("a pirate ship, at night", 30)
    assert (only.steps, only.parts) == (range(1, 31), (("a pirate ship, at night", 1.0),))


def test_and_is_a_word_of_a_negative_prompt():
    (only,) = conditionings("fog AND rain", 5, composed=False)
    assert only.parts == (("fog AND rain", 1.0),)


def test_deep_nesting_is_read():
    depth = 2000
    assert scheduled("[a:" * depth + "b" + ":3]" * depth, 10) == [(3, "a"), (10, "b")]
    assert scheduled("[" * 10_000 + "b" + "]" * 10_000, 10)[0][0] == 10


@pytest.mark.parametrize("piece", ["a ", "[", "]", "[a", "a:", "|", "[a|b]", "[a:b:3]", "\\"])
def test_long_prompts_take_no_longer_than_they_are(piece):
    prompt = piece * (50_000 // len(piece))
    started = time.process_time()
    if piece in ("[a|b]", "[a:b:3]"):
        with pytest.raises(ValueError, match=f"shorten it to {MAX_LENGTH:,}"):
            scheduled(prompt, 1000)
    else:
        assert scheduled(prompt, 1000) == [(1000, prompt)]
    assert time.process_time() - started < 3

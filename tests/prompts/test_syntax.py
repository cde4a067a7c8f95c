"""A1111's grammar of weights."""

import random
import re
import time

import pytest

from genpipe.prompts.syntax import MAX_CONDITIONS, Span, conditions, plain_text, sections


def weights_by_character(prompt: str) -> list[tuple[str, float]]:
    """The grammar read character by character, each multiplied anew by every bracket around it."""
    found: list[list] = []
    opened: dict[str, list[int]] = {"(": [], "[": []}

    def close(kind: str, factor: float) -> None:
        for each in found[opened[kind].pop() :]:
            each[1] *= factor

    at = 0
    while at < len(prompt):
        character = prompt[at]
        number = re.match(r":\s*([+-]?(?:\d+\.?\d*|\.\d+))\s*\)", prompt[at:])
        if character == "\\":
            if at + 1 < len(prompt) and prompt[at + 1] in "()[]\\":
                found.append([prompt[at + 1], 1.0])
                at += 1
        elif character in "([":
            opened[character].append(len(found))
        elif number and opened["("]:
            close("(", float(number[1]))
            at += number.end() - 1
        elif character == ")" and opened["("]:
            close("(", 1.1)
        elif character == "]" and opened["["]:
            close("[", 1 / 1.1)
        else:
            found.append([character, 1.0])
        at += 1
    for kind, factor in (("(", 1.1), ("[", 1 / 1.1)):
        while opened[kind]:
            close(kind, factor)
    return [(character, weight) for character, weight in found]


@pytest.mark.parametrize(
    ("prompt", "spans"),
    [
        ("a plain prompt: no weights", [("a plain prompt: no weights", 1)]),
        ("a (red) cat", [("a ", 1), ("red", 1.1), (" cat", 1)]),
        ("a [red] cat", [("a ", 1), ("red", 1 / 1.1), (" cat", 1)]),
        ("(red:1.3)", [("red", 1.3)]),
        ("(red: .5 )", [("red", 0.5)]),
        ("(red:-1)", [("red", -1)]),
        ("((red:1.3) cat)", [("red", 1.43), (" cat", 1.1)]),
        ("([red])", [("red", 1)]),
        ("(red", [("red", 1.1)]),
        ("a [(red", [("a red", 1)]),
        ("red) cat]", [("red) cat]", 1)]),
        ("(red:blue)", [("red:blue", 1.1)]),
        ("[red:1.3]", [("red:1.3", 1 / 1.1)]),
        ("red:1.3)", [("red:1.3)", 1)]),
        (r"\(red\) \[cat\] \\", [(r"(red) [cat] \ "[:-1], 1)]),
        (r"a\b", [("ab", 1)]),
        (r"(red\)", [("red)", 1.1)]),
        ("(a)(b)", [("ab", 1.1)]),
        ("(a [b) c]", [("a ", 1.1), ("b", 1), (" c", 1 / 1.1)]),
        ("()", []),
        ("", []),
        ("(красный:1.5) кот", [("красный", 1.5), (" кот", 1)]),
    ],
)
def test_brackets_weigh_what_they_enclose(prompt: str, spans: list[tuple[str, float]]) -> None:
    (found,) = sections(prompt)
    assert [text for text, _ in found] == [text for text, _ in spans]
    assert [weight for _, weight in found] == pytest.approx([weight for _, weight in spans])


def test_generated_prompts_weigh_as_when_read_character_by_character() -> None:
    rng = random.Random(0)
    pieces = ["a", "red ", "(", ")", "[", "]", ":1.3)", ": 2 )", ":", "\\", "\\(", "\\]", "\\\\", ",", "é", "0.5"]
    for _ in range(3000):
        prompt = "".join(rng.choices(pieces, k=rng.randrange(1, 20)))
        (found,) = sections(prompt)
        characters = [(character, span.weight) for span in found for character in span.text]
        expected = weights_by_character(prompt)
        assert [character for character, _ in characters] == [character for character, _ in expected], prompt
        assert [w for _, w in characters] == pytest.approx([w for _, w in expected]), prompt


@pytest.mark.parametrize(
    ("prompt", "texts"),
    [
        ("a BREAK b", [["a"], ["b"]]),
        ("a  BREAK\n b BREAK", [["a"], ["b"], []]),
        ("BREAK a", [[], ["a"]]),
        ("BREAKFAST, a break", [["BREAKFAST, a break"]]),
        ("(a BREAK b:1.5)", [["a"], ["b"]]),
    ],
)
def test_break_divides_a_prompt(prompt: str, texts: list[list[str]]) -> None:
    assert [[span.text for span in spans] for spans in sections(prompt)] == texts


@pytest.mark.parametrize("number", ["nan", "inf", "-Infinity", "1e9", "1e0", "100.1", "-101", "1.2.3", ".", "9" * 5000])
def test_weights_that_are_no_numbers_in_range_are_refused_in_one_line(number: str) -> None:
    with pytest.raises(ValueError, match=r"^the weight .* must be a number from -100 to 100") as caught:
        sections(f"a (cat:{number}) here")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_brackets_that_multiply_out_of_range_are_refused() -> None:
    assert sections("(" * 40 + "cat")[0][0].weight == pytest.approx(1.1**40)
    for prompt in ("(" * 10_000 + "cat", "([" * 10_000 + "cat", "((((cat:99):99):99))"):
        with pytest.raises(ValueError, match=r"^brackets give 'cat' a weight beyond 100"):
            sections(prompt)


@pytest.mark.parametrize("prompt", ["([" * 400 + "cat", "(" * 10_000 + ")" * 10_000 + "cat", ")" * 10_000 + "cat"])
def test_deep_nesting_is_read(prompt: str) -> None:
    (found,) = sections(prompt)
    assert found[-1].text.endswith("cat") and found[-1].weight == pytest.approx(1)


@pytest.mark.parametrize(
    ("prompt", "parts"),
    [
        ("a cat", [("a cat", 1)]),
        ("at 12:30", [("at 12:30", 1)]),
        ("a AND b :0.5", [("a", 1), (" b", 0.5)]),
        ("a:2 AND b: -1 AND c", [("a", 2), (" b", -1), (" c", 1)]),
        ("(a:1.3) AND b", [("(a:1.3)", 1), (" b", 1)]),
        ("SAND AND HANDS and a hand", [("SAND", 1), (" HANDS and a hand", 1)]),
    ],
)
def test_and_joins_prompts_with_weights(prompt: str, parts: list[tuple[str, float]]) -> None:
    assert conditions(prompt) == [Span(*part) for part in parts]


def test_and_joins_a_few_prompts_only() -> None:
    assert len(conditions(" AND ".join("a" * MAX_CONDITIONS))) == MAX_CONDITIONS
    for prompt in (" AND ".join("a" * (MAX_CONDITIONS + 1)), "a :1000 AND b"):
        with pytest.raises(ValueError):
            conditions(prompt)


def test_the_words_of_a_prompt_are_given_without_signs() -> None:
    assert plain_text(r"(a [red] cat:1.2) \(real\) AND a dog :0.5") == "a red cat (real), a dog"
    assert plain_text("a cat BREAK at night") == "a cat at night"


@pytest.mark.parametrize("piece", ["a ", "(", "[", ")", "\\", ": ", ":1", "(a:1)", " BREAK ", " ", " AND ", "([", " :"])
def test_long_prompts_take_no_longer_than_they_are(piece: str) -> None:
    prompt = piece * (150_000 // len(piece))
    started = time.process_time()
    for read in (sections, conditions):
        try:
            read(prompt)
        except ValueError as error:
            assert len(str(error)) < 400
    assert time.process_time() - started < 4

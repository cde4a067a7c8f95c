"""Files of words that prompts take one line of."""

from pathlib import Path

import pytest

from genpipe.prompts.wildcards import Wildcards, names_in


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    files = {
        "colour": "\ufeffred\n\n# a comment\n  blue  \r\n",
        "thing": "__colour__ cat\ndog",
        "a": "__b__",
        "b": "x __a__",
        "empty": "\n# nothing\n",
        "цвет": "красный",
        "double": "__half__ __half__",
        "half": "__quarter__ __quarter__",
        "quarter": "y" * 40_000,
    }
    for name, text in files.items():
        (tmp_path / f"{name}.txt").write_text(text, encoding="utf-8")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\xfa")
    return tmp_path


@pytest.mark.parametrize(
    ("prompt", "texts"),
    [
        ("a __colour__ ship", {"a red ship", "a blue ship"}),
        ("__thing__!", {"red cat!", "blue cat!", "dog!"}),
        ("__colour__, __colour__", {f"{a}, {b}" for a in ("red", "blue") for b in ("red", "blue")}),
        ("__цвет__ кот", {"красный кот"}),
        ("(__colour__:1.3) {__thing__|x}", {f"({a}:1.3) {{{b}|x}}" for a in ("red", "blue") for b in ("red cat", "blue cat", "dog")}),
        ("snake_case, __ a __, ____", {"snake_case, __ a __, ____"}),
    ],
)  # fmt: skip
def test_a_wildcard_is_a_line_of_its_file(folder: Path, prompt: str, texts: set[str]) -> None:
    wildcards = Wildcards(folder)
    assert {wildcards.fill(prompt, seed) for seed in range(60)} == texts
    assert Wildcards(folder).fill(prompt, 7) == wildcards.fill(prompt, 7)


@pytest.mark.parametrize(
    ("prompt", "reason"),
    [
        ("__color__", r"__color__ has no file .*color.txt: did you mean __colour__\?"),
        ("__zzz__", "has no file .*zzz.txt: there are a, b, binary"),
        ("__../colour__", "is a path"),
        ("__sub/colour__", "is a path"),
        ("__.hidden__", "is a path"),
        ("__a__", "__a__ in __b__ in __a__ never ends: take it out of b.txt"),
        ("__empty__", "has no line to choose"),
        ("__binary__", "is not text in UTF-8"),
        ("__double__", "longer than 100,000 characters"),
    ],
)
def test_wildcards_that_cannot_be_filled_say_why_in_one_line(folder: Path, prompt: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason) as caught:
        Wildcards(folder).fill(prompt, 1)
    assert "\n" not in str(caught.value)


def test_a_folder_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is not a folder"):
        Wildcards(tmp_path / "missing")


def test_wildcards_of_a_prompt_are_named() -> None:
    assert names_in("__a__ x__b__, __init __ and __c d__") == ["a", "b"]

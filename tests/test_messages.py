"""What messages quote is short and printable, whatever it is."""

from collections import UserDict
from pathlib import Path

import numpy as np
import pytest
import torch

from genpipe.messages import LINE, VALUE, listed, one_line, quoted


class Broken:
    def __repr__(self) -> str:
        raise KeyError("no name")


class Loud:
    def __repr__(self) -> str:
        return "\x1b[31m\n" + "loud " * 10_000


NESTED: list[object] = []
for _ in range(2000):
    NESTED = [NESTED]
LOOP: dict[str, object] = {}
LOOP["me"] = LOOP
VALUES = [
    *(None, True, 1.5, float("nan"), 10**30, 10**5000, -(10**5000), b"\xff" * 9999, "", "корабль", "🏴‍☠️", "\ud800"),
    *("\x1b[2J\x00\x07", "\u202eabc", "x" * 300_000, "\x1b" * 300_000, "'" * 100, '"' * 79 + "'"),
    *([1] * 100_000, NESTED, LOOP, {"k" * 5000: "v" * 5000}, UserDict({"a": "b" * 5000}), range(10**9), object()),
    *(Broken(), [Broken()], Loud(), np.zeros((100, 100)), torch.zeros(100, 100), Path("a\n" * 3000), type, len),
]


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_anything_is_quoted_in_one_short_printable_line(value):
    for most in (VALUE, 30):
        text = quoted(value, most)
        assert 0 < len(text) <= most and text.isprintable()


def test_what_is_short_is_quoted_as_python_does():
    for value in ("ship", "it's", 'say "hi"', "корабль", "a\tb", -3, 2.5, None, [1, "a"], {"a": 1}, "x" * 78):
        assert quoted(value) == repr(value)
    assert quoted(Path("a/b")) == "'a/b'"
    long = quoted(Path("a" * 200, "b" * 20, "image.png"))
    assert len(long) == VALUE and long.startswith("'…") and long.endswith(f"{'b' * 20}/image.png'")
    assert quoted("\x1b[31m") == r"'\x1b[31m'"


def test_of_a_long_text_its_beginning_and_its_length_are_told():
    assert quoted("ship" * 1000).startswith("'shipship") and quoted("ship" * 1000).endswith("…' (4,000 characters)")
    assert quoted(10**5000) == "a number of about 5,001 digits"


def test_lists_are_cut_and_say_what_they_leave_out():
    assert listed(["a", "b"]) == "a, b" and listed([]) == ""
    assert listed(map(str, range(12)), most=2) == "0, 1 and 10 more"
    assert listed(range(5000)).endswith(", 9 and 4,990 more")
    assert listed(["x" * 5000, "a"]).startswith("xxx") and listed(["x" * 5000, *"abc"]).endswith("xxx, a, b, c")
    assert listed(["x" * 60] * 5000) == "x" * 60 + " and 4,999 more"


def test_a_long_line_keeps_its_end_which_says_what_to_do():
    assert one_line("a \n\t b\x1b[0m\ud800") == r"a b\x1b[0m\ud800"
    line = one_line("begin " + "\x00" * 300_000 + " end: do this")
    assert len(line) <= LINE and line.startswith("begin ") and line.endswith("end: do this")

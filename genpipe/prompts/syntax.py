"""A1111's grammar of weights: "(red:1.3) cat, [dog] BREAK at night AND snow :0.5".

(x) weighs 1.1 times as much, [x] 1 / 1.1 times, (x:1.3) 1.3 times, and what is nested is multiplied. A backslash makes the
bracket after it a character of the text. A bracket that nothing closes reaches to the end of the prompt, and one that nothing
opened is text. BREAK begins a new chunk of tokens, AND another prompt that guides the same image.

Everything here takes time in proportion to the prompt's length, whatever it holds.
"""

import math
import re
from collections.abc import Sequence
from typing import NamedTuple

from genpipe.messages import quoted

# The largest weight that brackets may give, either way; people use 0.5 to 1.6.
MAX_WEIGHT = 100.0
# Prompts that AND may join: each is one more evaluation of the denoiser per step.
MAX_CONDITIONS = 16
ROUND, SQUARE = 1.1, 1 / 1.1  # what a pair of brackets multiplies by

# A1111 reads a sign, digits and dots. What else looks like a number is found too, to be refused.
_LOOKS_LIKE_NUMBER = r"[+-]?(?:[.\d]++(?:e[+-]?\d++)?|nan|inf(?:inity)?)"
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)", re.ASCII)
_MARK = re.compile(
    rf"\\(?P<escaped>[()\[\]\\]?)|(?P<open>[(\[])|:\s*+(?P<weight>{_LOOKS_LIKE_NUMBER})\s*+\)|(?P<close>[)\]])"
    r"|(?P<text>[^\\()\[\]:]++|:)",
    re.ASCII | re.IGNORECASE,
)
_BREAK = re.compile(r"\bBREAK\b")
_AND = re.compile(r"\bAND\b")


class Span(NamedTuple):
    """A piece of a prompt and its weight."""

    text: str
    weight: float


def sections(prompt: str) -> list[list[Span]]:
    """Read the weights of a prompt.

    Returns:
        The spans between one BREAK and the next, in their order; neighbours of equal weight are one span. There is at least
        one section, and a section without text is empty.

    Raises:
        ValueError: a weight is not a number from -`MAX_WEIGHT` to `MAX_WEIGHT`, or brackets multiply to such a one.
    """
    texts: list[str | None] = []  # None is a BREAK
    pieces: list[str] = []  # of a text that no bracket has ended yet
    brackets = {"(": _Brackets(ROUND), "[": _Brackets(SQUARE)}
    for mark in _MARK.finditer(prompt):
        kind, text = mark.lastgroup, mark[0]
        closed = "(" if kind == "weight" or text == ")" else "["
        if kind == "open" or (kind in ("weight", "close") and brackets[closed].opened):
            texts += _divided("".join(pieces))
            pieces.clear()
            if kind == "open":
                brackets[text].open(len(texts))
            else:
                brackets[closed].close(len(texts), _weight(mark["weight"]) if kind == "weight" else None)
        else:
            pieces.append(mark["escaped"] if kind == "escaped" else text)
    texts += _divided("".join(pieces))
    found: list[list[Span]] = [[]]
    weights = zip(*(each.weights(len(texts)) for each in brackets.values()), strict=True)
    for text, (by_round, by_square) in zip(texts, weights, strict=True):
        if text is None:
            found.append([])
        elif text:
            found[-1].append(Span(text, _checked(text, by_round * by_square)))
    return [_merged(spans) for spans in found]


def conditions(prompt: str) -> list[Span]:
    """Split a prompt at each AND, into the prompts that guide one image together; "text :0.5" gives one its weight.

    Where there is no AND, the whole is one prompt of weight 1, whatever it ends in.

    Raises:
        ValueError: there are more than `MAX_CONDITIONS`, or a weight is out of range.
    """
    parts = _AND.split(prompt, maxsplit=MAX_CONDITIONS)
    if len(parts) == 1:
        return [Span(prompt, 1.0)]
    if len(parts) > MAX_CONDITIONS:
        raise ValueError(f"AND joins more than {MAX_CONDITIONS} prompts: leave some out, or join them by commas")
    found = []
    for part in parts:
        text, colon, number = part.rpartition(":")
        if colon and _NUMBER.fullmatch(number.strip()):
            found.append(Span(text.rstrip(), _weight(number.strip())))
        else:
            found.append(Span(part.rstrip(), 1.0))
    return found


def plain_text(prompt: str) -> str:
    """Give the words of a prompt without weights, brackets, AND and BREAK.

    Raises:
        ValueError: as `sections` and `conditions`.
    """
    parts = [
        " ".join("".join(span.text for span in spans) for spans in sections(condition.text))
        for condition in conditions(prompt)
    ]
    return ", ".join(part.strip() for part in parts)


class _Brackets:
    """The ranges of texts that pairs of one kind of bracket enclose. Round and square ones may cross each other."""

    def __init__(self, factor: float) -> None:
        self._factor = factor
        self.opened: list[int] = []  # where those that are open began
        self._begin: dict[int, list[float]] = {}  # what begins at a text multiplies by, the outermost first
        self._end: dict[int, int] = {}  # how many end before a text

    def open(self, at: int) -> None:
        self.opened.append(at)

    def close(self, at: int, factor: float | None = None) -> None:
        begin = self.opened.pop()
        if begin < at:
            self._begin.setdefault(begin, []).append(self._factor if factor is None else factor)
            self._end[at] = self._end.get(at, 0) + 1

    def weights(self, count: int) -> list[float]:
        """The product of the factors around each of `count` texts; what is still open reaches to the last of them."""
        while self.opened:
            self.close(count)
        found, products = [], [1.0]
        for at in range(count):
            for _ in range(self._end.get(at, 0)):
                products.pop()
            for factor in reversed(self._begin.get(at, ())):  # inner ones were closed, and noted, first
                products.append(products[-1] * factor)
            found.append(products[-1])
        return found


def _divided(text: str) -> list[str | None]:
    """The texts between one BREAK and the next, and None for each BREAK; the white space around it is left out."""
    parts = _BREAK.split(text)
    found: list[str | None] = []
    for index, part in enumerate(parts):
        part = part.lstrip() if index else part
        found += [part.rstrip() if index < len(parts) - 1 else part, None]
    return found[:-1] if text else []


def _weight(number: str) -> float:
    weight = float(number) if len(number) < 40 and _NUMBER.fullmatch(number) else math.nan
    if not abs(weight) <= MAX_WEIGHT:
        raise ValueError(
            f"the weight {quoted(number)} in the prompt must be a number from {-MAX_WEIGHT:g} to {MAX_WEIGHT:g}, as in "
            "(cat:1.3): correct it, or write \\( and \\) for brackets that are text"
        )
    return weight


def _checked(text: str, weight: float) -> float:
    if not abs(weight) <= MAX_WEIGHT and text.strip():
        raise ValueError(
            f"brackets give {quoted(text)} a weight beyond {MAX_WEIGHT:g}: take some of them away, or write \\( for "
            "brackets that are text"
        )
    return weight


def _merged(spans: Sequence[Span]) -> list[Span]:
    """Join neighbours of equal weight, up to rounding."""
    runs: list[tuple[list[str], float]] = []
    for text, weight in spans:
        if runs and math.isclose(runs[-1][1], weight, rel_tol=1e-9):
            runs[-1][0].append(text)
        else:
            runs.append(([text], weight))
    return [Span("".join(texts), weight) for texts, weight in runs]

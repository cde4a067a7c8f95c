"""A1111's grammar of prompts that change over the steps: "a [cat:dog:0.5], [red|blue]".

[a:b:N] is a until step N and b from there on, [b:N] begins b and [a::N] ends a. N with a decimal point is a fraction of the
steps, without one a number of steps. [a|b|c] takes turns, one step each. A prompt that this grammar cannot read stays as it
is. Brackets of weights, (x:1.3) and [x], are left for `genpipe.prompts.syntax`.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from genpipe.prompts.syntax import Span, conditions

# Characters of a prompt that changes: it is written out anew for every step.
MAX_LENGTH = 20_000

_TOKEN = re.compile(r"(?:[^\\\[\]():|]++|\\[^\n])++|[\[\]():|]")
_NUMBER = re.compile(r"\s*([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*", re.ASCII)


@dataclass(frozen=True)
class Conditioned:
    """What guides an image over some of its steps.

    Attributes:
        steps: their numbers, from 1.
        parts: the prompts, and how much each of them counts.
    """

    steps: range
    parts: tuple[Span, ...]


def conditionings(prompt: str, steps: int, *, composed: bool = True) -> list[Conditioned]:
    """Give the prompts that guide an image, from its first step to its last; all entries have as many parts.

    Args:
        prompt: in A1111's grammar.
        steps: of the whole image.
        composed: whether AND joins prompts; in a negative prompt it is a word.

    Raises:
        ValueError: too many prompts are joined, a weight is out of range, or a prompt that changes is too long.
    """
    parts = conditions(prompt) if composed else [Span(prompt, 1.0)]
    schedules = [scheduled(part.text, steps) for part in parts]
    ends = sorted({end for schedule in schedules for end, _ in schedule})
    found, first = [], 1
    for end in ends:
        texts = [next(text for last, text in schedule if end <= last) for schedule in schedules]
        spans = tuple(Span(text, part.weight) for text, part in zip(texts, parts, strict=True))
        found.append(Conditioned(range(first, end + 1), spans))
        first = end + 1
    return found


def scheduled(prompt: str, steps: int) -> list[tuple[int, str]]:
    """Give the texts that a prompt is in turn, each with the last of its steps, counted from 1.

    Raises:
        ValueError: it changes and is longer than `MAX_LENGTH`.
    """
    tokens = _TOKEN.findall(prompt)
    groups = _groups(tokens) if sum(map(len, tokens)) == len(prompt) else {}
    if not groups:
        return [(steps, prompt)]
    if len(prompt) > MAX_LENGTH:
        raise ValueError(
            f"a prompt of {len(prompt):,} characters cannot change over the steps: shorten it to {MAX_LENGTH:,}, or write "
            "\\[ for brackets that are text"
        )
    ends = {steps}
    for group in groups.values():
        ends |= set(range(1, steps + 1)) if group.when is None else {group.last(steps)} - {0}
    found: list[tuple[int, str]] = []
    for end in sorted(ends):
        text = _written(tokens, groups, end, steps)
        if found and found[-1][1] == text:
            found.pop()
        found.append((end, text))
    return found


@dataclass(slots=True)
class _Group:
    """Brackets whose content depends on the step.

    Attributes:
        close: the token that closes them.
        options: the ranges of tokens of which one is taken.
        when: the number that says until which step the first is; None where they take turns.
    """

    close: int
    options: list[tuple[int, int]]
    when: str | None = None

    def last(self, steps: int) -> int:
        """The last step of the first option."""
        assert self.when is not None
        number = float(self.when) * (steps if "." in self.when else 1)
        return int(min(max(number, 0), steps))

    def at(self, step: int, steps: int) -> tuple[int, int]:
        turn = (step - 1) % len(self.options) if self.when is None else int(step > self.last(steps))
        return self.options[turn]


@dataclass(slots=True)
class _Open:
    at: int
    colons: list[int] = field(default_factory=list)
    bars: list[int] = field(default_factory=list)


def _groups(tokens: Sequence[str]) -> dict[int, _Group]:
    """Find the brackets that depend on the step, by the token that opens them; {} also for what cannot be read.

    Brackets that do not match, or hold what they may not, are text, and so are those around them.
    """
    groups: dict[int, _Group] = {}
    stack: list[_Open] = []
    for at, token in enumerate(tokens):
        if token in ("(", "["):
            stack.append(_Open(at))
        elif token == ":" and stack:
            stack[-1].colons.append(at)
        elif token == "|":
            if not stack or tokens[stack[-1].at] == "(":
                return {}
            stack[-1].bars.append(at)
        elif token in (")", "]"):
            if stack and tokens[stack[-1].at] == "(["[token == "]"] and _is_whole(tokens, stack[-1], at):
                opened = stack.pop()
                if token == "]" and (group := _group(tokens, opened, at)):
                    groups[opened.at] = group
            elif any(opened.bars for opened in stack):
                return {}
            else:
                stack.clear()
    return {} if any(opened.bars for opened in stack) else groups


def _is_whole(tokens: Sequence[str], opened: _Open, close: int) -> bool:
    if tokens[close] == ")":
        return len(opened.colons) <= 1
    if not opened.colons:
        return True
    last = opened.colons[-1]
    return (
        not opened.bars
        and len(opened.colons) <= 2
        and last == close - 2
        and _NUMBER.fullmatch(tokens[close - 1]) is not None
    )


def _group(tokens: Sequence[str], opened: _Open, close: int) -> _Group | None:
    first = opened.at + 1
    if opened.bars:
        bounds = [opened.at, *opened.bars, close]
        return _Group(close, [(begin + 1, end) for begin, end in pairwise(bounds)])
    if not opened.colons:
        return None
    *before, colon = opened.colons
    middle = before[0] if before else None
    options = [(first, first), (first, colon)] if middle is None else [(first, middle), (middle + 1, colon)]
    return _Group(close, options, tokens[close - 1].strip())


def _written(tokens: Sequence[str], groups: dict[int, _Group], step: int, steps: int) -> str:
    """The prompt as it is at a step."""
    pieces: list[str] = []
    inside: list[tuple[int, int]] = []  # where the taken options end, and where to go on
    at, end, resume = 0, len(tokens), len(tokens)
    while True:
        if at >= end:
            if not inside:
                return "".join(pieces)
            at = resume
            end, resume = inside.pop()
        elif group := groups.get(at):
            inside.append((end, resume))
            at, end = group.at(step, steps)
            resume = group.close + 1
        else:
            pieces.append(tokens[at])
            at += 1

"""Alternatives that the seed chooses from: "a {red|blue} cat".

The prompt that is recorded keeps its braces: with its seed it is the same text again, with another seed another one.
"""

import hashlib
import re
from dataclasses import dataclass, field
from typing import Any

_TOKEN = re.compile(r"(?:[^\\{}|\[\]]++|\\.?)++|[{}|\[\]]", re.DOTALL)


def choose(prompt: str, seed: int, *, of: str = "prompt") -> str:
    """Write a prompt with one alternative of each pair of braces; those inside of others are chosen first.

    Braces without a bar, or without a partner, are text, as are those after a backslash. A bar in square brackets is
    A1111's, see `genpipe.prompts.schedule`.

    Args:
        prompt: any text.
        seed: of the image. Each choice depends on it and on how many braces close before, and on nothing else.
        of: which of the image's texts it is, so that prompt and negative prompt choose apart.
    """
    if "{" not in prompt:
        return prompt
    stack, braces, chosen = [_Frame("")], 0, 0
    for token in _TOKEN.findall(prompt):
        top = stack[-1]
        if token in ("{", "["):
            stack.append(_Frame(token))
            braces += token == "{"
        elif token == "|" and top.sign == "{":
            top.options.append([])
        elif token == "]" and top.sign == "[":
            stack.pop()
            stack[-1].options[-1] += [top.text(), token]
        elif token == "}" and braces:
            braces -= 1
            while stack[-1].sign == "[":  # which nothing closes
                top = stack.pop()
                stack[-1].options[-1].append(top.text())
            top = stack.pop()
            if len(top.options) > 1:
                stack[-1].options[-1].append(top.options[pick(len(top.options), seed, f"{of} {chosen}")])
                chosen += 1
            else:
                stack[-1].options[-1] += [top.text(), token]
        else:
            top.options[-1].append(token)
    while len(stack) > 1:
        top = stack.pop()
        stack[-1].options[-1].append(top.text())
    return _written(stack[0].options[0])


def pick(count: int, seed: int, choice: str) -> int:
    """Give a number from 0 to `count` - 1 that depends on the seed and on which choice of the image it is."""
    digest = hashlib.sha256(f"{seed} {choice}".encode()).digest()
    return int.from_bytes(digest[:8], "big") % count


@dataclass(slots=True)
class _Frame:
    """Brackets that are open: their sign, and what stands between the bars so far, as texts and lists of such."""

    sign: str
    options: list[list[Any]] = field(default_factory=lambda: [[]])

    def text(self) -> list[Any]:
        """What was read, as it stands."""
        bars = [part for option in self.options for part in ("|", option)]
        return [self.sign, *bars[1:]]


def _written(pieces: list[Any]) -> str:
    """The texts in lists within lists, one after the other."""
    found, left = [], [iter(pieces)]
    while left:
        for piece in left[-1]:
            if isinstance(piece, list):
                left.append(iter(piece))
                break
            found.append(piece)
        else:
            left.pop()
    return "".join(found)

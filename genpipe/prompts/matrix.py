"""A1111's prompt matrix: "a city|at night|in the rain" is one prompt for each choice of what stands after the bars."""

import re

from genpipe.messages import quoted

# Parts that may be left out: 2 to this power are the prompts.
MAX_PARTS = 10
_TOKEN = re.compile(r"\\.?|[()\[\]{}|]", re.DOTALL)


def combinations(prompt: str) -> list[str]:
    """Give the prompts of a matrix, the first part alone first and all parts together last.

    A bar in brackets or after a backslash divides nothing.

    Raises:
        ValueError: there is no bar, or there are more than `MAX_PARTS`.
    """
    base, *parts = (part.strip() for part in _divided(prompt))
    if not parts:
        raise ValueError(
            f"the prompt {quoted(prompt)} has no | for a matrix: write it as in a city|at night|in the rain"
        )
    if len(parts) > MAX_PARTS:
        raise ValueError(f"the prompt has {len(parts)} bars, which make 2^{len(parts)} images: use {MAX_PARTS} at most")
    found = []
    for number in range(2 ** len(parts)):
        chosen = [part for index, part in enumerate(parts) if number >> index & 1]
        found.append(", ".join(part for part in [base, *chosen] if part))
    return found


def _divided(prompt: str) -> list[str]:
    ends, depth = [], 0
    for token in _TOKEN.finditer(prompt):
        if token[0] in ("(", "[", "{"):
            depth += 1
        elif token[0] in (")", "]", "}"):
            depth = max(0, depth - 1)
        elif token[0] == "|" and not depth:
            ends.append(token.start())
    return [prompt[begin + 1 : end] for begin, end in zip([-1, *ends], [*ends, len(prompt)], strict=True)]

"""Numbers on the command line: what is none is handed on as it is, to the check that knows the range and says it."""

import re


def as_whole(text: str) -> int | str:
    """Read a whole number. Anything else stays text, which the check of the setting refuses with its range."""
    return int(text) if re.fullmatch(r"[+-]?[0-9]{1,40}", text.strip()) else text


def as_number(text: str) -> float | str:
    """Read a number. Anything else stays text, which the check of the setting refuses with its range."""
    try:
        return float(text)
    except ValueError:
        return text

"""Lines of A1111's script "Prompts from file or textbox": `--prompt "a ship" --steps 20`."""

import difflib
import re
import shlex

from genpipe.dialects.spellings import OURS, SPELLINGS, UNAVAILABLE, setting_name
from genpipe.messages import listed, quoted

# An escaped character, a quote that opens a word, another quote, or an option's name where a word begins.
_MARK = re.compile(r'\\.|(?P<opens>(?<![^\s=])")|"|(?<!\S)--(?P<name>[A-Za-z][\w-]*)(?=\s|=|$)', re.DOTALL)


def options_of(text: str) -> list[str]:
    """Name the options that stand in a line, outside of quotes."""
    return [name for name, _, _ in _options(text)]


def is_option(name: str) -> bool:
    """Tell whether an option of this name means something, here or in A1111's script."""
    name = setting_name(name)
    return name in OURS or name in UNAVAILABLE


def read_prompt_line(text: str) -> dict[str, str]:
    """Read a line's options, as texts, by their names as they stand.

    A value ends where the next option begins, and needs no quotes: `--prompt a lion's den --steps 2`. What stands before the
    first option is the prompt.

    Raises:
        ValueError: quotes do not match, an option is unknown, without a value or there twice.
    """
    found = _options(text)
    if not found:
        return {"prompt": text.strip()}
    values: dict[str, str] = {}
    if before := text[: found[0][1]].strip():
        values["prompt"] = before
    ends = [start for _, start, _ in found[1:]] + [len(text)]
    for (name, _, begin), end in zip(found, ends, strict=True):
        if not is_option(name):
            raise ValueError(f"the option --{name[:40]} is unknown{_nearest(name)}")
        value = text[begin:end].lstrip("=").strip()
        if not value:
            raise ValueError(f"--{name} has no value")
        if name in values:
            raise ValueError(f"--{name} is there twice: leave one out")
        values[name] = _unquoted(value)
    return values


def _options(text: str) -> list[tuple[str, int, int]]:
    """The name of each option, where it begins and where its name ends."""
    found: list[tuple[str, int, int]] = []
    quoted_ones: list[tuple[str, int, int]] = []
    inside = False
    for mark in _MARK.finditer(text):
        if mark["name"]:
            (quoted_ones if inside else found).append((mark["name"], mark.start(), mark.end()))
        elif mark["opens"] or (inside and mark[0] == '"'):
            inside = not inside
            quoted_ones.clear()
    return found + quoted_ones  # the latter after a quote that nothing closes


def _unquoted(value: str) -> str:
    if len(value) > 1 and value[0] == value[-1] == "'" and not re.search(r"'\s|\s'", value[1:-1]):
        return value[1:-1]
    if not re.search(r'(?<!\S)"', value):
        return value  # the other quotes are inches, or apostrophes
    words = shlex.shlex(value, posix=True)
    words.whitespace_split, words.commenters, words.quotes = True, "", '"'
    try:
        return " ".join(words)
    except ValueError:
        raise ValueError(f"its quotes do not match: {quoted(value)}") from None


def _nearest(name: str) -> str:
    known = sorted(OURS | UNAVAILABLE | SPELLINGS.keys())
    near = difflib.get_close_matches(name.lower().replace("-", "_"), known, n=1)
    return f": did you mean --{near[0]}?" if near else f": known are {listed(sorted(OURS), 30)}"

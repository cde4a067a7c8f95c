"""Styles by name: words that are put around a prompt, and behind a negative prompt. They ship, or come from a file.

The file is A1111's styles.csv: columns name, prompt and negative_prompt. Where the prompt holds {prompt}, that stands for what
a person wrote; else it is put behind, after a comma.
"""

import csv
import difflib
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import NamedTuple

from genpipe.messages import listed, quoted

SHIPPED = Path(__file__).with_name("styles.csv")
_HERE = "{prompt}"


class Style(NamedTuple):
    """What a style adds to a prompt and to a negative prompt."""

    prompt: str
    negative_prompt: str


@cache
def presets() -> dict[str, Style]:
    """Give the styles that ship, by name."""
    return read_styles(SHIPPED)


def read_styles(path: str | Path) -> dict[str, Style]:
    """Read a file of styles, by name; of two with one name the last counts.

    Raises:
        ValueError: it is not such a file.
        OSError: it cannot be read.
    """
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            columns = reader.fieldnames or ()
            # Old files call the prompt "text", and have no other.
            column = "prompt" if "prompt" in columns else "text"
            if "name" not in columns or column not in columns:
                raise ValueError(f"{path} has no columns name and prompt: give a file like A1111's styles.csv")
            rows = list(reader)
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} is not CSV in UTF-8 ({error}): save it as such") from None
    styles = {(row["name"] or "").strip(): Style(row[column] or "", row.get("negative_prompt") or "") for row in rows}
    styles.pop("", None)
    return styles


def apply_styles(
    prompt: str, negative_prompt: str, names: Iterable[str], known: Mapping[str, Style]
) -> tuple[str, str]:
    """Put styles around a prompt and a negative prompt, one after the other.

    Args:
        names: in any case.
        known: the styles to choose from.

    Returns:
        The prompt and the negative prompt.

    Raises:
        ValueError: a name is not known; those near it are named.
    """
    by_name = {name.casefold(): style for name, style in known.items()}
    for name in names:
        style = by_name.get(name.strip().casefold())
        if style is None:
            near = difflib.get_close_matches(name.strip().casefold(), by_name, n=3)
            hint = f"did you mean {' or '.join(near)}?" if near else f"there are {listed(known, 30, 250)}"
            raise ValueError(f"the style {quoted(name)} is unknown: {hint}")
        prompt = _merged(prompt, style.prompt)
        negative_prompt = _merged(negative_prompt, style.negative_prompt)
    return prompt, negative_prompt


def _merged(prompt: str, added: str) -> str:
    if _HERE in added:
        return added.replace(_HERE, prompt)
    return ", ".join(part for part in (prompt.strip(), added.strip()) if part)

"""What a value read from a file may be: kinds of values, tables of them by key, and JSON files read with care.

    KINDS = {"steps": whole(1, 1000), "sampler": text() | NULL}
    check(read_object(path), KINDS)

Whatever other programs wrote is checked so before anything is built of it. The errors name the key, its value and what is
allowed; the caller adds the file's name.
"""

import json
import math
import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from genpipe.messages import listed, quoted

MAX_BYTES = 2**27  # of a JSON file; the largest tokenizers are a quarter of it


@dataclass(frozen=True)
class Kind:
    """The values that a key may have: `accepts(value)` says whether one is among them, `says` what they are."""

    says: str
    accepts: Callable[[Any], bool]

    def __or__(self, other: "Kind") -> "Kind":
        return Kind(f"{self.says} or {other.says}", lambda value: self.accepts(value) or other.accepts(value))


Kinds = Mapping[str, Kind]

ANYTHING = Kind("anything", lambda _: True)
NULL = Kind("null", lambda value: value is None)
FLAG = Kind("true or false", lambda value: isinstance(value, bool))


def whole(low: int, high: int) -> Kind:
    """Whole numbers from `low` to `high`. A float without a fraction is not one, since networks are built with them."""
    return Kind(f"a whole number from {low} to {high}", lambda value: type(value) is int and low <= value <= high)


def number(low: float, high: float, *, above: bool = False) -> Kind:
    """Finite numbers from `low` to `high`, or `above`: all above `low`."""

    def accepts(value: Any) -> bool:
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            return False  # also NaN, which compares false
        return math.isfinite(value) and not (above and value == low)

    return Kind(f"a number {'above' if above else 'from'} {low:g} {'up ' if above else ''}to {high:g}", accepts)


def text(most: int = 1000) -> Kind:
    """Text of at most `most` characters that can be written as UTF-8."""

    def accepts(value: Any) -> bool:
        return isinstance(value, str) and len(value) <= most and _is_unicode(value)

    return Kind(f"text of at most {most} characters", accepts)


def _is_unicode(value: str) -> bool:
    return value.isascii() or not any("\ud800" <= character <= "\udfff" for character in value)


def one_of(*values: Any) -> Kind:
    """One of these values, and of their type: true is not 1."""
    shown = [json.dumps(value) for value in values]
    says = f"{', '.join(shown[:-1])} or {shown[-1]}" if len(shown) > 1 else shown[0]

    def accepts(value: Any) -> bool:
        alike = (isinstance(value, bool) == isinstance(allowed, bool) and value == allowed for allowed in values)
        return any(alike)

    return Kind(says, accepts)


def list_of(kind: Kind, least: int, most: int) -> Kind:
    """A list of `least` to `most` values of one kind."""

    def accepts(value: Any) -> bool:
        return isinstance(value, list) and least <= len(value) <= most and all(map(kind.accepts, value))

    count = f"{least}" if least == most else f"{least} to {most}"
    return Kind(f"a list of {count}, each {kind.says}", accepts)


def map_of(kind: Kind, least: int = 0) -> Kind:
    """An object of at least `least` keys, which can be written as UTF-8, with values of one kind."""

    def accepts(value: Any) -> bool:
        if not isinstance(value, dict) or len(value) < least:
            return False
        return all(map(_is_unicode, value)) and all(map(kind.accepts, value.values()))

    return Kind(f"an object whose values are each {kind.says}", accepts)


def check(
    content: Mapping[str, Any], kinds: Kinds, *, harmless: Collection[str] | None = None, required: Collection[str] = ()
) -> None:
    """Hold the values of an object to their kinds.

    Args:
        content: what was read.
        kinds: what each key may hold.
        harmless: further keys that change nothing, whose values are not looked at. A key that is in neither is refused,
            since what it would change would be dropped in silence; keys that begin with "_" are never. None takes all.
        required: keys that have to be there.

    Raises:
        ValueError: a value is not of its kind, or a key is missing or not known; names the key, the value and what is
            allowed.
    """
    if missing := [key for key in required if key not in content]:
        raise ValueError(f"it lacks {listed(missing)}")
    for key, value in content.items():
        kind = kinds.get(key)
        if kind is not None and not kind.accepts(value):
            raise ValueError(f"{key} must be {kind.says}, not {quoted(value)}")
        if kind is None and harmless is not None and key not in harmless and not key.startswith("_"):
            raise ValueError(
                f"the key {quoted(key)} ({quoted(value)}) is not one that genpipe knows: take it out if images do not "
                "depend on it"
            )


def check_file_name(path: str | os.PathLike[str]) -> None:
    """Raise ValueError for what can name no file: a NUL, or characters that the file system's encoding lacks."""
    try:
        encoded = os.fsencode(path)
    except UnicodeEncodeError:
        encoded = b"\0"
    if b"\0" in encoded:
        raise ValueError(f"{quoted(path)} cannot be a file's name: it holds a character that names may not have")


def parse_object(data: bytes) -> dict[str, Any]:
    """Read a JSON object from bytes: UTF-8, with or without a byte order mark.

    Raises:
        ValueError: they are something else; says what.
    """
    try:
        content = json.loads(data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ValueError(f"it is not JSON: byte {error.start} is not UTF-8, {quoted(data[:20])}") from None
    except json.JSONDecodeError as error:
        raise ValueError(
            f"it is not JSON: {error.msg} at line {error.lineno}, column {error.colno} of {quoted(error.doc)}"
        ) from None
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except ValueError:  # Python's own limit
        raise ValueError("it holds a number of more than 4300 digits") from None
    if not isinstance(content, dict):
        raise ValueError(f"it must hold a JSON object, not {quoted(content)}")
    return content


def read_object(path: Path) -> dict[str, Any]:
    """Read a JSON object from a file; the error does not name the file.

    Raises:
        ValueError: it holds something else, or more than `MAX_BYTES`.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise ValueError(f"it is larger than {MAX_BYTES // 2**20} MiB, which no file of its kind is")
    return parse_object(data)

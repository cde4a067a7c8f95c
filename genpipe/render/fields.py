"""The fields of a row, from the spellings that people and other programs use to the ones that the planner reads."""

import re
import warnings
from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any

from genpipe.dialects.spellings import CLIP_SKIP, OURS, UNAVAILABLE, asks_for_nothing, setting_name
from genpipe.fields import Flag, Number, Pair, Sides, Whole, settings_of
from genpipe.inputs import ArgumentList, Control, ControlList, ImageInput, InputImage, LoraList
from genpipe.messages import quoted
from genpipe.request import MAX_PICTURES, Request
from genpipe.sizes import parse_size

_KINDS = {name: described.kind for name, described in settings_of(Request).items()}
# Numbers among a row's fields.
WHOLE = {name for name, kind in _KINDS.items() if isinstance(kind, Whole)} | {"n", "batch_size", CLIP_SKIP}
FRACTIONS = {name for name, kind in _KINDS.items() if isinstance(kind, Number)}
# What is neither a number nor a text, but may be written as one.
_WRITTEN = {name: kind for name, kind in _KINDS.items() if isinstance(kind, Pair | Flag)}
_MAPPINGS = {name: kind for name, kind in _KINDS.items() if isinstance(kind, Sides | ArgumentList)}
_FILES = {name: kind for name, kind in _KINDS.items() if isinstance(kind, ImageInput | LoraList | ControlList)}
# Fields that are read together with others.
_COMBINED = {"batch_size", "size", "scheduler", "sampler_index", CLIP_SKIP}
# Past this, numbers with a decimal point no longer hold every whole number.
_EXACT = 1 << 53
_DIGITS = re.compile(r"[+-]?\d{1,400}", re.ASCII)
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.ASCII | re.IGNORECASE)
_SIZE = re.compile(r"\s*\d+\s*[x×]\s*\d+\s*", re.ASCII | re.IGNORECASE)


class FieldReader:
    """Reads the fields of the rows of one source; what genpipe does not have it warns of once by name."""

    def __init__(self) -> None:
        self._warned: set[str] = set()

    def read(self, given: Mapping[Any, Any], line: int, *, texts: bool = False) -> dict[str, Any]:
        """Give the fields that a row says, by our names and with numbers as numbers.

        None and NaN are what is left out; so is a seed of -1, which asks for any: the row's own is drawn then and recorded, or for `vary_seed` the next.
        7.0 is 7 where a whole number is wanted. `batch_size` images, `n_iter` times, are n; a size of 512x768 is width and
        height. Names that mean nothing here are carried through.

        Args:
            given: what the row says, by its own names.
            line: the row's.
            texts: all values are texts, as in CSV.

        Raises:
            ValueError: a value is not of its kind, or two spellings of one setting disagree.
        """
        found: dict[str, Any] = {}
        for key, value in given.items():
            if type(value) is not str and _is_missing(value):
                continue
            name = setting_name(key) if type(key) is str else _key(key)
            if name in WHOLE:
                if type(value) is not int:
                    value = _whole(key, value, texts)
            elif name in FRACTIONS:
                value = _fraction(key, value, texts)
            elif name in _WRITTEN and type(value) is str:
                value = _WRITTEN[name].read(name, value)
            elif name in _FILES:
                value = _files(name, value)
            elif name in _MAPPINGS:
                value = _MAPPINGS[name].check(name, value)
            elif name in UNAVAILABLE:
                self._warn(name, value, line)
            if (name in OURS or name in WHOLE) and name not in (*_FILES, *_MAPPINGS) and not _is_plain(value):
                raise ValueError(f"{key} must be text or a number, not {quoted(value)} ({type(value).__name__})")
            comparable = name in (*_FILES, *_MAPPINGS) or (_is_plain(value) and _is_plain(found.get(name, value)))
            if name in found and not (comparable and found[name] == value):
                first = next(one for one in given if type(one) is str and setting_name(one) == name)
                raise ValueError(f"{quoted(first)} and {quoted(key)} are one setting and disagree: leave one out")
            found[name] = value
        if -1 in (found.get("seed"), found.get("vary_seed")) or not found.keys().isdisjoint(_COMBINED):
            _combine(found)
        return found

    def warn_of_text(self, name: str, line: int) -> None:
        """Say once that an option in a prompt is drawn as words of it."""
        if f"--{name}" not in self._warned:
            self._warned.add(f"--{name}")
            warnings.warn(
                f"--{name[:40]} (line {line}) is not an option of genpipe: it is drawn as a part of the prompt",
                stacklevel=2,
            )

    def _warn(self, name: str, value: Any, line: int) -> None:
        if name not in self._warned and not asks_for_nothing(value):
            self._warned.add(name)
            warnings.warn(
                f"{name} (line {line}: {quoted(value)}) is not available in genpipe and changes no image: "
                "it is only carried through to metadata.jsonl",
                stacklevel=2,
            )


def _combine(found: dict[str, Any]) -> None:
    """Put into one what several fields say together."""
    for name in ("seed", "vary_seed"):
        if found.get(name) == -1:
            del found[name]
    if CLIP_SKIP in found:
        skipped = found.pop(CLIP_SKIP)
        skipped = skipped - 1 if type(skipped) is int and skipped > 0 else skipped
        if found.setdefault("clip_skip", skipped) != skipped:
            raise ValueError(f"clip_skip and {CLIP_SKIP}, which counts one more, disagree: leave one out")
    if "batch_size" in found:
        counts = {name: found[name] for name in ("batch_size", "n") if name in found}
        for name, count in counts.items():
            if type(count) is not int or not 1 <= count <= MAX_PICTURES:
                raise ValueError(f"{name} must be a whole number from 1 to {MAX_PICTURES}, not {quoted(count)}")
        found["n"] = found.pop("batch_size") * counts.get("n", 1)
    if isinstance(size := found.get("size"), str) and _SIZE.fullmatch(size):
        for name, side in zip(("width", "height"), parse_size(size), strict=True):
            if found.setdefault(name, side) != side:
                raise ValueError(f"{name} {quoted(found[name])} and size {quoted(size)} disagree: leave one out")
        del found["size"]
    if "sampler_index" in found:
        index = found.pop("sampler_index")
        if not isinstance(index, str) or index.strip().isdecimal():
            raise ValueError(
                f"sampler_index {quoted(index)} is another sampler in each version of the web UI: give its name as sampler"
            )
        if found.setdefault("sampler", index) != index:
            raise ValueError(
                f"sampler {quoted(found['sampler'])} and sampler_index {quoted(index)} disagree: leave one out"
            )
    if "scheduler" in found:
        # The web UI's newer versions name the solver and its spacing apart.
        spacing = found.pop("scheduler")
        if "sampler" not in found:
            found["sampler"] = spacing
        elif str(spacing).lower() not in ("automatic", str(found["sampler"]).lower()):
            found["sampler"] = f"{found['sampler']} {spacing}"


def _is_missing(value: Any) -> bool:
    """Tell None and NaN, which pandas writes for what is not there."""
    if type(value) is int:
        return False
    return value is None or (isinstance(value, Real) and value != value)  # noqa: PLR0124 - only NaN does


def _files(name: str, value: Any) -> Any:
    """Images or LoRAs, which other processes have to find again."""
    kind = _FILES[name]
    made = kind.read(name, value) if type(value) is str else kind.check(name, value)
    images = [made] if isinstance(made, InputImage) else [one.image for one in made if isinstance(one, Control)]
    if any(image.path is None for image in images):
        raise ValueError(f"{name} must be a file that every worker can read, not an image in memory: save it first")
    return made


def _is_plain(value: Any) -> bool:
    """Tell what a setting may be, of which the planner knows more: text, a number, or several numbers."""
    if isinstance(value, list | tuple):
        return len(value) < 10 and all(isinstance(one, int | float) for one in value)
    return isinstance(value, str | int | float)


def _key(key: Any) -> str:
    if isinstance(key, int):  # a column of pandas without a name
        return str(key)
    raise ValueError(f"the key {quoted(key)} is not text")


def _whole(name: Any, value: Any, texts: bool) -> Any:
    """A whole number where the value is one, as an int; what is none stays, for the check that knows the range."""
    if texts:
        text = value.strip()
        if _DIGITS.fullmatch(text):
            return int(text)
        if not _NUMBER.fullmatch(text) or not (number := float(text)).is_integer():
            raise ValueError(f"{name} must be a whole number, not {quoted(value)}")
    elif isinstance(value, bool) or not isinstance(value, Real):
        return value
    elif isinstance(value, Integral):  # numpy's
        return int(value)
    elif not (number := float(value)).is_integer():
        return value
    if abs(number) > _EXACT:
        raise ValueError(
            f"{name} {quoted(value)} has lost its last digits: write it without decimal point or exponent (in pandas as Int64)"
        )
    return int(number)


def _fraction(name: Any, value: Any, texts: bool) -> Any:
    """A number as a float; what is none stays, for the check that knows the range."""
    if not texts:
        return float(value) if isinstance(value, Real) and not isinstance(value, bool | int) else value
    text = value.strip()
    if not _NUMBER.fullmatch(text):
        raise ValueError(f"{name} must be a number, not {quoted(value)}")
    return float(text)

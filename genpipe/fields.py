"""Fields that describe themselves: what values they take, how a command asks for them, and what depends on them.

A field is declared once, in `Request` or `ModelSpec`; commands, manifests, files and checks are derived from it.
Imports no torch.
"""

import dataclasses
import math
import operator
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from numbers import Real
from typing import Any, Protocol

from genpipe.messages import listed, quoted


class Kind(Protocol):
    """What values a field takes. Errors are ValueErrors of one line that names the field."""

    @property
    def metavar(self) -> str:
        """What stands for a value in the help."""
        ...

    def check(self, name: str, value: Any) -> Any:
        """Give the value as it is stored, or refuse it."""
        ...

    def read(self, name: str, text: str) -> Any:
        """Give the value that a text stands for, in a command or a table, or refuse it."""
        ...

    def write(self, value: Any) -> str:
        """Give the text that `read` reads the value from."""
        ...


@dataclass(frozen=True)
class Whole:
    """A whole number from `low` to `high`; numpy's are taken too."""

    low: int
    high: int
    fix: str
    metavar: str = "N"

    def check(self, name: str, value: Any) -> int:
        try:
            number = None if isinstance(value, bool) else operator.index(value)
        except TypeError:
            number = None
        if number is None or not self.low <= number <= self.high:
            raise ValueError(f"{name} must be {self._allowed}, not {quoted(value)}: {self.fix}")
        return number

    def read(self, name: str, text: str) -> int:
        match = re.fullmatch(r"\s*([+-]?\d{1,30})(\.0*)?\s*", text, re.ASCII)
        if match is None:
            raise ValueError(f"{name} must be {self._allowed}, not {quoted(text)}: {self.fix}")
        return int(match[1])

    @property
    def _allowed(self) -> str:
        return f"a whole number from {self.low} to {self.high}"

    def write(self, value: Any) -> str:
        return str(value)


@dataclass(frozen=True)
class Number:
    """A number from `low` to `high`."""

    high: float
    fix: str
    low: float = 0.0
    metavar: str = "X"

    def check(self, name: str, value: Any) -> float:
        try:
            number = float(value) if isinstance(value, Real) and not isinstance(value, bool) else math.nan
        except OverflowError:
            number = math.inf
        if not self.low <= number <= self.high:
            raise self._refused(name, value)
        return number

    def read(self, name: str, text: str) -> float:
        try:
            return float(text)
        except ValueError:
            raise self._refused(name, text) from None

    def _refused(self, name: str, value: Any) -> ValueError:
        allowed = f"a number from {self.low:g} to {self.high:g}"
        return ValueError(f"{name} must be {allowed}, not {quoted(value)}: {self.fix}")

    def write(self, value: Any) -> str:
        return str(value)


@dataclass(frozen=True)
class Text:
    """Text; with `empty`, it may be empty."""

    metavar: str = "TEXT"
    empty: bool = True

    def check(self, name: str, value: Any) -> str:
        if not isinstance(value, str):
            raise ValueError(f"{name} must be text, not {quoted(value)} ({type(value).__name__}): give a str")
        try:
            value.encode()
        except UnicodeEncodeError as error:
            # Half a surrogate pair, or bytes of a command line in another encoding.
            bad = f"{value[error.start]!a} at character {error.start}"
            raise ValueError(f"{name} must be Unicode text, not {bad}: encode it as UTF-8") from None
        if not value and not self.empty:
            raise ValueError(f"{name} must not be empty: leave it out instead")
        return str(value)

    def read(self, name: str, text: str) -> str:
        return text

    def write(self, value: Any) -> str:
        return str(value)


@dataclass(frozen=True)
class Choice:
    """One of some words; `spellings` are others that stand for them."""

    words: tuple[str, ...]
    spellings: Mapping[str, str] = dataclasses.field(default_factory=dict)
    metavar: str = "NAME"

    def check(self, name: str, value: Any) -> str:
        word = self.spellings.get(value, value) if isinstance(value, str) else value
        if not isinstance(word, str) or word not in self.words:
            raise ValueError(f"{name} must be one of {', '.join(self.words)}, not {quoted(value)}")
        return word

    def read(self, name: str, text: str) -> str:
        return text.strip()

    def write(self, value: Any) -> str:
        return str(value)


@dataclass(frozen=True)
class Pair:
    """Two whole numbers from `low` on, the vertical one first; as text the horizontal one is first, as in 1024x768."""

    low: int
    high: int
    fix: str
    metavar: str = "WxH"

    def check(self, name: str, value: Any) -> tuple[int, int]:
        if not isinstance(value, tuple | list) or len(value) != 2:
            raise self._refused(name, value)
        number = Whole(self.low, self.high, self.fix)
        return number.check(name, value[0]), number.check(name, value[1])

    def read(self, name: str, text: str) -> tuple[int, int]:
        match = re.fullmatch(r"\s*(\d{1,9})[xX×,](\d{1,9})\s*", text, re.ASCII)
        if match is None:
            raise self._refused(name, text)
        return int(match[2]), int(match[1])

    def _refused(self, name: str, value: Any) -> ValueError:
        return ValueError(
            f"{name} must be two whole numbers from {self.low} to {self.high}, not {quoted(value)}: {self.fix}"
        )

    def write(self, value: Any) -> str:
        return f"{value[1]}x{value[0]}"


@dataclass(frozen=True)
class Sides:
    """Whole numbers for left, top, right and bottom, of which one at least is above 0; as text "left=128,right=64"."""

    high: int
    fix: str
    metavar: str = "SIDE=PX,SIDE=PX"

    def check(self, name: str, value: Any) -> tuple[int, int, int, int]:
        if isinstance(value, str):
            value = self.read(name, value)
        if isinstance(value, Mapping) and not value.keys() - set(_SIDES):
            value = [value.get(side, 0) for side in _SIDES]
        if not isinstance(value, tuple | list) or len(value) != 4:
            raise self._refused(name, value)
        number = Whole(0, self.high, self.fix)
        left, top, right, bottom = (number.check(name, side) for side in value)
        if not left + top + right + bottom:
            raise self._refused(name, value)
        return left, top, right, bottom

    def read(self, name: str, text: str) -> tuple[int, int, int, int]:
        found: dict[str, int] = dict.fromkeys(_SIDES, 0)
        for part in text.split(","):
            match = re.fullmatch(r"\s*(left|top|right|bottom)\s*=\s*(\d{1,9})\s*", part, re.ASCII)
            if match is None:
                raise self._refused(name, text)
            found[match[1]] = int(match[2])
        return found["left"], found["top"], found["right"], found["bottom"]

    def _refused(self, name: str, value: Any) -> ValueError:
        return ValueError(f"{name} must be pixels for left, top, right or bottom, not {quoted(value)}: {self.fix}")

    def write(self, value: Any) -> str:
        return ",".join(f"{side}={pixels}" for side, pixels in zip(_SIDES, value, strict=True) if pixels)


_SIDES = ("left", "top", "right", "bottom")


@dataclass(frozen=True)
class Flag:
    """True or false."""

    metavar: str = ""

    def check(self, name: str, value: Any) -> bool:
        if not isinstance(value, bool):
            raise ValueError(f"{name} must be true or false, not {quoted(value)}")
        return value

    def read(self, name: str, text: str) -> bool:
        word = text.strip().lower()
        if word not in ("true", "false", "1", "0", "yes", "no"):
            raise ValueError(f"{name} must be true or false, not {quoted(text)}")
        return word in ("true", "1", "yes")

    def write(self, value: Any) -> str:
        return str(value)


@dataclass(frozen=True)
class Setting:
    """What a field says of itself.

    Attributes:
        kind: what values it takes.
        help: its line in a command's help.
        flags: its spellings in a command; the help shows those up to the first long one. () derives one from its name.
        group: the heading that it stands under in a command's help.
        shared: whether all images of a batch must agree in it.
        draws: whether the image depends on it.
    """

    kind: Kind
    help: str
    flags: tuple[str, ...] = ()
    group: str = ""
    shared: bool = False
    draws: bool = True


def setting(
    kind: Kind,
    help: str,
    *,
    default: Any = dataclasses.MISSING,
    flags: tuple[str, ...] = (),
    group: str = "",
    shared: bool = False,
    draws: bool = True,
) -> Any:
    """Declare a dataclass field with its `Setting`; without a default it has to be given."""
    described = Setting(kind, help, flags, group, shared, draws)
    return dataclasses.field(default=default, metadata={"setting": described})


@cache
def settings_of(kind: type) -> Mapping[str, Setting]:
    """Give the `Setting` of every field of a dataclass, by name, in their order."""
    return {field.name: field.metadata["setting"] for field in dataclasses.fields(kind)}


@cache
def defaults_of(kind: type) -> Mapping[str, Any]:
    """Give the defaults of a dataclass's fields, by name; fields that must be given are left out."""
    return {field.name: field.default for field in dataclasses.fields(kind) if field.default is not dataclasses.MISSING}


def check_fields(instance: Any) -> None:
    """Check every field of a frozen dataclass, and store what its kind makes of it; None stays where it is the default.

    Raises:
        ValueError: a value is of the wrong type or out of its range; one line that says how to put it right.
    """
    defaults = defaults_of(type(instance))
    for name, described in settings_of(type(instance)).items():
        value = getattr(instance, name)
        if value is None and defaults.get(name, dataclasses.MISSING) is None:
            continue
        object.__setattr__(instance, name, described.kind.check(name, value))


def refuse_unknown(kind: type, keys: Iterable[Any], noun: str) -> None:
    """Raise ValueError if one of the keys is no field of a dataclass, which the message calls `noun`."""
    known = settings_of(kind)
    if unknown := sorted({str(key) for key in keys if key not in known}):
        raise ValueError(f"{noun} has no {listed(unknown, 5, 60)}: its keys are {listed(known, len(known), 120)}")

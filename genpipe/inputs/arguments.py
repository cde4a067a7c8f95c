"""Arguments that only some pipelines of diffusers take, by the names that they have there."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from genpipe.messages import quoted

Argument = tuple[str, bool | int | float | str]
_NAME = re.compile(r"[a-z][a-z0-9_]{0,60}")
_WHOLE = re.compile(r"[+-]?\d{1,18}", re.ASCII)
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d{1,3})?", re.ASCII | re.IGNORECASE)
_WORDS = {"true": True, "false": False}


@dataclass(frozen=True)
class ArgumentList:
    """The kind of a field that holds a tuple of names and values; see `genpipe.fields.Kind`."""

    metavar: str = "NAME=VALUE"

    def check(self, name: str, value: Any) -> tuple[Argument, ...]:
        """Give pairs of a name and a number, a text or a flag, by their names; of two with one name the last counts.

        Args:
            name: of the field.
            value: a mapping, or a list of pairs and of texts NAME=VALUE; a text may hold several with commas between.
        """
        if isinstance(value, Mapping):
            value = list(value.items())
        elif isinstance(value, str):
            value = [part for part in value.split(",") if part.strip()]
        if not isinstance(value, tuple | list):
            raise _refused(name, value)
        found = dict(_pair(name, one) for one in value)
        return tuple((key, found[key]) for key in sorted(found))

    def read(self, name: str, text: str) -> tuple[Argument, ...]:
        """Give the arguments of a text, with commas between them."""
        return self.check(name, text)

    def write(self, value: Any) -> str:
        """Give the text that `read` reads the arguments from."""
        return ",".join(f"{key}={str(one).lower() if isinstance(one, bool) else one}" for key, one in value)


def _pair(name: str, value: Any) -> Argument:
    if isinstance(value, str):
        key, equals, text = value.partition("=")
        value = (key.strip(), _value(text.strip())) if equals else value
    if not isinstance(value, tuple | list) or len(value) != 2:
        raise _refused(name, value)
    key, one = value
    if not isinstance(key, str) or not _NAME.fullmatch(key):
        raise _refused(name, key)
    number = isinstance(one, int | float) and math.isfinite(one)
    if not number and not isinstance(one, str):
        raise ValueError(f"{name}: {key} must be a number, a text, true or false, not {quoted(one)}")
    return key, one


def _refused(name: str, value: Any) -> ValueError:
    return ValueError(f"{name} must be NAME=VALUE, as in true_cfg_scale=4, not {quoted(value)}")


def _value(text: str) -> bool | int | float | str:
    """What a text stands for."""
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    if _WHOLE.fullmatch(text):
        return int(text)
    return float(text) if _NUMBER.fullmatch(text) else text

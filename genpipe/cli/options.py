"""Options of the commands, derived from the fields of `Request` and `ModelSpec`."""

import argparse
from collections.abc import Callable, Iterable
from typing import Any

from genpipe.fields import Choice, Flag, Kind, defaults_of, settings_of
from genpipe.sizes import parse_ratio, parse_size


def option(group: Any, *names: str, **kwargs: Any) -> None:
    """Add an option. Its names up to the first long one are in the help; the others, and a_b for a-b, work unseen."""
    shown = next(index for index, name in enumerate(names) if name.startswith("--") and len(name) > 3) + 1
    action = group.add_argument(*names[:shown], **kwargs)
    # The same spelling with underscores is what CompVis and diffusers use.
    hidden = [*names[shown:], *(name.replace("-", "_").replace("__", "--", 1) for name in names if "-" in name[2:])]
    kwargs |= {"dest": action.dest, "default": argparse.SUPPRESS, "help": argparse.SUPPRESS}
    if hidden:
        group.add_argument(*hidden, **kwargs)


def add_fields(group: Any, kind: type, names: Iterable[str]) -> None:
    """Add an option for each of these fields of a dataclass; what is not given stays None."""
    described = settings_of(kind)
    for name in names:
        field = described[name]
        flags = field.flags or (f"--{name.replace('_', '-')}",)
        more: dict[str, Any] = {"metavar": field.kind.metavar, "type": reader(name, field.kind)}
        if defaults_of(kind).get(name) == ():
            more |= {"action": "extend"}
        elif isinstance(field.kind, Flag):
            more = {"action": argparse.BooleanOptionalAction}
        elif isinstance(field.kind, Choice):
            more = {"metavar": "NAME", "choices": (*field.kind.words, *field.kind.spellings)}
        option(group, *flags, dest=name, default=None, help=field.help, **more)


def given_fields(args: argparse.Namespace, kind: type) -> dict[str, Any]:
    """Give the fields of a dataclass that options named, by name.

    Raises:
        ValueError: a value is out of its range.
    """
    given = {name: value for name in settings_of(kind) if (value := getattr(args, name, None)) is not None}
    return {name: settings_of(kind)[name].kind.check(name, value) for name, value in given.items()}


def reader(name: str, kind: Kind) -> Callable[[str], Any]:
    """Make argparse's `type` of a kind, whose errors say what is allowed."""

    def read(text: str) -> Any:
        try:
            return kind.check(name, kind.read(name, text))
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return read


def size(text: str) -> tuple[int, int]:
    """Read the width and the height that --size gives, as argparse's `type`."""
    try:
        return parse_size(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def ratio(text: str) -> float:
    """Read the ratio of width to height that --ar gives, as argparse's `type`."""
    try:
        return parse_ratio(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None

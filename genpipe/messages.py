"""What messages say of values: one short line, free of control characters, whatever the value is."""

import os
import re
import reprlib
from collections.abc import Iterable
from functools import partial
from typing import Any

LINE = 400  # characters of a line on stderr, and of the message of an error
VALUE = 80  # characters of a quoted value


class Notice(UserWarning):
    """A warning that keeps its sentence and its values apart, so that a page can say it in another language.

    Args:
        form: the sentence, with {names} where the values stand.
        values: by those names.
    """

    def __init__(self, form: str, **values: str | float) -> None:
        super().__init__(form.format(**values))
        self.form, self.values = form, values

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Notice) and str(self) == str(other)

    def __hash__(self) -> int:
        return hash(str(self))

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(Notice, self.form, **self.values), ()


class _Short(reprlib.Repr):
    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxstring, self.maxother = 3, 40, 60
        self.maxlist = self.maxtuple = self.maxset = self.maxfrozenset = self.maxdeque = self.maxdict = 4

    def repr_int(self, x: int, level: int) -> str:
        # Python refuses to print integers of more than 4300 digits.
        return (
            repr(x) if x.bit_length() <= 128 else f"a number of about {x.bit_length() * 30103 // 100000 + 1:,} digits"
        )


_SHORT = _Short()


def quoted(value: Any, most: int = VALUE) -> str:
    """Quote a value for a message: its `repr` in one line of printable characters, at most `most` of them.

    Args:
        value: anything, also an object whose own `repr` fails. Paths are quoted as text; of a long one the end is shown.
        most: characters; of a longer text the beginning is shown, and how long it is.
    """
    if isinstance(value, os.PathLike):
        value = os.fsdecode(value)
        while len(repr(value)) > most:
            value = "…" + value[2 if value[0] == "…" else 1 :][-most:]
    if isinstance(value, str) and len(repr(value[: most + 1])) > most:
        length = f" ({len(value):,} characters)"
        start = value[: most - len(length)]
        while len(repr(start + "…")) + len(length) > most:
            start = start[:-1]
        return repr(start + "…") + length
    try:
        text = repr(value) if isinstance(value, str) else re.sub(r" at 0x[0-9a-f]+", "", _SHORT.repr(value))
    except Exception:  # noqa: BLE001 - other people's `__repr__`
        text = f"an object of the class {type(value).__name__}"
    return one_line(text, most)


def listed(names: Iterable[Any], most: int = 10, characters: int = 100) -> str:
    """List names for a message, each shortened, and how many more there are: "a, b and 510 more".

    Args:
        names: texts, or what is to be shown by its `str`.
        most: names to show.
        characters: room for them; the first is shown in any case.
    """
    names = [str(name) for name in names]
    shown: list[str] = []
    for name in names[:most]:
        name = one_line(name, VALUE)
        if shown and sum(map(len, shown)) + len(name) > characters:
            break
        shown.append(name)
    more = f" and {len(names) - len(shown):,} more" if len(names) > len(shown) else ""
    return ", ".join(shown) + more


def one_line(text: str, most: int = LINE) -> str:
    """Put a text on one line: white space becomes one space, control characters are escaped.

    Of a text longer than `most` characters the beginning and the end are kept, since the end says what to do.
    """
    if len(text) > 4 * most:  # escaping makes a text longer, never shorter than a tenth
        text = text[: 2 * most] + " … " + text[-2 * most :]
    text = "".join(c if c.isprintable() else _escape(c) for c in " ".join(text.split()))
    if len(text) <= most:
        return text
    end = most // 3
    return f"{text[: most - end - 3].rstrip()} … {text[-end:].lstrip()}"


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")

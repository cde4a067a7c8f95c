"""Tables of prompts: CSV whose first line names its columns, separated by commas, semicolons or tabs."""

import csv
import warnings
from collections import deque
from collections.abc import Iterator
from typing import NamedTuple

from genpipe.dialects.spellings import setting_name
from genpipe.messages import quoted
from genpipe.render.lines import Line

SEPARATORS = {",": "a comma", ";": "a semicolon", "\t": "a tab"}


class Record(NamedTuple):
    """One row of a table: the values that it gives, by column, or why it cannot be read."""

    line: int
    values: dict[str, str]
    text: str
    error: str = ""


def read_table(lines: Iterator[Line], name: str) -> Iterator[Record]:
    """Read the rows below a line of names. Quoted values keep their line breaks and blank lines; blank rows are left out.

    A row that cannot be read takes no other with it: after a quote that nothing closes, reading goes on at the next line.

    Raises:
        ValueError: the table, called `name`, has no column of prompts, one twice, or more than one separator would do.
    """
    first = next(lines)
    separator, columns = _header(first, name)
    nameless = False
    for line, values, text, error in _records(lines, separator):
        if error:
            yield Record(line, {}, text, error)
            continue
        while len(values) > len(columns) and not values[-1].strip():
            values.pop()
        if len(values) > len(columns):
            fix = f"quote those with {SEPARATORS[separator].partition(' ')[2]}s"
            yield Record(line, {}, text, f"it has {len(values)} values for {len(columns)} columns: {fix}")
        elif any(value.strip() for value in values):
            filled = ((column, value) for column, value in zip(columns, values, strict=False) if value.strip())
            given = {column: value.replace("\r\n", "\n").replace("\r", "\n") for column, value in filled}
            if given.pop("", None) is not None and not nameless:
                nameless = True
                warnings.warn(f"{name}: column {columns.index('') + 1} has no name and is left out", stacklevel=2)
            yield Record(line, given, text)


def _header(line: Line, name: str) -> tuple[str, list[str]]:
    """The separator that finds a column of prompts in the first line, and the names of the columns."""
    if line.error:
        raise ValueError(f"line {line.number} of {name} cannot be read: {line.error}")
    found: dict[str, list[str]] = {}
    for separator in SEPARATORS:
        try:
            columns = [column.strip() for column in next(_reader([line.text], separator))]
        except csv.Error:
            continue
        if "prompt" in map(setting_name, columns):
            found[separator] = columns
    if not found:
        raise ValueError(f"{name} has no column named prompt: its first line reads {quoted(line.text.strip())}")
    if len(found) > 1:
        raise ValueError(
            f"{name} may be separated by {' or '.join(SEPARATORS[one] for one in found)}: "
            f"its first line reads {quoted(line.text.strip())}; quote the names of its columns"
        )
    ((separator, columns),) = found.items()
    for column in columns:
        if column and columns.count(column) > 1:
            raise ValueError(f"{name} has more than one column named {quoted(column)}: leave one out")
    return separator, columns


def _records(lines: Iterator[Line], separator: str) -> Iterator[tuple[int, list[str], str, str]]:
    """The line where each record begins, its values, it as it stands, and why it cannot be read."""
    again: deque[Line] = deque()  # lines of a record that could not be read: the first alone is to blame
    taken: list[Line] = []

    def following() -> Line | None:
        return again.popleft() if again else next(lines, None)

    def feed() -> Iterator[str]:
        yield taken[0].text
        while (line := following()) is not None:
            if line.error:
                again.appendleft(line)
                return
            taken.append(line)
            yield line.text

    while (first := following()) is not None:
        if first.error:
            yield first.number, [], first.text, first.error
            continue
        if '"' not in first.text and len(first.text) < csv.field_size_limit():  # several times as fast
            text = first.text.rstrip("\r\n")
            yield first.number, [value.lstrip(" ") for value in text.split(separator)], text, ""
            continue
        taken[:] = [first]
        try:
            values = next(_reader(feed(), separator))
        except csv.Error as error:
            again.extendleft(reversed(taken[1:]))
            yield first.number, [], first.text, _reason(error, separator)
            continue
        yield first.number, values, "".join(line.text for line in taken), ""


def _reader(lines: Iterator[str] | list[str], separator: str) -> Iterator[list[str]]:
    return csv.reader(lines, delimiter=separator, strict=True, skipinitialspace=separator != "\t")


def _reason(error: csv.Error, separator: str) -> str:
    text = str(error)
    if "unexpected end of data" in text:
        return "a quote that opens in it is never closed: close it, or write it twice where it is meant"
    if "expected after" in text:
        return f"after a closing quote {SEPARATORS[separator]} must follow: write quotes inside of quotes twice"
    if "field limit" in text:
        return f"a value is longer than {csv.field_size_limit():,} characters: is a quote never closed?"
    return f"it is not CSV ({text})"

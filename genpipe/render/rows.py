"""Lists of prompts, read row by row, whatever their length: .txt, .jsonl, .csv, standard input, or Python objects.

A row that cannot be read is still a row: it carries its line number and what is wrong, and the others go on.
"""

import json
import re
import sys
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import IO, Any, NamedTuple

from genpipe.dialects.prompt_lines import is_option, options_of, read_prompt_line
from genpipe.messages import one_line, quoted
from genpipe.render.fields import FieldReader
from genpipe.render.lines import Line, read_lines
from genpipe.render.tables import read_table
from genpipe.request import Request
from genpipe.sizes import parse_size

SUFFIXES = (".txt", ".jsonl", ".csv")


class Row(NamedTuple):
    """One row of the input.

    Attributes:
        line: where it begins, from 1.
        fields: what it says, by our names; {} where the row cannot be read.
        error: why it cannot be read, or "".
        text: the row as it stands, cut to 200 characters, where it cannot be read.
    """

    line: int
    fields: dict[str, Any]
    error: str = ""
    text: str = ""


def read_rows(source: str | Path | Iterable[Any]) -> Iterator[Row]:
    """Read the rows of a file ("-" is standard input), or of an iterable of prompts, dicts and `Request`s.

    Files are UTF-8, or UTF-16 with a byte order mark; their lines end in LF, CR LF or CR. In a .txt file a row is a prompt or
    a line of A1111's options (`--prompt "a ship" --steps 20`); blank lines and those that begin with # are left out. A .csv
    file has commas, semicolons or tabs. `FieldReader` says what spellings are understood.

    Raises:
        ValueError: the file is of another kind, empty, or not text.
        OSError: it cannot be read.
    """
    if not isinstance(source, str | Path):
        yield from _of_objects(source)
    elif str(source) == "-":
        if sys.stdin is None:
            raise ValueError("standard input is closed: give a file, or prompts on standard input")
        yield from _parsed(sys.stdin.buffer, None, "standard input")
    else:
        path = Path(source)
        if path.suffix.lower() not in SUFFIXES:
            raise ValueError(
                f"{quoted(source)} has to end in {', '.join(SUFFIXES)}: give a list of prompts, or - for stdin"
            )
        with path.open("rb") as file:
            yield from _parsed(file, path.suffix.lower(), one_line(str(source), 200))


def _parsed(file: IO[bytes], suffix: str | None, name: str) -> Iterator[Row]:
    lines = read_lines(file, name)
    first = next((line for line in lines if line.error or line.text.strip()), None)
    if first is None:
        raise ValueError(f"{name} is empty: give at least one prompt")
    if suffix is None:
        suffix = ".jsonl" if first.text.lstrip().startswith("{") else ".txt"
    every = chain([first], lines)
    if suffix == ".csv":
        yield from _of_table(every, name)
        return
    reader, parse = FieldReader(), _of_json if suffix == ".jsonl" else _of_text
    for line in every:
        text = line.text.strip()
        if line.error:
            yield _broken(line.number, line.error, text)
        elif text:
            try:
                fields = parse(reader, text, line)
            except ValueError as error:
                yield _broken(line.number, str(error), text)
            else:
                if fields is not None:
                    yield Row(line.number, fields)


def _of_objects(items: Iterable[Any]) -> Iterator[Row]:
    if not isinstance(items, Iterable):
        raise ValueError(f"{quoted(items)} is not a list of prompts: give a file, prompts, dicts or Requests")
    reader = FieldReader()
    for line, item in enumerate(items, start=1):
        if isinstance(item, Request):
            yield Row(line, {key: value for key, value in item.to_dict().items() if value is not None})
        elif isinstance(item, str):
            yield Row(line, {"prompt": item})
        elif isinstance(item, dict):
            try:
                yield Row(line, reader.read(item, line))
            except ValueError as error:
                yield _broken(line, str(error), quoted(item, 200))
        else:
            yield _broken(
                line, f"a row is of type {type(item).__name__}: give a prompt, a dict or a Request", quoted(item, 200)
            )


def _of_table(lines: Iterator[Line], name: str) -> Iterator[Row]:
    reader = FieldReader()
    for line, values, text, error in read_table(lines, name):
        try:
            if error:
                raise ValueError(error)
            fields = reader.read(values, line, texts=True)
        except ValueError as problem:
            yield _broken(line, str(problem), text)
        else:
            yield Row(line, fields)


def _of_text(reader: FieldReader, text: str, line: Line) -> dict[str, Any] | None:
    """The fields of a line that is a prompt, or A1111's options; None for a comment."""
    if text.startswith("#"):
        return None
    if "--" not in text:
        return {"prompt": text}
    if not text.startswith("--"):
        options = options_of(text)
        if not any(map(is_option, options)):
            for option in options:
                reader.warn_of_text(option, line.number)
            return {"prompt": text}
    given: dict[str, Any] = read_prompt_line(text)
    if "size" in given:
        # Width and height that are there, too, are compared with these.
        given["size"] = "x".join(map(str, parse_size(given["size"])))
    return reader.read(given, line.number, texts=True)


def _of_json(reader: FieldReader, text: str, line: Line) -> dict[str, Any]:
    try:
        value = _DECODER.decode(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"it is not JSON ({error.msg} at character {error.pos + 1})") from None
    except RecursionError:
        raise ValueError("it is not JSON (nested too deeply)") from None
    if not isinstance(value, dict):
        raise ValueError('it is not a JSON object: write {"prompt": "..."}')
    return reader.read(value, line.number)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object, in which no key may stand twice."""
    made = dict(pairs)
    if len(made) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in made if keys.count(key) > 1)
        raise ValueError(f"the key {quoted(twice)} stands twice in it: leave one out")
    return made


def _integer(text: str) -> int:
    if len(text) > 400:
        raise ValueError(f"a number in it has {len(text):,} digits: give a shorter one")
    return int(text)


_DECODER = json.JSONDecoder(object_pairs_hook=_once, parse_int=_integer)


def _broken(line: int, error: str, text: str) -> Row:
    return Row(line, {}, one_line(error), text.strip()[:200].encode("utf-8", "replace").decode())


def parse_seeds(text: str) -> list[int]:
    """Read "0-63,70" as a list of seeds.

    Raises:
        ValueError: it is not such a list, or holds more than 1,000,000.
    """
    seeds: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,20})(?:\s*-\s*(\d{1,20}))?\s*", part, re.ASCII)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if last < first or last >= 1 << 64:
            raise ValueError(f"seeds {quoted(text)} are not a list of seeds: write them as 0-63,70")
        if len(seeds) + last - first >= 1_000_000:
            raise ValueError(f"seeds {quoted(text)} are more than 1,000,000: give fewer")
        seeds += range(first, last + 1)
    return seeds

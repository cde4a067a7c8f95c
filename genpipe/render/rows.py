"""Reading lists of prompts, a row at a time, whatever their length: .txt, .jsonl, .csv, standard input, or Python objects.

A row that cannot be read is still a row: it carries its line number and what is wrong, and the others go on.
"""

import codecs
import csv
import json
import re
import shlex
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

from genpipe.request import Request

SUFFIXES = (".txt", ".jsonl", ".csv")
# A longer line is no prompt; and what has no line breaks at all must not fill the memory.
MAX_LINE = 1 << 20
# Foreign spellings, of diffusers and of A1111's "Prompts from file" script, and ours.
ALIASES = {
    "text": "prompt",
    "negative": "negative_prompt",
    "num_inference_steps": "steps",
    "cfg_scale": "guidance_scale",
    "sampler_name": "sampler",
    "scheduler": "sampler",
    "n_iter": "n",
    "num_images_per_prompt": "n",
}
WHOLE = ("seed", "n", "steps", "width", "height", "clip_skip")
FRACTIONS = ("guidance_scale", "guidance_rescale")


class Row(NamedTuple):
    """One row of the input.

    Attributes:
        line: where it begins, from 1.
        fields: by their canonical names; {} where the row cannot be read.
        error: why it cannot be read, or "".
        text: the row as it stands, cut to 200 characters, where it cannot be read.
    """

    line: int
    fields: dict[str, Any]
    error: str = ""
    text: str = ""


def read_rows(source: str | Path | Iterable[Any]) -> Iterator[Row]:
    """The rows of a file ("-" is standard input), or of an iterable of prompts, dicts and `Request`s.

    Files are UTF-8, or UTF-16 with a byte order mark. In a .txt file a row is a prompt or a line of A1111's options
    (`--prompt "a ship" --steps 20`); blank lines and those that begin with # are left out.

    Raises:
        ValueError: the file is of another kind, empty, or not text.
        OSError: it cannot be read.
    """
    if not isinstance(source, str | Path):
        yield from _objects(source)
    elif str(source) == "-":
        yield from _parsed(sys.stdin.buffer, None, "standard input")
    else:
        path = Path(source)
        if path.suffix.lower() not in SUFFIXES:
            raise ValueError(
                f"{str(source)!r} has to end in {', '.join(SUFFIXES)}: give a list of prompts, or - for stdin"
            )
        with path.open("rb") as file:
            yield from _parsed(file, path.suffix.lower(), str(source))


def _objects(items: Iterable[Any]) -> Iterator[Row]:
    for line, item in enumerate(items, start=1):
        if isinstance(item, Request):
            fields = {key: value for key, value in item.to_dict().items() if value is not None}
        elif isinstance(item, str):
            fields = {"prompt": item}
        elif isinstance(item, dict):
            fields = item
        else:
            yield _broken(line, f"{type(item).__name__} is not a prompt, a dict or a Request", repr(item))
            continue
        yield Row(line, canonical(fields))


def _parsed(file: IO[bytes], suffix: str | None, name: str) -> Iterator[Row]:
    lines = _lines(file, name)
    first = next(lines, None)
    if first is None:
        raise ValueError(f"{name} is empty: give at least one prompt")
    if suffix is None:
        suffix = ".jsonl" if first[1].lstrip().startswith("{") else ".txt"

    def again() -> Iterator[tuple[int, str, str]]:
        yield first
        yield from lines

    parse = {".txt": _texts, ".jsonl": _objects_of_lines, ".csv": _records}[suffix]
    yield from parse(again(), name)


def _lines(file: IO[bytes], name: str) -> Iterator[tuple[int, str, str]]:
    """(line number, text, error) of every line that is not blank."""
    start = file.read(4)
    wide = start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    if not wide and b"\0" in start:
        raise _not_text(name)
    rest = start + file.read(4096)
    if not wide and b"\0" in rest:
        raise _not_text(name)
    raw = _joined(rest, file, wide)
    decode = codecs.getincrementaldecoder("utf-16")().decode if wide else None
    for number, line in enumerate(raw, start=1):
        if number == 1 and not wide:
            line = line.removeprefix(codecs.BOM_UTF8)
        try:
            text = line.decode() if decode is None else decode(line)
        except UnicodeDecodeError:
            yield number, line.decode("utf-8", "replace"), "it is not UTF-8 text: save the file as UTF-8"
            continue
        if len(line) >= MAX_LINE:
            yield number, text, f"it is longer than {MAX_LINE:,} bytes"
        elif not text.isspace() and text:
            yield number, text, ""


def _joined(start: bytes, file: IO[bytes], wide: bool) -> Iterator[bytes]:
    """The lines of what was read already and of the rest of the file; of one that is too long, its beginning."""
    end = b"\n"
    if wide:
        end = "\n".encode("utf-16-le" if start.startswith(codecs.BOM_UTF16_LE) else "utf-16-be")
    buffer = start
    while True:
        *whole, buffer = _split(buffer, end)
        yield from whole
        if len(buffer) >= MAX_LINE:
            yield buffer
            while end not in (buffer := file.read(1 << 16)) and buffer:
                pass
            buffer = buffer.partition(end)[2]
            continue
        block = file.read(1 << 16)
        if not block:
            break
        buffer += block
    if buffer:
        yield buffer


def _split(data: bytes, end: bytes) -> list[bytes]:
    if len(end) == 1:
        return [*(line + end for line in data.split(end)[:-1]), data.rpartition(end)[2]]
    pieces, start = [], 0
    position = data.find(end)
    while position >= 0:
        if position % 2 == 0:  # at an odd place it is halves of two characters
            pieces.append(data[start : position + 2])
            start = position + 2
        position = data.find(end, position + 1 + (position + 1) % 2)
    return [*pieces, data[start:]]


def _texts(lines: Iterator[tuple[int, str, str]], _: str) -> Iterator[Row]:
    for number, text, error in lines:
        text = text.strip()
        if error:
            yield _broken(number, error, text)
        elif text.startswith("--"):
            yield _options(number, text)
        elif not text.startswith("#"):
            yield Row(number, {"prompt": text})


def _options(number: int, text: str) -> Row:
    """A line of A1111's "Prompts from file or textbox" script."""
    try:
        words = shlex.split(text)
    except ValueError as error:
        return _broken(number, f"its quotes do not match ({error})", text)
    fields: dict[str, Any] = {}
    index = 0
    while index < len(words):
        if not words[index].startswith("--"):
            return _broken(number, f"unexpected {words[index]!r}: put the prompt in quotes", text)
        if index + 1 == len(words):
            return _broken(number, f"{words[index]} has no value", text)
        fields[words[index][2:].replace("-", "_")] = words[index + 1]
        index += 2
    return _typed(number, canonical(fields), text)


def _objects_of_lines(lines: Iterator[tuple[int, str, str]], _: str) -> Iterator[Row]:
    # json.loads without its checks of what is known here.
    scan: Any = json.JSONDecoder().scan_once  # pyright: ignore[reportAttributeAccessIssue]
    for number, text, error in lines:
        if error:
            yield _broken(number, error, text)
            continue
        text = text.strip()
        try:
            fields, end = scan(text, 0)
            if end != len(text):
                raise ValueError(f"something follows the object at character {end + 1}")
        except (StopIteration, ValueError, RecursionError) as problem:
            reason = str(problem) if isinstance(problem, ValueError) else "no value begins here"
            yield _broken(number, f"it is not JSON ({reason})", text)
            continue
        if isinstance(fields, dict):
            yield Row(number, canonical(fields))
        else:
            yield _broken(number, 'it is not a JSON object: write {"prompt": "..."}', text)


def _records(lines: Iterator[tuple[int, str, str]], name: str) -> Iterator[Row]:
    broken: list[Row] = []
    at = 0

    def texts() -> Iterator[str]:
        nonlocal at
        for number, text, error in lines:
            at = number
            if error:
                broken.append(_broken(number, error, text))
            else:
                yield text

    reader = csv.reader(texts())
    header = [column.strip() for column in next(reader, [])]
    names = [ALIASES.get(column, column) for column in header]
    if "prompt" not in names:
        raise ValueError(f"{name} has no column named prompt: its first line reads {','.join(header)[:80]!r}")
    while True:
        begins = at
        try:
            values = next(reader)
        except StopIteration:
            break
        except csv.Error as error:
            yield _broken(at, f"it is not CSV ({error})", "")
            continue
        yield from broken
        broken.clear()
        text = ",".join(values)
        if len(values) > len(names):
            yield _broken(
                begins + 1, f"it has {len(values)} values for {len(names)} columns: quote those with commas", text
            )
            continue
        fields = {key: value for key, value in zip(names, values, strict=False) if value.strip() and key}
        yield _typed(begins + 1, fields, text)
    yield from broken


def _typed(line: int, fields: dict[str, Any], text: str) -> Row:
    """A row of texts with its numbers as numbers."""
    for key in (*WHOLE, *FRACTIONS):
        if key in fields:
            try:
                fields[key] = (int if key in WHOLE else float)(fields[key])
            except ValueError:
                kind = "a whole number" if key in WHOLE else "a number"
                return _broken(line, f"{key} must be {kind}, not {fields[key]!r:.60}", text)
    return Row(line, fields)


def canonical(fields: dict[str, Any]) -> dict[str, Any]:
    """The fields that are given, by their canonical names."""
    if ALIASES.keys().isdisjoint(fields) and None not in fields.values():
        return fields
    return {ALIASES.get(key, key): value for key, value in fields.items() if value is not None}


def _broken(line: int, error: str, text: str) -> Row:
    return Row(line, {}, " ".join(error.split()), text.strip()[:200].encode("utf-8", "replace").decode())


def _not_text(name: str) -> ValueError:
    return ValueError(f"{name} is not text: give prompts as {', '.join(SUFFIXES)} in UTF-8")


def parse_seeds(text: str) -> list[int]:
    """ "0-63,70" as a list of seeds.

    Raises:
        ValueError: it is not such a list, or holds more than 1,000,000.
    """
    seeds: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,20})(?:\s*-\s*(\d{1,20}))?\s*", part, re.ASCII)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if last < first or last >= 1 << 64:
            raise ValueError(f"seeds {text!r:.60} are not a list of seeds: write them as 0-63,70")
        if len(seeds) + last - first >= 1_000_000:
            raise ValueError(f"seeds {text!r:.60} are more than 1,000,000: give fewer")
        seeds += range(first, last + 1)
    return seeds

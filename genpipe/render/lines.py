"""The lines of a text file of any length: in UTF-8 or UTF-16, ended by LF, CR LF or CR."""

import codecs
from collections.abc import Iterator
from typing import IO, NamedTuple

# A longer line is not a prompt; and what has no line breaks at all must not fill the memory.
MAX_LINE = 1 << 20
_BLOCK = 1 << 18
_NOT_UTF8 = b"\xff"


class Line(NamedTuple):
    """One line.

    Attributes:
        number: from 1.
        text: with its end; of a line that is too long, the beginning.
        error: why it cannot be read, or "".
    """

    number: int
    text: str
    error: str = ""


def read_lines(file: IO[bytes], name: str) -> Iterator[Line]:
    """Read every line, blank ones too. UTF-16 is known by its byte order mark.

    Raises:
        ValueError: the file, called `name`, is not text.
        OSError: it cannot be read.
    """
    for number, line in enumerate(_split(_blocks(file, name)), start=1):
        error = ""
        try:
            text = line.decode()
        except UnicodeDecodeError:
            text, error = line.decode("utf-8", "replace"), "it is not UTF-8 text: save the file as UTF-8"
        if len(line) >= MAX_LINE:  # the last character may have been cut, too
            text, error = text[:MAX_LINE], f"it is longer than {MAX_LINE:,} bytes"
        yield Line(number, text, error)


def _blocks(file: IO[bytes], name: str) -> Iterator[bytes]:
    """The file in pieces, as UTF-8."""
    start = file.read(4096)
    wide = start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    if start.startswith(codecs.BOM_UTF32_LE) or (not wide and b"\0" in start):
        raise ValueError(f"{name} is not text: give prompts in UTF-8")
    if not wide:
        yield start.removeprefix(codecs.BOM_UTF8)
        while block := file.read(_BLOCK):
            yield block
        return
    # Halves of pairs, which are not text, go on to the decoding of their line.
    decoder = codecs.getincrementaldecoder("utf-16")("surrogatepass")
    while start:
        yield decoder.decode(start).encode("utf-8", "surrogatepass")
        start = file.read(_BLOCK)
    if decoder.getstate()[0]:
        yield _NOT_UTF8


def _split(blocks: Iterator[bytes]) -> Iterator[bytes]:
    """The lines of blocks, with their ends; of one that is too long, its beginning."""
    rest = b""
    for block in blocks:
        rest += block
        lines = rest.splitlines(keepends=True)
        # The last has no end yet; or a CR, which may be half of one.
        rest = lines.pop() if lines and not rest.endswith(b"\n") else b""
        yield from lines
        if len(rest) > MAX_LINE:
            rest = rest[:MAX_LINE] + (b"\r" if rest.endswith(b"\r") else b"")
    if rest:
        yield rest

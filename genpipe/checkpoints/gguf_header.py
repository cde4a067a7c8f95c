"""The header of a GGUF file: what tensors it holds and where, and what it says of itself.

gguf's own reader believes every length in the header, so that a damaged file may keep it busy for ever.
"""

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

_MOST = 2**20  # keys, tensors, and elements of one key
_DIMENSIONS = 4
_STRING, _ARRAY = 8, 9
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}


@dataclass(frozen=True)
class Place:
    """Where a tensor is in a file, in bytes, its shape, and the number of its type."""

    shape: tuple[int, ...]
    kind: int
    start: int
    size: int


class Header:
    """What a GGUF file says before its tensors.

    Args:
        path: of the file.
        sizes: for each type of tensors, how many numbers a block of it holds, and how many bytes that is.

    Attributes:
        fields: its keys: numbers, texts, or lists of either.
        places: its tensors, by name.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is no GGUF file, or truncated; says what is wrong.
    """

    def __init__(self, path: Path, sizes: Mapping[int, tuple[int, int]]) -> None:
        self._length = path.stat().st_size
        with path.open("rb") as self._file:
            if self._take(4) != b"GGUF":
                raise ValueError("it does not begin as a GGUF file does")
            version = self._number("I")
            if version not in (2, 3):
                raise ValueError(f"version {version} of GGUF is not known")
            tensors, keys = self._count(), self._count()
            self.fields: dict[str, Any] = {}
            for _ in range(keys):
                name = self._text()
                self.fields[name] = self._value(self._number("I"))
            found = [self._tensor() for _ in range(tensors)]
            align = self.fields.get("general.alignment", 32)
            if not isinstance(align, int) or align < 1:
                raise ValueError(f"general.alignment is {align!r}")
            start = -(-self._file.tell() // align) * align
        self.places: dict[str, Place] = {}
        for name, shape, kind, offset in found:
            if kind not in sizes:
                raise ValueError(f"{name} is of type {kind}, which is not known")
            block, size = sizes[kind]
            if name in self.places or shape[-1] % block:
                raise ValueError(f"{name} is there twice" if name in self.places else f"{name} has half a block")
            place = Place(shape, kind, start + offset, math.prod(shape) // block * size)
            if place.start + place.size > self._length:
                raise ValueError(f"{name} lies beyond its end")
            self.places[name] = place

    _file: BinaryIO

    def _take(self, count: int) -> bytes:
        if count > self._length - self._file.tell():
            raise ValueError("it ends within its header")
        return self._file.read(count)

    def _number(self, form: str) -> Any:
        return struct.unpack(f"<{form}", self._take(struct.calcsize(f"<{form}")))[0]

    def _count(self) -> int:
        count = self._number("Q")
        if count > _MOST:
            raise ValueError(f"it claims {count} of something")
        return count

    def _text(self) -> str:
        return self._take(self._count()).decode()

    def _value(self, kind: int, *, within: bool = False) -> Any:
        if kind in _SCALARS:
            return self._number(_SCALARS[kind])
        if kind == _STRING:
            return self._text()
        if kind != _ARRAY or within:
            raise ValueError(f"a key is of type {kind}")
        kind, count = self._number("I"), self._count()
        return [self._value(kind, within=True) for _ in range(count)]

    def _tensor(self) -> tuple[str, tuple[int, ...], int, int]:
        """Name, shape, type and offset of a tensor; the file lists the last dimension first."""
        name, dimensions = self._text(), self._number("I")
        if not 1 <= dimensions <= _DIMENSIONS:
            raise ValueError(f"{name} has {dimensions} dimensions")
        shape = tuple(self._number("Q") for _ in range(dimensions))[::-1]
        return name, shape, self._number("I"), self._number("Q")

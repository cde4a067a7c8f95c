"""Images of a request, each known by its content."""

import dataclasses
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from stat import S_ISREG
from typing import TYPE_CHECKING, Any

from genpipe.checks import check_file_name
from genpipe.messages import quoted

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True)
class InputImage:
    """An image that a request carries. Two of the same content are equal, wherever they lie.

    Attributes:
        sha256: of the file's bytes, or of the size, mode and pixels of an image that is in memory, in hex.
        path: the file's full path; None for an image in memory.
        held: the image in memory.
    """

    sha256: str
    path: str | None = dataclasses.field(default=None, compare=False, repr=False)
    held: "Image.Image | None" = dataclasses.field(default=None, compare=False, repr=False)

    @classmethod
    def of(cls, name: str, source: Any) -> "InputImage":
        """Make an input of a file, a PIL image, or what `to_dict` gave.

        Args:
            name: of the setting, for errors.
            source: a path, a PIL image, an `InputImage`, or {"path", "sha256"}.

        Raises:
            ValueError: it is none of these, the file is not there or cannot be read, or it has changed since.
        """
        if isinstance(source, cls):
            return source
        if isinstance(source, Mapping):
            return cls._recorded(name, source)
        if isinstance(source, str | Path) and str(source):
            path = Path(source).expanduser().absolute()
            return cls(file_hash(name, path), str(path))
        if not isinstance(source, str | Path) and hasattr(source, "tobytes") and hasattr(source, "mode"):
            data = f"{source.mode} {source.size} ".encode() + source.tobytes()
            return cls(hashlib.sha256(data).hexdigest(), held=source)
        raise ValueError(f"{name} must be an image file or a PIL image, not {quoted(source)}")

    @classmethod
    def _recorded(cls, name: str, made: Mapping[str, Any]) -> "InputImage":
        path, digest = made.get("path"), made.get("sha256")
        if not isinstance(digest, str):
            raise ValueError(f"{name} must be an image file or a PIL image, not {quoted(dict(made))}")
        if not isinstance(path, str):
            raise ValueError(f"{name} was given from memory (sha256 {digest[:12]}…): give its file with --{name}")
        try:
            found = file_hash(name, Path(path))
        except ValueError as error:
            raise ValueError(f"{error} (it had sha256 {digest[:12]}…): give its file with --{name}") from None
        if found != digest:
            raise ValueError(
                f"{name} {quoted(path)} has changed since (sha256 {found[:12]}…, it was {digest[:12]}…): "
                f"restore it, or give another with --{name}"
            )
        return cls(digest, path)

    def to_dict(self) -> dict[str, Any]:
        """Give what identifies it, ready for JSON."""
        return {"path": self.path, "sha256": self.sha256}

    def open(self) -> "Image.Image":
        """Read the image upright, as 8-bit RGB, or RGBA where it is transparent.

        Raises:
            ValueError: not an image, damaged, or one of too many pixels.
            OSError: the file cannot be read.
        """
        from genpipe.images import upright

        return upright(self.held if self.held is not None else str(self.path))


@dataclass(frozen=True)
class ImageInput:
    """The kind of a field that holds an `InputImage`; see `genpipe.fields.Kind`."""

    metavar: str = "FILE"

    def check(self, name: str, value: Any) -> InputImage:
        """Give the image as an `InputImage`, its content hashed."""
        return InputImage.of(name, value)

    def read(self, name: str, text: str) -> InputImage:
        """Give the image of a file's path."""
        return InputImage.of(name, text)

    def write(self, value: Any) -> str:
        """Give the path of the image's file."""
        return str(value.path)


def file_hash(name: str, path: Path) -> str:
    """Hash a file (SHA-256, in hex); kept while it does not change.

    Args:
        name: what errors call it.
        path: of the file.

    Raises:
        ValueError: it is not there, no file, or cannot be read.
    """
    check_file_name(path)
    try:
        found = path.stat()
        if not S_ISREG(found.st_mode):  # a pipe or a device may never end
            raise ValueError(f"{name} {quoted(path)} is not a file: give one")
        return _hash_of(path, found.st_size, found.st_mtime_ns)
    except OSError as error:
        raise ValueError(f"{name} {quoted(path)} cannot be read: {error.strerror}") from None


@lru_cache(maxsize=256)
def _hash_of(path: Path, size: int, changed: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

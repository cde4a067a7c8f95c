"""Where the bytes of images go: a folder, or what an fsspec URL names. Files appear whole or not at all."""

import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any, Protocol

from genpipe.messages import one_line

# A file to write that was not there; O_BINARY is Windows's.
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)


class Storage(Protocol):
    """A tree of files below one root; paths are relative, with slashes."""

    def write(self, path: str, data: bytes, *, durable: bool = True) -> None:
        """Write a file, whole or not at all.

        Args:
            durable: wait until the disk holds it. False is for what is made again with the file that it belongs to: it costs
                half as much, and a kill may leave a part of it.
        """
        ...

    def size(self, path: str) -> int | None:
        """Give a file's size in bytes; None for a file that is not there."""
        ...

    def read(self, path: str) -> bytes: ...


class Folder:
    """A folder of this machine, or one that machines share.

    A file is written below `.genpipe/parts` and then moved to its place, so whatever is elsewhere is whole (but for small
    copies of images that were not reported). The folder itself is not made: where it is gone, removed or unmounted,
    nothing is written in its place.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._parts = root / ".genpipe" / "parts"
        self._own, self._count = secrets.token_hex(8), count()  # no other writer has this name

    def write(self, path: str, data: bytes, *, durable: bool = True) -> None:
        put, target = _put_durably if durable else _put, f"{self.root}/{path}"
        part = f"{self._parts}/{self._own}-{next(self._count)}" if durable else target
        with suppress(FileNotFoundError, NotADirectoryError):  # folders are made when one is missing
            put(target, part, data)
            return
        self._make(self._parts)
        self._make(Path(target).parent)
        put(target, part, data)

    def size(self, path: str) -> int | None:
        try:
            return os.stat(f"{self.root}/{path}").st_size
        except (FileNotFoundError, NotADirectoryError):
            return None

    def read(self, path: str) -> bytes:
        return (self.root / path).read_bytes()

    def _make(self, folder: Path) -> None:
        """Make a folder below the root, and those between."""
        if folder.is_dir():
            return
        for parent in [*reversed(folder.relative_to(self.root).parents), folder.relative_to(self.root)][1:]:
            try:
                (self.root / parent).mkdir(exist_ok=True)
            except FileNotFoundError:
                gone = "this folder is gone: was it removed, or unmounted?"
                raise FileNotFoundError(errno.ENOENT, gone, str(self.root)) from None

    def sweep(self) -> None:
        """Remove what processes that were killed left half-written."""
        shutil.rmtree(self._parts, ignore_errors=True)


class Remote:
    """What an fsspec URL names; object stores put an object whole or not at all.

    Raises:
        ValueError: fsspec, or what it needs for this kind of URL, is not installed or refuses it.
    """

    def __init__(self, url: str) -> None:
        try:
            from fsspec.core import url_to_fs

            self._fs: Any
            self._fs, self._root = url_to_fs(url)
        except Exception as error:  # noqa: BLE001 - a client raises what it likes
            raise ValueError(f"the storage {one_line(url, 200)} cannot be used: {one_line(str(error), 200)}") from None

    def write(self, path: str, data: bytes, *, durable: bool = True) -> None:
        target = f"{self._root}/{path}"
        with _errors_of(target):
            self._fs.makedirs(target.rpartition("/")[0], exist_ok=True)
            self._fs.pipe_file(target, data)

    def size(self, path: str) -> int | None:
        target = f"{self._root}/{path}"
        with _errors_of(target):
            try:
                return self._fs.info(target)["size"]
            except FileNotFoundError:
                return None

    def read(self, path: str) -> bytes:
        target = f"{self._root}/{path}"
        with _errors_of(target):
            return self._fs.cat_file(target)


def _put(target: str, part: str, data: bytes) -> None:
    """Write a file in its place."""
    with _errors_of(target):
        try:
            file = os.open(part, _NEW, 0o666)
        except FileExistsError:
            os.unlink(part)  # it may be a link
            file = os.open(part, _NEW, 0o666)
        _fill(file, data, durable=False)


def _put_durably(target: str, part: str, data: bytes) -> None:
    """Write a file and move it to its place: `genpipe.files.atomic_write` in half as many calls of the system."""
    with _errors_of(target):
        try:
            _fill(os.open(part, _NEW, 0o666), data, durable=True)
            os.replace(part, target)
        except BaseException:
            with suppress(OSError):
                os.unlink(part)
            raise


def _fill(file: int, data: bytes, *, durable: bool) -> None:
    """Write all of a new file, and close it. After each call of the system a thread waits for the interpreter."""
    try:
        written = os.write(file, data)
        while written < len(data):
            written += os.write(file, memoryview(data)[written:])
        if durable:
            os.fsync(file)  # disks that are written late report that they are full only here
    finally:
        os.close(file)


@contextmanager
def _errors_of(target: str) -> Iterator[None]:
    """Raise what an object store's client or a disk raises, of whatever kind, as OSError that names the object."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno or errno.EIO, error.strerror or one_line(str(error)), target) from error
    except Exception as error:
        raise OSError(errno.EIO, one_line(f"{type(error).__name__}: {error}"), target) from error


def open_storage(root: str) -> Storage:
    """Open the storage at a folder's path or an fsspec URL ("s3://bucket/renders")."""
    return Remote(root) if "://" in root else Folder(Path(root))

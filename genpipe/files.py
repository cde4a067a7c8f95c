"""Files that appear whole or not at all."""

import errno
import hashlib
import os
import re
import secrets
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

# A file that is being written: the machine and the process that write it, and a number of its own.
_PART = re.compile(r"\.genpipe-([0-9a-f]{8})-(\d+)-[0-9a-f]{16}\.part")
_DAY = 86400.0
# Disks that cannot give a file a second name say one of these.
_NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EMLINK, errno.ENOSYS, errno.EACCES, errno.EXDEV}


@contextmanager
def atomic_write(
    path: Path, *, part: Path | None = None, durable: bool = False, replace: bool = True
) -> Iterator[Path]:
    """Give the path of an empty file to fill, and then move it to `path`; after any failure nothing is left of it.

    A full disk, an interrupt or a kill leaves no half-written file, and the file that was there stays whole. Where `path`
    is a link, the file that it leads to is replaced.

    Args:
        path: where the file is to appear.
        part: the file to fill, on the disk of `path`; then `path` itself is replaced, link or not. By default it lies
            beside `path` under a name that no other writer has, and `sweep` removes it if its writer was killed. A fixed
            name is for a place with one writer at a time, which overwrites what a killed one left.
        durable: wait until the file is on the disk, and not in a cache, before it is moved.
        replace: False never writes over a file that is there.

    Raises:
        FileExistsError: `replace` is False, and a file is there.
        OSError: the file cannot be written. Both name `path`.
    """
    # The temporary file of a link has to be on the disk of its target.
    target = path.resolve() if part is None and replace else path
    part = (
        target.with_name(f".genpipe-{_machine()}-{os.getpid()}-{secrets.token_hex(8)}.part") if part is None else part
    )
    try:
        part.unlink(missing_ok=True)
        with part.open("xb") as file:
            mode = os.fstat(file.fileno()).st_mode
        yield part
        if part.stat().st_mode != mode:  # safetensors makes files that only their owner can read
            part.chmod(mode)
        if durable:
            # Disks that are written late report that they are full only here.
            with part.open("rb+") as file:
                os.fsync(file.fileno())
        if replace:
            os.replace(part, target)
        else:
            _take_free_name(part, target)
    except OSError as error:
        # Without this it would name the temporary file, or none.
        raise OSError(error.errno or errno.EIO, error.strerror or str(error), str(path)) from error
    finally:
        with suppress(OSError):
            part.unlink()


def _take_free_name(part: Path, target: Path) -> None:
    """Name a whole file `target` in one step, which fails if that name is taken; another process may want it too."""
    try:
        os.link(part, target)
    except FileExistsError:
        raise
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        # A disk without links (FAT): between these two steps another process could take the name.
        if os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target)) from None
        os.replace(part, target)


def cache_folder() -> Path:
    """Say where genpipe keeps on the disk what it can find out again; it may not be there yet."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "genpipe"


def sweep(folder: Path) -> None:
    """Remove from a folder what killed writers of `atomic_write` left; what other machines left, after a day."""
    with suppress(OSError):
        for entry in os.scandir(folder):
            match = _PART.fullmatch(entry.name)
            if match and _is_left(entry, match[1], int(match[2])):
                with suppress(OSError):
                    os.unlink(entry.path)


def _is_left(entry: "os.DirEntry[str]", machine: str, process: int) -> bool:
    if os.name == "posix" and machine == _machine():
        try:
            os.kill(process, 0)  # asks whether it runs, and does nothing to it
        except (ProcessLookupError, OverflowError):
            return True
        except OSError:
            pass
    with suppress(OSError):
        return time.time() - entry.stat(follow_symlinks=False).st_mtime > _DAY
    return False


def _machine() -> str:
    name = os.uname().nodename if hasattr(os, "uname") else os.environ.get("COMPUTERNAME", "")
    return hashlib.sha256(name.encode("utf-8", "replace")).hexdigest()[:8]


def write_safetensors(
    path: Path, tensors: Mapping[str, "Tensor"], metadata: Mapping[str, str], *, part: Path | None = None
) -> None:
    """Write a safetensors file by `atomic_write`.

    Raises:
        OSError: the file cannot be written; names `path`.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    with atomic_write(path, part=part) as file:
        try:
            save_file(dict(tensors), file, metadata=dict(metadata))
        except SafetensorError as error:  # also what it says of a full disk
            raise OSError(errno.EIO, str(error)) from error

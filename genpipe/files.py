"""Files that appear whole or not at all."""

import errno
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@contextmanager
def atomic_write(path: Path, *, part: Path | None = None, durable: bool = False) -> Iterator[Path]:
    """The path of an empty file to fill, which is then moved over `path`; after any failure nothing is left of it.

    A full disk or an interrupt leaves neither half a file nor the loss of the one that was there. Where `path` is a link,
    the file that it leads to is replaced.

    Args:
        part: the file to fill, on the disk of `path`, which itself is replaced then, link or not. By default it is beside
            `path`, under a name that no other writer has. A fixed one is for a place of one writer at a time, where it
            overwrites what was left by a writer that was killed.
        durable: whether the file is to be on the disk, and not in a cache, before it is moved.

    Raises:
        OSError: the file cannot be written; names `path`.
    """
    # A link's temporary file has to be on the disk of its target.
    target = path.resolve() if part is None else path
    part = target.with_name(f".genpipe-{secrets.token_hex(8)}.part") if part is None else part
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
        os.replace(part, target)
    except OSError as error:
        # Without this it would name the temporary file, or none.
        raise OSError(error.errno or errno.EIO, error.strerror or str(error), str(path)) from error
    finally:
        with suppress(OSError):
            part.unlink()


def write_safetensors(
    path: Path, tensors: Mapping[str, "Tensor"], metadata: Mapping[str, str], *, part: Path | None = None
) -> None:
    """A safetensors file by `atomic_write`.

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

"""A checkpoint's tree of files, wherever it is, and the JSON in it."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, TypeVar

from genpipe.checkpoints.errors import CheckpointError
from genpipe.checkpoints.schema import check_config
from genpipe.checks import read_object
from genpipe.messages import one_line

T = TypeVar("T")


class Source(Protocol):
    """A tree of files; `str(source)` is what messages call it.

    Attributes:
        single: the file that the whole checkpoint is in; None for one in the diffusers layout.
    """

    single: str | None

    def find(self, name: str, *, optional: bool = False) -> Path | None:
        """Find the local path of the file `name` ("unet/config.json"), fetching it first if need be.

        Args:
            name: of the file in the tree.
            optional: the checkpoint is whole without it: what is wholly in the hub's cache is not looked for elsewhere.

        Returns:
            The path, None if there is no such file.
        """
        ...

    def lacks(self, name: str) -> str:
        """Say that there is no file `name`, and why it may be missing."""
        ...

    def listing(self, folder: str) -> list[str]:
        """List the names of the files in a folder, for error messages: [] where they cannot be known."""
        ...


class Folder:
    """A checkpoint's folder on this machine; `single` as in `Source`."""

    def __init__(self, root: Path, *, single: str | None = None) -> None:
        self.root, self.single = root, single

    def __str__(self) -> str:
        return str(self.root)

    def find(self, name: str, *, optional: bool = False) -> Path | None:
        path = self.root / name
        return path if path.is_file() else None

    def lacks(self, name: str) -> str:
        return f"{self} lacks {name}"

    def listing(self, folder: str) -> list[str]:
        path = self.root / folder
        return sorted(os.listdir(path)) if path.is_dir() else []


class Inner:
    """A tree whose files are those of one folder of another, which may not have it: `vae/x` is the other's `x`."""

    def __init__(self, source: Source, folder: str) -> None:
        self.single: str | None = None
        self._source, self._folder = source, f"{folder}/"

    def __str__(self) -> str:
        return str(self._source)

    def find(self, name: str, *, optional: bool = False) -> Path | None:
        return self._source.find(name.removeprefix(self._folder), optional=optional)

    def lacks(self, name: str) -> str:
        return self._source.lacks(name.removeprefix(self._folder))

    def listing(self, folder: str) -> list[str]:
        return self._source.listing("")


def read_json(source: Source, name: str, read: Callable[[dict[str, Any]], T]) -> T:
    """Read the JSON object in the file `name`, hold it to its table in `schema`, and return what `read` makes of it.

    Raises:
        CheckpointError: there is no such file, it is not a JSON object, a value is not allowed, or `read` refuses it;
            names the file, the key and the value.
    """
    path = source.find(name)
    if path is None:
        raise CheckpointError(source.lacks(name))
    try:
        content = read_object(path)
        check_config(name, content)
        return read(content)
    except (ValueError, TypeError, KeyError, AttributeError, IndexError, ArithmeticError) as error:
        raise CheckpointError(f"{source}/{name} cannot be used: {one_line(str(error), 300)}") from error

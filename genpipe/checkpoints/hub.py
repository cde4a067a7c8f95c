"""Where a checkpoint's files are: a folder on this machine, or a repository on the Hugging Face hub and its cache."""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, TypeVar

from genpipe.checkpoints.errors import CheckpointError

T = TypeVar("T")

_HUB_ID = re.compile(r"(?!.*(--|\.\.|\.git$))\w([\w.-]*\w)?/\w([\w.-]*\w)?", re.ASCII)


class Source(Protocol):
    """A tree of files; `str(source)` is what messages call it."""

    def find(self, name: str) -> Path | None:
        """The local path of the file `name` ("unet/config.json"), fetched first if need be; None if there is none."""
        ...

    def listing(self, folder: str) -> list[str]:
        """Names of the files in a folder, for error messages: [] where they cannot be known."""
        ...


class Folder:
    """A checkpoint's folder on this machine."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def __str__(self) -> str:
        return str(self.root)

    def find(self, name: str) -> Path | None:
        path = self.root / name
        return path if path.is_file() else None

    def listing(self, folder: str) -> list[str]:
        path = self.root / folder
        return sorted(os.listdir(path)) if path.is_dir() else []


class Repository:
    """A repository on the hub, all of whose files are read at the commit that its `model_index.json` was found at.

    Files that the cache holds at that commit are taken from it without asking the hub.
    """

    def __init__(self, name: str, revision: str | None) -> None:
        self.name = name
        self.reachable = True
        self._check_reachable(revision)
        index = self._fetch("model_index.json", revision)
        if index is None:
            raise CheckpointError(
                f"{self}: the repository has no model_index.json, so it is not in the diffusers layout"
            )
        self.root = index.parent
        self.commit = self.root.name

    def __str__(self) -> str:
        return self.name

    def find(self, name: str) -> Path | None:
        from huggingface_hub import _CACHED_NO_EXIST, try_to_load_from_cache

        cached = try_to_load_from_cache(self.name, name, revision=self.commit)
        if isinstance(cached, str):
            return Path(cached)
        if cached is _CACHED_NO_EXIST or not self.reachable:
            return None
        return self._fetch(name, self.commit)

    def listing(self, folder: str) -> list[str]:
        from huggingface_hub import HfApi

        cached = Folder(self.root).listing(folder)
        if not self.reachable:
            return cached
        try:
            entries = list(HfApi().list_repo_tree(self.name, folder, revision=self.commit))
        except Exception:  # noqa: BLE001 - whatever it is, there is an error to report already
            return cached
        return sorted(entry.path.rpartition("/")[2] for entry in entries)

    def _check_reachable(self, revision: str | None) -> None:
        """Fail at once where there is neither a cache nor a network: a download would be tried for half a minute."""
        from huggingface_hub import errors, get_hf_file_metadata, hf_hub_url, try_to_load_from_cache

        if isinstance(try_to_load_from_cache(self.name, "model_index.json", revision=revision), str):
            return
        try:
            get_hf_file_metadata(hf_hub_url(self.name, "model_index.json", revision=revision))
        except errors.HfHubHTTPError:
            pass  # it answers, and the download will find out what is wrong
        except Exception as error:
            raise self._unreachable() from error

    def _unreachable(self) -> CheckpointError:
        from huggingface_hub import constants

        reason = "HF_HUB_OFFLINE forbids asking the hub" if constants.HF_HUB_OFFLINE else "the hub cannot be reached"
        return CheckpointError(f"{self} is not a folder here, nor in the hub's cache, and {reason}")

    def _fetch(self, name: str, revision: str | None) -> Path | None:
        from huggingface_hub import errors, hf_hub_download

        try:
            return Path(hf_hub_download(self.name, name, revision=revision))
        except errors.GatedRepoError:
            raise CheckpointError(
                f"{self} is gated: accept its terms on the hub and log in with `hf auth login`"
            ) from None
        except errors.RepositoryNotFoundError:
            raise CheckpointError(
                f"{self} is neither a folder here nor a repository on the hub (a private one needs `hf auth login`)"
            ) from None
        except errors.RevisionNotFoundError:
            raise CheckpointError(f"{self} has no revision {revision!r} on the hub") from None
        except errors.LocalEntryNotFoundError:
            if name == "model_index.json":
                raise self._unreachable() from None
            self.reachable = False
            return None
        except errors.EntryNotFoundError:
            return None
        except Exception as error:  # the HTTP client's own errors change with the hub library's version
            reason = " ".join(str(error).split()) or type(error).__name__
            raise CheckpointError(f"{self}: {name} could not be fetched from the hub: {reason}") from error


def open_source(path_or_id: str | Path, revision: str | None = None) -> Source:
    """The folder at a path, or else the repository of a hub id "owner/name" (`revision`: its branch, tag or commit).

    Raises:
        CheckpointError: there is neither.
    """
    text = str(path_or_id).strip()
    path = os.path.expanduser(text)
    if text and os.path.isdir(path):
        return Folder(Path(path))
    if text and os.path.exists(path):
        raise CheckpointError(f"{text} is a file: give the folder of a checkpoint in the diffusers layout")
    if isinstance(path_or_id, Path) or not _HUB_ID.fullmatch(text):
        raise CheckpointError(f"the folder {text!r} does not exist (and a hub id would look like 'owner/name')")
    return Repository(text, revision)


def read_json(source: Source, name: str, read: Callable[[dict[str, Any]], T]) -> T:
    """What `read` makes of the JSON object in the file `name`.

    Raises:
        CheckpointError: there is no such file, it is not a JSON object, or `read` refuses it; names the file.
    """
    path = source.find(name)
    if path is None:
        raise CheckpointError(f"{source} has no {name}")
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
        if isinstance(content, dict):
            return read(content)
        raise ValueError("it is not a JSON object")
    except (ValueError, TypeError, KeyError, AttributeError, IndexError, ArithmeticError, RecursionError) as error:
        raise CheckpointError(f"{source}/{name} cannot be used: {error}") from error

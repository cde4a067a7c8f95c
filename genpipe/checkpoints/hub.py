"""Where a checkpoint's files are: a folder on this machine, or a repository on the Hugging Face hub and its cache."""

import logging
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, TypeVar

from genpipe.checkpoints.errors import CheckpointError
from genpipe.checkpoints.schema import check_config
from genpipe.checks import read_object
from genpipe.messages import one_line, quoted

T = TypeVar("T")

_LOG = logging.getLogger(__name__)
_HUB_ID = re.compile(r"(?!.*(--|\.\.|\.git$))\w([\w.-]*\w)?/\w([\w.-]*\w)?", re.ASCII)
_REVISION = re.compile(r"(?!.*\.\.)[^\s/\\:?*\[\]~^-][^\s\\:?*\[\]~^]{0,200}")
_PATIENCE = 3.0  # seconds in which the hub has to answer, where the cache could do without it
_DEFAULTS = "genpipe.json"


class Source(Protocol):
    """A tree of files; `str(source)` is what messages call it."""

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
    """A checkpoint's folder on this machine."""

    def __init__(self, root: Path) -> None:
        self.root = root

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


class Repository:
    """A repository on the hub, all of whose files are read at the commit that its `model_index.json` was found at.

    Files that the cache holds at that commit are taken from it. The hub is asked once, for a few seconds, which commit a
    branch is at; if it does not answer, what the cache holds is used.

    Raises:
        CheckpointError: there is no such repository or revision, or neither a cached one nor an answer.
    """

    def __init__(self, name: str, revision: str | None) -> None:
        from huggingface_hub import constants

        self.name = name
        self.reachable = not constants.HF_HUB_OFFLINE
        self._has_defaults = False
        self._status: int | None = None  # of an answer that is no answer
        index = self._cached("model_index.json", revision)
        # A commit never changes, a branch may.
        if self.reachable and (index is None or index.parent.name != revision):
            commit = self._ask(revision)
            if index is not None and not self.reachable:
                _LOG.warning("%s: the hub does not answer, so the files in its cache are used", self.name)
            elif index is None or index.parent.name != commit:
                index = self._fetch("model_index.json", revision) if self.reachable else None
                if index is None and self.reachable:
                    raise CheckpointError(
                        f"{self}: the repository has no model_index.json, so it is not in the diffusers layout"
                    )
        if index is None:
            raise CheckpointError(f"{self} is not a folder here, nor in the hub's cache, and {self._why}")
        self.root = index.parent
        self.commit = self.root.name
        # Another program may have fetched it, which knows nothing of our own files.
        self._complete = any(file.endswith(".safetensors") for file in Folder(self.root).listing("unet"))

    def __str__(self) -> str:
        return self.name

    def find(self, name: str, *, optional: bool = False) -> Path | None:
        from huggingface_hub import _CACHED_NO_EXIST, try_to_load_from_cache

        cached = try_to_load_from_cache(self.name, name, revision=self.commit)
        if isinstance(cached, str):
            return Path(cached)
        if cached is _CACHED_NO_EXIST or not self.reachable:
            return None
        if optional and self._complete and not (name == _DEFAULTS and self._has_defaults):
            return None
        return self._fetch(name, self.commit)

    def lacks(self, name: str) -> str:
        if self.reachable:
            return f"{self} lacks {name} on the hub"
        return f"{self}: the hub's cache holds only a part of it, without {name}, and {self._why}"

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

    @property
    def _why(self) -> str:
        """Why the hub is not asked, and what to do."""
        from huggingface_hub import constants

        if constants.HF_HUB_OFFLINE:
            return "HF_HUB_OFFLINE forbids asking the hub: set it to 0 to fetch it"
        if self._status is not None:
            return f"the hub answers with status {self._status}: try again later"
        return "the hub cannot be reached: fetch it where there is a network"

    def _cached(self, name: str, revision: str | None) -> Path | None:
        from huggingface_hub import try_to_load_from_cache

        cached = try_to_load_from_cache(self.name, name, revision=revision)
        return Path(cached) if isinstance(cached, str) else None

    def _ask(self, revision: str | None) -> str | None:
        """Ask the hub, once and for a few seconds, which commit a revision is, and whether `genpipe.json` is there.

        Where it does not answer, `reachable` becomes False. None also where it answers something else: what is wrong with
        the name or the revision is found by fetching.
        """
        from huggingface_hub import constants, errors, get_hf_file_metadata, hf_hub_url

        try:
            found = get_hf_file_metadata(hf_hub_url(self.name, _DEFAULTS, revision=revision), timeout=_PATIENCE)
        except errors.HfHubHTTPError as error:
            status = error.response.status_code
            if status >= 500 or status == 429:  # too many requests
                self.reachable, self._status = False, status
            return self._checked(error.response.headers.get(constants.HUGGINGFACE_HEADER_X_REPO_COMMIT))
        except Exception:  # noqa: BLE001 - the HTTP client's own errors change with the hub library's version
            self.reachable = False
            return None
        self._has_defaults = True
        return self._checked(found.commit_hash)

    def _checked(self, commit: str | None) -> str | None:
        """Refuse what is no commit: the cache makes a folder of that name."""
        if commit is not None and not re.fullmatch(r"[0-9a-f]{40}", commit):
            raise CheckpointError(f"{self}: the hub gives {quoted(commit)} for a commit: is HF_ENDPOINT a hub?")
        return commit

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
            raise CheckpointError(f"{self} has no revision {quoted(revision)} on the hub") from None
        except errors.LocalEntryNotFoundError:
            self.reachable = False
            return None
        except errors.EntryNotFoundError:
            return None
        except Exception as error:  # the HTTP client's own errors change with the hub library's version
            reason = one_line(str(error), 200) or type(error).__name__
            raise CheckpointError(f"{self}: {name} could not be fetched from the hub: {reason}") from error


def open_source(path_or_id: str | Path, revision: str | None = None) -> Source:
    """Open the folder at a path, or else the repository of a hub id "owner/name".

    Args:
        path_or_id: the path or the id.
        revision: branch, tag or commit of a repository; None is its main branch.

    Raises:
        CheckpointError: there is neither, or a revision is given for a folder.
    """
    text = str(path_or_id).strip()
    path = os.path.expanduser(text)
    if revision is not None and not _is_revision(revision):
        raise CheckpointError(f"revision {quoted(revision)} is not one: give a branch, a tag or a commit of the hub")
    if text and os.path.isdir(path):
        if revision is not None:
            raise CheckpointError(f"{text} is a folder here, which has no revision {quoted(revision)}: leave it out")
        return Folder(Path(path))
    if text and os.path.exists(path):
        raise CheckpointError(f"{text} is a file: give the folder of a checkpoint in the diffusers layout")
    if isinstance(path_or_id, Path) or not _HUB_ID.fullmatch(text):
        raise CheckpointError(f"the folder {quoted(text)} does not exist (and a hub id would look like 'owner/name')")
    return Repository(text, revision)


def _is_revision(value: Any) -> bool:
    return isinstance(value, str) and value.isprintable() and _REVISION.fullmatch(value) is not None


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

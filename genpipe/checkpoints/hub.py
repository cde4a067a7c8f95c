"""Where a checkpoint's files are: a folder on this machine, or a repository on the Hugging Face hub and its cache."""

import logging
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from genpipe.checkpoints.errors import CheckpointError
from genpipe.checkpoints.source import Folder, Source
from genpipe.checkpoints.tensors import QUANTISED
from genpipe.messages import listed, one_line, quoted

_LOG = logging.getLogger(__name__)
_HUB_ID = re.compile(r"(?!.*(--|\.\.|\.git$))\w([\w.-]*\w)?/\w([\w.-]*\w)?", re.ASCII)
_FILE = re.compile(r"(?!.*\.\.)[^/\\][^\\]{0,250}[^/\\]")
_REVISION = re.compile(r"(?!.*\.\.)[^\s/\\:?*\[\]~^-][^\s\\:?*\[\]~^]{0,200}")
_PATIENCE = 3.0  # seconds in which the hub has to answer, where the cache could do without it
_INDEX = "model_index.json"
_DEFAULTS = "genpipe.json"
_WEIGHTS = (".safetensors", QUANTISED)


class Repository:
    """A repository on the hub, all of whose files are read at the commit that the first one was found at.

    Files that the cache holds at that commit are taken from it. The hub is asked once, for a few seconds, which commit a
    branch is at; if it does not answer, what the cache holds is used.

    Args:
        name: "owner/name".
        revision: branch, tag or commit; None is its main branch.
        file: the one that the whole model is in; None for a repository in the diffusers layout, or one with a single file.
        indexes: the files of which one is there in any repository of the kind that is sought.

    Attributes:
        index: which of `indexes` it has; None if it has single files.
        single: the single file, None if it has an index.

    Raises:
        CheckpointError: there is no such repository, revision or file, several files could be meant, or there is neither a
            cached one nor an answer.
    """

    def __init__(
        self, name: str, revision: str | None, *, file: str | None = None, indexes: Sequence[str] = (_INDEX,)
    ) -> None:
        from huggingface_hub import constants

        self.name = name
        self.reachable = not constants.HF_HUB_OFFLINE
        self._has_defaults = False
        self._status: int | None = None  # of an answer that is no answer
        sought = indexes if file is None else (file,)
        found = _first(sought, lambda each: self._cached(each, revision))
        # A commit never changes, a branch may.
        if self.reachable and (found is None or _root(*found).name != revision):
            commit = self._ask(revision)
            if found is not None and not self.reachable:
                _LOG.warning("%s: the hub does not answer, so the files in its cache are used", self.name)
            elif found is None or _root(*found).name != commit:
                found = _first(sought, lambda each: self._fetch(each, revision) if self.reachable else None)
        if found is None:
            found = self._only(revision, lacks=sought[0], given=file is not None)
        self.index = found[0] if found[0] in indexes else None
        self.single = None if self.index else found[0]
        self.root = _root(*found)
        self.commit = self.root.name
        # Another program may have fetched it, which knows nothing of our own files.
        self._complete = any(each.endswith(".safetensors") for each in Folder(self.root).listing("unet"))

    def _only(self, revision: str | None, *, lacks: str, given: bool) -> tuple[str, Path]:
        """Find the only file of weights that lies in the repository itself, and not in a folder of it."""
        names = self._names(revision)
        if given or not names:
            if not self.reachable:
                missing = (
                    f": the hub's cache has no {lacks}" if given else " is not a folder here, nor in the hub's cache"
                )
                raise CheckpointError(f"{self}{missing}, and {self._why}")
            holds = f": it holds {listed(names)}" if names else ", so it is not in the diffusers layout"
            raise CheckpointError(f"{self}: the repository has no {lacks}{holds}")
        name = _one_of(names, str(self))
        path = self._fetch(name, revision) if self.reachable else self._cached(name, revision)
        if path is None:
            raise CheckpointError(self.lacks(name))
        return name, path

    def _names(self, revision: str | None) -> list[str]:
        """Names of the files of weights in the repository itself; in the cache where the hub is not asked."""
        from huggingface_hub import HfApi, constants
        from huggingface_hub.file_download import repo_folder_name

        if self.reachable:
            try:
                entries = list(HfApi().list_repo_tree(self.name, revision=revision))
            except Exception as error:  # the HTTP client's own errors change with the hub library's version
                reason = one_line(str(error), 200) or type(error).__name__
                raise CheckpointError(f"{self}: its files cannot be listed: {reason}") from error
            return [entry.path for entry in entries if entry.path.endswith(_WEIGHTS)]
        folder = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=self.name, repo_type="model")
        branch = folder / "refs" / (revision or "main")
        commit = branch.read_text().strip() if branch.is_file() else revision or ""
        return _weights_in(folder / "snapshots" / commit)

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


def open_source(
    path_or_id: str | Path,
    revision: str | None = None,
    *,
    file: str | None = None,
    indexes: Sequence[str] = (_INDEX,),
) -> Source:
    """Open the folder at a path, or else the repository of a hub id "owner/name".

    Args:
        path_or_id: the path or the id.
        revision: branch, tag or commit of a repository; None is its main branch.
        file, indexes: as `Repository` takes them; of a folder, `file` is a file in it.

    Raises:
        CheckpointError: there is neither, or a revision is given for a folder.
    """
    text = str(path_or_id).strip()
    path = os.path.expanduser(text)
    if revision is not None and not _is_revision(revision):
        raise CheckpointError(f"revision {quoted(revision)} names no branch, tag or commit: give one of the hub's")
    if file is not None and not _FILE.fullmatch(file):
        raise CheckpointError(f"file {quoted(file)} is no name of a file: give that of one in {quoted(text)}")
    if text and os.path.isdir(path):
        if revision is not None:
            raise CheckpointError(f"{text} is a folder here, which has no revision {quoted(revision)}: leave it out")
        if file is not None and not (Path(path) / file).is_file():
            raise CheckpointError(f"the folder {text} has no file {quoted(file)}")
        names = [] if file or any((Path(path) / each).exists() for each in indexes) else _weights_in(Path(path))
        return Folder(Path(path), single=_one_of(names, text) if names else file)
    if text and os.path.exists(path):
        raise CheckpointError(f"{text} is a file: give the folder of a checkpoint in the diffusers layout")
    if isinstance(path_or_id, Path) or not _HUB_ID.fullmatch(text):
        raise CheckpointError(f"the folder {quoted(text)} does not exist (and a hub id would look like 'owner/name')")
    return Repository(text, revision, file=file, indexes=indexes)


def _first(names: Sequence[str], find: Callable[[str], Path | None]) -> tuple[str, Path] | None:
    """The first of some names that is found, and its path."""
    return next(((name, path) for name in names if (path := find(name)) is not None), None)


def _weights_in(folder: Path) -> list[str]:
    """Names of the files of weights in a folder, not in folders within it."""
    return [name for name in Folder(folder).listing("") if name.endswith(_WEIGHTS)]


def _one_of(names: Sequence[str], holder: str) -> str:
    """The only one of some files."""
    if len(names) > 1:
        raise CheckpointError(f"{holder} holds {listed(names)}: say which with file= (--file), or give the path of one")
    return names[0]


def _root(name: str, path: Path) -> Path:
    """The folder of a commit in the cache, of a file in it."""
    return path.parents[name.count("/")]


def _is_revision(value: Any) -> bool:
    return isinstance(value, str) and value.isprintable() and _REVISION.fullmatch(value) is not None

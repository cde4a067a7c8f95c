"""What a picture is: the id that all that determines it has, the seed of a row that names none, a model's fingerprint."""

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from genpipe.files import atomic_write

# Seeds that are derived stay below this, so that every reader of JSON keeps them whole.
DERIVED_SEEDS = 1 << 53

# json.dumps with ensure_ascii=False, sort_keys=True and no blanks makes such an encoder anew for every value.
_encode: Any = json.encoder.c_make_encoder(  # pyright: ignore[reportAttributeAccessIssue]
    None, json.JSONEncoder().default, json.encoder.encode_basestring, None, ":", ",", True, False, True
)


def canonical_json(value: Any) -> str:
    """The one text that equal values share.

    Raises:
        TypeError, RecursionError: it is no JSON.
    """
    return "".join(_encode(value, 0))


class Identity:
    """Ids of the pictures that one model draws with one set of settings.

    Args:
        model: what else determines the pictures: the model's fingerprint, the dtype, ….
        settings: of the request, without prompt and seed.
    """

    def __init__(self, model: dict[str, Any], settings: dict[str, Any]) -> None:
        self._begun = hashlib.sha256(canonical_json([model, settings]).encode())

    def of(self, prompt: bytes, seed: int) -> bytes:
        """The id (16 bytes) of the picture of a prompt, in UTF-8, and a seed."""
        hasher = self._begun.copy()
        hasher.update(b"%d %b" % (seed, prompt))
        return hasher.digest()[:16]


def content_hash(row: bytes) -> bytes:
    """The hash (16 bytes) of what a row says."""
    return hashlib.sha256(row).digest()[:16]


def derived_seed(content: bytes, ordinal: int) -> int:
    """The seed of the row with this content, the `ordinal`-th (from 0) of those that are identical."""
    return int.from_bytes(hashlib.sha256(b"%b %d" % (content, ordinal)).digest()[:8]) % DERIVED_SEEDS


class Ordinals:
    """How many rows of the same content came before each row, in 8 bytes of memory a row."""

    def __init__(self) -> None:
        # Sorted, each longer than the next, so that a row is merged into a longer one a few times only.
        self._before: list[np.ndarray] = []

    def of(self, contents: Sequence[bytes]) -> list[int]:
        """The ordinals, from 0, of the next rows with these content hashes."""
        # 64 bits of each: two contents that share them, as hardly ever happens, only count on from one another.
        keys = np.frombuffer(b"".join([content[:8] for content in contents]), np.uint64)
        order = np.argsort(keys, kind="stable")
        keys = keys[order]
        counts = np.arange(len(keys)) - np.searchsorted(keys, keys)
        for before in self._before:
            counts += np.searchsorted(before, keys, "right") - np.searchsorted(before, keys)
        ordinals = np.empty_like(counts)
        ordinals[order] = counts
        while self._before and len(self._before[-1]) <= len(keys):
            keys = np.sort(np.concatenate([self._before.pop(), keys]), kind="stable")
        self._before.append(keys)
        return ordinals.tolist()


def fingerprint(files: Iterable[tuple[str, Path]], cache: Path | None = None) -> str:
    """SHA-256, in hex, of a model's files, given as (name, path).

    Args:
        files: the same names with the same bytes give the same fingerprint, wherever they lie.
        cache: a JSON file that keeps each file's hash by path, size and time; by default in the user's cache folder.
    """
    cache = _cache_file() if cache is None else cache
    known = _read_cache(cache)
    entries, changed = [], False
    for name, path in sorted(files):
        stat = path.stat()
        key = f"{path.resolve()} {stat.st_size} {stat.st_mtime_ns}"
        if key not in known:
            with path.open("rb") as file:
                known[key] = hashlib.file_digest(file, "sha256").hexdigest()
            changed = True
        entries.append([name, known[key]])
    if changed:
        _write_cache(cache, known)
    return hashlib.sha256(canonical_json(entries).encode()).hexdigest()


def _cache_file() -> Path:
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "genpipe" / "fingerprints.json"


def _read_cache(path: Path) -> dict[str, str]:
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def _write_cache(path: Path, known: dict[str, str]) -> None:
    with suppress(OSError):  # it only saves time
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as part:
            part.write_text(json.dumps(known), encoding="utf-8")

"""What a picture is: the id that all that determines it has, the seed of a row that names none, a model's fingerprint."""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import numpy as np

# Seeds that are derived stay below this, so that every reader of JSON keeps them whole.
DERIVED_SEEDS = 1 << 53

_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False, sort_keys=True, separators=(",", ":")).encode


def canonical_json(value: Any) -> str:
    """Give the one text that equal values share.

    Raises:
        TypeError, ValueError, RecursionError: it is not JSON, in which NaN and infinity have no place.
    """
    return _encode(value)


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

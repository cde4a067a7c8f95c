"""Ids of images, made of all that determines them, and seeds of rows that name none."""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import numpy as np

# Derived seeds stay below this, where every reader of JSON keeps them exact.
DERIVED_SEEDS = 1 << 53

_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False, sort_keys=True, separators=(",", ":")).encode


def canonical_json(value: Any) -> str:
    """Give the one text that equal values share.

    Raises:
        TypeError, ValueError, RecursionError: it is not JSON, in which NaN and infinity have no place.
    """
    return _encode(value)


class Identity:
    """Ids of the images that one model draws with one set of settings.

    Args:
        model: what else determines the images: the model's fingerprint, the dtype, ….
        settings: of the request, without prompt and seed.
    """

    def __init__(self, model: dict[str, Any], settings: dict[str, Any]) -> None:
        self._begun = hashlib.sha256(canonical_json([model, settings]).encode())

    def of(self, prompt: bytes, seed: int) -> bytes:
        """Give the id (16 bytes) of the image of a prompt, in UTF-8, and a seed."""
        hasher = self._begun.copy()
        hasher.update(b"%d %b" % (seed, prompt))
        return hasher.digest()[:16]


def content_hash(row: bytes) -> bytes:
    """Give the hash (16 bytes) of what a row says."""
    return hashlib.sha256(row).digest()[:16]


def derived_seed(content: bytes, ordinal: int) -> int:
    """Derive the seed of a row from its content; `ordinal` counts the identical rows before it."""
    return int.from_bytes(hashlib.sha256(b"%b %d" % (content, ordinal)).digest()[:8]) % DERIVED_SEEDS


class Ordinals:
    """Counts how many rows of the same content came before each row, in 8 bytes of memory per row."""

    def __init__(self) -> None:
        # Sorted arrays, each longer than the next: a row is merged into a longer one only a few times.
        self._before: list[np.ndarray] = []

    def of(self, contents: Sequence[bytes]) -> list[int]:
        """Give the ordinals, from 0, of the next rows, which have these content hashes."""
        # 64 bits of each hash: the rare two contents that share them count as one, and still get different seeds.
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

"""Ids, derived seeds and fingerprints: what they depend on, and what not."""

import hashlib
import json
import random
from collections import Counter

import pytest

from genpipe.render.identity import (
    DERIVED_SEEDS,
    Identity,
    Ordinals,
    canonical_json,
    content_hash,
    derived_seed,
)


def test_an_id_is_the_hash_of_all_that_determines_a_picture():
    whole = b'[{"fingerprint":"f"},{"steps":3}]' + b"7 " + "корабль".encode()
    assert Identity({"fingerprint": "f"}, {"steps": 3}).of("корабль".encode(), 7) == hashlib.sha256(whole).digest()[:16]


def test_anything_else_gives_another_id():
    def identity(model: str = "f", steps: int = 3, prompt: bytes = b"a", seed: int = 7) -> bytes:
        return Identity({"fingerprint": model}, {"steps": steps}).of(prompt, seed)

    ids = {
        identity(),
        identity("g"),
        identity(steps=4),
        identity(prompt=b"b"),
        identity(seed=8),
        identity(seed=2**64 - 1),
    }
    assert len(ids) == 6
    assert identity(prompt=b"1 a", seed=1) != identity(prompt=b"a", seed=11)


@pytest.mark.parametrize(
    "value",
    [
        {"b": [1, -0.0, 1e300, 0.1, None, True], "a": {"é": '"\\\n\x01\u2028', "": []}},
        {"big": 2**70, "pair": (1, "\ud800")},
        {2: 1, 10: "x"},
        "text",
        0,
    ],
)
def test_canonical_json_is_json_sorted_and_without_blanks(value):
    assert canonical_json(value) == json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"))


def test_what_is_no_json_has_no_canonical_text():
    circle: list = []
    circle.append(circle)
    for value in ({1}, {"a": object()}, {1: 1, "1": 1}, {(): 1}):
        with pytest.raises(TypeError):
            canonical_json(value)
    for value in (circle, [float("nan")], {"x": -float("inf")}):
        with pytest.raises(ValueError):
            canonical_json(value)
    assert canonical_json([[]]) == "[[]]"


def test_derived_seeds_are_exact_in_every_json_reader_and_differ():
    content = content_hash(b"a ship")
    seeds = [derived_seed(content, ordinal) for ordinal in range(2000)]
    assert len(set(seeds)) == 2000
    assert max(seeds) < DERIVED_SEEDS == 2**53 and min(seeds) >= 0
    assert max(seeds) > DERIVED_SEEDS * 0.99


def test_ordinals_count_equal_rows_in_this_window_and_all_before():
    rng, ordinals, counts = random.Random(0), Ordinals(), Counter()
    for size in (0, 1, 300, 7, 7, 300, 1, 0, 1000):
        window = [content_hash(b"%d" % rng.choice([rng.randrange(20), rng.randrange(10**9)])) for _ in range(size)]
        expected = []
        for content in window:
            expected.append(counts[content])
            counts[content] += 1
        assert ordinals.of(window) == expected
    assert max(counts.values()) > 20

"""Findings on the disk: kept by what they depend on, and believed only where they can be true."""

import json
import os

import pytest

from genpipe.workers.kept_sizes import MOST, KeptSizes

ON = {"device": "NVIDIA H100", "shape": "00512x00512 steps=20"}


@pytest.fixture
def kept(tmp_path) -> KeptSizes:
    return KeptSizes(tmp_path / "cache" / "sizes.json")


def test_a_finding_is_kept_under_all_that_it_depends_on(kept):
    assert kept.get(ON, 100) is None
    kept.keep(ON, 16, None)
    assert kept.get(dict(reversed(ON.items())), 100) == 16
    assert kept.get({**ON, "device": "NVIDIA T4"}, 100) is None
    kept.keep(ON, 32, None)
    assert kept.get(ON, 10**9) == 32


def test_a_search_that_ended_early_holds_for_no_more_images_than_it_was_for(kept):
    kept.keep(ON, 16, 1000)
    assert kept.get(ON, 1000) == 16 and kept.get(ON, 1001) is None


def test_the_oldest_go_first(kept, tmp_path):
    kept.keep({"number": 0}, 1, None)  # makes the folder
    found = {json.dumps({"number": number}): [1, None] for number in range(MOST)}
    (tmp_path / "cache" / "sizes.json").write_text(json.dumps(found))
    assert kept.get({"number": 0}, 1) == 1
    kept.keep({"number": MOST}, 1, None)
    assert kept.get({"number": 0}, 1) is None and kept.get({"number": 1}, 1) == kept.get({"number": MOST}, 1) == 1


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", '"x"', "[" * 100_000, '{"a": {}}', "\ud800"],
)
def test_a_file_that_is_something_else_is_none(tmp_path, text):
    path = tmp_path / "sizes.json"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    kept = KeptSizes(path)
    assert kept.get(ON, 1) is None
    kept.keep(ON, 4, None)
    assert kept.get(ON, 1) == 4


@pytest.mark.parametrize(
    "value", [0, 4, [0, None], [-1, None], [2**30, None], [True, None], ["4", None], [4], [4, "x"], [4, 0], [4.0, None]]
)
def test_what_cannot_be_a_finding_is_none(tmp_path, value):
    path = tmp_path / "sizes.json"
    path.write_text(json.dumps({json.dumps(ON, sort_keys=True): value}))
    assert KeptSizes(path).get(ON, 1) is None


def test_a_place_that_cannot_be_written_costs_nothing(tmp_path):
    (tmp_path / "file").write_text("")
    KeptSizes(tmp_path / "file" / "sizes.json").keep(ON, 4, None)
    assert os.listdir(tmp_path) == ["file"]

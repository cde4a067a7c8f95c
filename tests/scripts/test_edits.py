"""The script that measures edits, run for real with few images."""

import importlib
import json
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(scope="module")
def edits() -> ModuleType:
    return importlib.import_module("scripts.evaluate.edits")


def test_every_part_gives_its_figures(edits: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    edits.main(["--device", "cpu", "--images", "2", "--json"])
    report: dict[str, Any] = json.loads(capsys.readouterr().out)
    count = report["right_before"]
    assert report["drawn"] == 2 and 1 <= count <= 2
    for part, aims in edits.AIMS.items():
        assert report[part]["images"] == count and all(0 <= report[part][name] <= 1 for name in aims)
    assert report["inpaint"]["untouched"] == 1.0 and 0 < report["inpaint"]["masked"] < 1
    assert report["upscale"]["size"] == "512x512"
    distances = list(report["vary"]["mean_distance"].values())
    assert distances[0] < distances[-1]
    text = edits.table(report)
    assert "| inpaint | untouched | 1 | 1 |" in text and text.count("\n") > 12


def test_an_edit_outside_of_its_mask_would_be_found(edits: ModuleType) -> None:
    one, other = Image.new("RGB", (4, 4)), Image.new("RGB", (4, 4), (0, 0, 4))
    assert edits.distance(one, other) == pytest.approx(4 / 3) and edits.distance(one, one) == 0
    assert edits.share([True, False, True, True]) == 0.75
    assert np.array_equal(edits.levels(other)[0, 0], [0, 0, 4])


@pytest.mark.parametrize(("given", "says"), [(["--images", "0"], "too few"), (["--model", "nowhere-to-be"], "nowhere")])
def test_a_mistake_is_one_line(
    edits: ModuleType, capsys: pytest.CaptureFixture[str], given: list[str], says: str
) -> None:
    with pytest.raises(SystemExit) as stopped:
        edits.main(given)
    assert says in f"{stopped.value}{capsys.readouterr().err}"

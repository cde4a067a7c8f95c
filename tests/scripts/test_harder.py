"""What an evaluation found wrong is trained on more."""

import json
import random
from collections import Counter
from pathlib import Path

import pytest

from genpipe.scenes.world import KINDS, Pool
from scripts.train.embedded import main
from scripts.train.scenes import draw_scene, read_accuracy


def test_the_accuracy_of_each_thing_is_read_from_an_evaluation(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    report.write_text(json.dumps({"images": {"concept_accuracy": {"cat": 0.25, "ship": 1}}}))
    assert read_accuracy(report) == {"cat": 0.25, "ship": 1.0}


def test_of_held_out_images_and_things_alone_the_mean_counts(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    parts = {"images": {"cat": 0.25, "ship": 1}, "alone": {"cat": 0.75, "dog": 0.5}, "vae": {}}
    report.write_text(json.dumps({part: {"concept_accuracy": shares} for part, shares in parts.items()}))
    assert read_accuracy(report) == {"cat": 0.5, "ship": 1.0, "dog": 0.5}


def test_the_kinds_that_are_asked_for_come_more_often_by_so_much() -> None:
    rng, more = random.Random(0), {"pair": 0.25, "count": 0.25}
    kinds = Counter(draw_scene(rng, more=more).kind for _ in range(2000))
    for kind, share in KINDS.items():
        assert kinds[kind] / 2000 == pytest.approx(0.5 * share + more.get(kind, 0), abs=0.035)


def test_of_one_concept_no_pair_is_waited_for() -> None:
    assert draw_scene(random.Random(0), Pool(["cat"]), more={"pair": 1.0}).kind != "pair"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{}", "is not what an evaluation prints"),
        ("[1]", "is not what an evaluation prints"),
        ("no JSON", "is not what an evaluation prints"),
        ('{"images": {"concept_accuracy": {"cat": 2}}}', "'cat' is no concept of genpipe.scenes with an accuracy"),
        ('{"images": {"concept_accuracy": {"qat": 1}}}', "'qat' is no concept of genpipe.scenes with an accuracy"),
    ],
)
def test_what_is_no_evaluation_is_refused_in_one_line(tmp_path: Path, text: str, told: str) -> None:
    report = tmp_path / "report.json"
    report.write_text(text)
    with pytest.raises(SystemExit, match=f"^error: .*{told}") as caught:
        main(["--out", str(tmp_path / "out"), "--harder", str(report), "--device", "cpu"])
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()

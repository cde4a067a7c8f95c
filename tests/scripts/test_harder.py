"""What an evaluation found wrong is trained on more."""

import json
from pathlib import Path

import pytest

from scripts.train.embedded import main
from scripts.train.scenes import read_accuracy


def test_the_accuracy_of_each_thing_is_read_from_an_evaluation(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    report.write_text(json.dumps({"images": {"concept_accuracy": {"cat": 0.25, "ship": 1}}}))
    assert read_accuracy(report) == {"cat": 0.25, "ship": 1.0}


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

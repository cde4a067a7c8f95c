"""The files that a run leaves: rows that others can read, whatever a row was called."""

import json
import os

import pytest

from genpipe.render.journal import DONE, Entry
from genpipe.render.results import Report, as_line, image_row, write_lines
from genpipe.workers.messages import Result


def entry(**changes) -> Entry:
    values = {"name": None, "extra": None, "detail": None, **changes}
    return Entry(1, b"\1" * 16, 4, 1, "a ship", 7, values["name"], values["extra"], DONE, 5, b"h", values["detail"])


def test_a_row_of_the_metadata():
    row = image_row(entry(extra='{"mood": "calm"}'), {"steps": 3}, ".png")
    assert row == {
        "file_name": f"images/{'01' * 16}.png",
        "prompt": "a ship",
        "steps": 3,
        "seed": 7,
        "id": "01" * 16,
        "line": 4,
        "mood": "calm",
    }


def test_a_field_that_is_named_like_ours_is_kept_beside_it():
    row = image_row(entry(extra='{"id": "theirs", "line": 9}', name="a/b.jpg"), {}, ".png")
    assert (row["id"], row["row_id"], row["line"], row["row_line"]) == ("01" * 16, "theirs", 4, 9)
    assert row["file_name"] == "images/a/b.jpg"


def test_a_judged_picture_has_its_score_and_the_seed_that_won():
    detail = json.dumps({"seed": 9, "total": 0.5, "score": {"shape": 1.0}})
    row = image_row(entry(detail=detail), {}, ".png")
    assert (row["seed"], row["score"], row["score_parts"]) == (9, 0.5, {"shape": 1.0})


def test_lines_are_utf8_whatever_they_hold():
    assert json.loads(as_line({"a": "\ud800 корабль"}).encode()) == {"a": "? корабль"}


def test_lines_are_json_whatever_a_judge_said():
    line = as_line({"score_parts": {"a": float("nan"), "b": [1.5, float("inf")]}, "seed": 1})
    assert json.loads(line, parse_constant=pytest.fail) == {"score_parts": {"a": None, "b": [1.5, None]}, "seed": 1}


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "a.jsonl"
    write_lines(path, ["one\n"])

    def broken():
        yield "two\n"
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match=r"No space.*a\.jsonl"):
        write_lines(path, broken())
    assert path.read_text() == "one\n" and os.listdir(tmp_path) == ["a.jsonl"]


def test_a_report_sums_batches():
    report = Report(workers=2, drawing=10.0)
    report.add(Result(drawn=[(1, 1, "", None)] * 3, seconds={"text": 1.0, "denoise": 6.0, "busy": 7.5}, peak=3))
    report.add(
        Result(
            drawn=[(1, 1, "", None)],
            failed=[(2, "x")],
            seconds={"denoise": 2.0, "busy": 2.5},
            peak=2,
            size=4,
            said="4 at a time",
        )
    )
    made = report.to_dict()
    assert (made["pictures"], made["failed"], made["batches"], made["peak_memory_bytes"]) == (4, 1, 2, 3)
    assert made["pictures_per_second"] == pytest.approx(0.4)
    assert made["device_utilisation"] == pytest.approx(10.0 / 20.0)
    assert made["batch_sizes"] == ["4 at a time"]
    assert made["seconds"]["denoise"] == 8.0 and made["seconds"]["judge"] == 0.0

"""The coordinator: everything is drawn once, journalled, found again; what is wrong is said before anything begins."""

import errno
import importlib
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import genpipe
from genpipe.messages import LINE
from genpipe.metadata import read_request
from genpipe.render import Options, Run
from genpipe.render.folder import OutputFolder
from genpipe.workers.engines import Event
from genpipe.workers.messages import Result
from tests.render.conftest import MODEL, Inline

PROMPTS = ["a red cat", "a blue dog", "a pirate ship", "a red cat", "a ship"]


def metadata(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]


def pixels(folder: Path) -> dict[str, bytes]:
    return {row["id"]: Image.open(folder / row["file_name"]).tobytes() for row in metadata(folder)}


def journal_file(folder: Path) -> Path:
    return folder / ".genpipe" / "journal.sqlite"


def test_every_row_becomes_a_file_that_says_what_made_it(run, tmp_path):
    rows = [{"prompt": "a", "mood": "calm"}, {"prompt": "b", "file_name": "deep/b", "seed": 9}]
    finished = run(rows)
    assert (finished.total, finished.done, finished.failed) == (2, 2, 0)
    first, second = metadata(tmp_path / "out")
    assert (first["prompt"], first["mood"], first["file_name"]) == ("a", "calm", f"images/{first['id']}.png")
    assert (second["seed"], second["file_name"]) == (9, "images/deep/b.png")
    request = read_request(tmp_path / "out" / second["file_name"])
    assert (request.prompt, request.seed, request.steps) == ("b", 9, 2)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        *("images", ".genpipe", "metadata.jsonl", "failures.jsonl", "report.json", "index.html")
    }


@pytest.mark.parametrize("deterministic", [False, True])
def test_the_pictures_are_the_same_whatever_the_batch(run, tmp_path, deterministic):
    drawn = []
    for batch in (1, 3, 8):
        run(PROMPTS, out=str(batch), batch=batch, deterministic=deterministic)
        drawn.append(pixels(tmp_path / str(batch)))
    assert drawn[0].keys() == drawn[1].keys() == drawn[2].keys() and len(drawn[0]) == 5
    for key in drawn[0]:
        levels = [np.frombuffer(one[key], np.uint8).astype(int) for one in drawn]
        assert max(np.abs(levels[0] - other).max() for other in levels[1:]) <= (0 if deterministic else 1)


def test_the_same_again_draws_nothing(run, tmp_path):
    run(PROMPTS)
    again = Inline()
    assert run(PROMPTS, engine=again).done == 5
    assert again.batches == []


def test_an_interrupted_run_goes_on(run, tmp_path):
    stopped = run(PROMPTS, batch=1, stop_after=2, deterministic=True)
    assert stopped.stopped and 2 <= stopped.done < 5 and stopped.left == 5 - stopped.done
    assert len(metadata(tmp_path / "out")) == stopped.done
    rest = Inline()
    assert run(PROMPTS, engine=rest, deterministic=True).done == 5
    assert sum(map(len, rest.batches)) == 5 - stopped.done
    run(PROMPTS, out="whole", deterministic=True)
    assert pixels(tmp_path / "out") == pixels(tmp_path / "whole")


def test_an_inserted_row_draws_only_itself(run, tmp_path):
    run(PROMPTS)
    rest = Inline()
    run(["new one", *PROMPTS], engine=rest)
    assert [task.request["prompt"] for batch in rest.batches for task in batch] == ["new one"]


@pytest.mark.parametrize("damage", ["missing", "short"])
def test_a_picture_that_is_damaged_is_drawn_again(run, tmp_path, damage):
    run(PROMPTS)
    path = tmp_path / "out" / metadata(tmp_path / "out")[1]["file_name"]
    data = path.read_bytes()
    path.unlink() if damage == "missing" else path.write_bytes(data[:-1])
    rest = Inline()
    run(PROMPTS, engine=rest)
    assert sum(map(len, rest.batches)) == 1 and path.read_bytes() == data


def test_verify_finds_what_the_size_does_not_show(run, tmp_path):
    run(PROMPTS)
    path = tmp_path / "out" / metadata(tmp_path / "out")[0]["file_name"]
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    kept, found = Inline(), Inline()
    run(PROMPTS, engine=kept)
    run(PROMPTS, engine=found, verify=True)
    assert kept.batches == [] and sum(map(len, found.batches)) == 1 and path.read_bytes() == data


def test_what_was_left_unwritten_is_written_by_the_next_run(run, tmp_path, tiny_checkpoint):
    (tmp_path / "p.txt").write_text("\n".join(PROMPTS))
    options = Options.of(model=str(tiny_checkpoint), dtype="fp32", steps=2)
    pictures = Run(tmp_path / "p.txt", tmp_path / "out", options, engine=Inline()).pictures()
    for _ in PROMPTS:
        next(pictures)
    with pytest.raises(KeyboardInterrupt):  # everything is drawn, nothing is written of it
        pictures.throw(KeyboardInterrupt())
    assert not (tmp_path / "out/metadata.jsonl").exists()
    idle = Inline()
    run(tmp_path / "p.txt", engine=idle)
    assert len(metadata(tmp_path / "out")) == 5 and idle.batches == []


def test_a_row_may_ask_for_a_file_where_another_asks_for_a_folder(run, tmp_path):
    rows = [{"prompt": "one", "file_name": "a.png"}, {"prompt": "two", "file_name": "a.png/b.png"}, "three"]
    assert run(rows).done == 3
    names = [row["file_name"] for row in metadata(tmp_path / "out")]
    assert names[:2] == ["images/a.png", "images/a_png/b.png"]
    assert all((tmp_path / "out" / name).is_file() for name in names)


def test_a_journal_that_somebody_changed_writes_nothing_outside(run, tmp_path):
    run([{"prompt": "a", "file_name": "x"}, "b"], out="deep/out")
    with sqlite3.connect(journal_file(tmp_path / "deep/out")) as journal:
        journal.execute("UPDATE pictures SET name = '../../../escaped.png', state = 0, size = NULL, sha256 = NULL")
    journal.close()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match=r"the file name '\.\./\.\./\.\./escaped\.png' of image 1; give a new --out"):
        run([{"prompt": "a", "file_name": "x"}, "b"], out="deep/out")
    assert sorted(tmp_path.rglob("*")) == before


def test_a_folder_without_pictures_takes_any_setting(run, tmp_path):
    with pytest.raises(ValueError, match="line 1"):
        run([{"mood": 1}], strict=True)
    assert run(PROMPTS, settings={"steps": 3}).done == 5


def test_a_changed_setting_is_shown(run, tmp_path, tiny_checkpoint):
    run(PROMPTS)
    with pytest.raises(ValueError, match=r"out was made with steps 2, now 3: give a new --out, or --force"):
        run(PROMPTS, settings={"steps": 3})
    with pytest.raises(ValueError, match=r"deterministic False, now True"):
        run(PROMPTS, deterministic=True)
    assert run(PROMPTS, settings={"steps": 3}, force=True).done == 5
    assert len(metadata(tmp_path / "out")) == 10


def test_many_and_long_changed_settings_are_shown_in_part(run, tmp_path):
    run(PROMPTS)
    with sqlite3.connect(journal_file(tmp_path / "out")) as journal:
        foreign = json.dumps({f"{'k' * 50}{number}": "\x1b[2J" * 100 for number in range(50)})
        journal.execute("UPDATE meta SET value = ? WHERE key = 'settings'", (foreign,))
    journal.close()
    with pytest.raises(ValueError, match="give a new --out, or --force") as caught:
        run(PROMPTS)
    assert len(str(caught.value)) <= LINE and str(caught.value).isprintable()


def test_another_model_is_refused(run, tmp_path, tiny_checkpoint):
    run(["a"])
    other = tmp_path / "model"
    subprocess.run(["cp", "-r", str(tiny_checkpoint), str(other)], check=True)
    (other / "genpipe.json").write_text('{"steps": 9}')
    with pytest.raises(ValueError, match=r"was made with model .*checkpoint \(\w{12}\), now .*model \(\w{12}\)"):
        run(["a"], model=str(other))


def test_broken_rows_are_reported_and_the_others_drawn(run, tmp_path):
    (tmp_path / "p.jsonl").write_text('{"prompt": "a"}\n{"prompt": \n{"prompt": "c", "width": 7}\n{"prompt": "d"}\n')
    finished = run(tmp_path / "p.jsonl")
    assert (finished.done, finished.rejected) == (2, 2)
    failures = [json.loads(line) for line in (tmp_path / "out/failures.jsonl").read_text().splitlines()]
    assert [row["line"] for row in failures] == [2, 3]
    assert failures[0]["row"] == '{"prompt":' and "multiple of 4" in failures[1]["error"]
    with pytest.raises(ValueError, match="line 2: it is not JSON"):
        run(tmp_path / "p.jsonl", strict=True)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes that have names")
def test_a_list_that_comes_through_a_pipe_is_read_once_and_whole(run, tmp_path):
    os.mkfifo(tmp_path / "p.txt")
    lines = "".join(f"prompt {number}\n" for number in range(200))
    writer = threading.Thread(target=(tmp_path / "p.txt").write_text, args=(lines,), daemon=True)
    writer.start()
    assert run(tmp_path / "p.txt", stop_after=1, settings={"steps": 1}).total == 200
    writer.join(10)
    assert not writer.is_alive()


def test_a_name_that_is_empty_is_not_this_folder(tmp_path):
    with pytest.raises(ValueError, match="out '' is not a folder"):
        Run(["a"], "", Options())


def test_no_row_at_all_that_can_be_drawn(run, tmp_path):
    (tmp_path / "p.jsonl").write_text("{\n[]\n")
    with pytest.raises(ValueError, match="none of the 2 rows can be drawn; line 1: it is not JSON"):
        run(tmp_path / "p.jsonl")
    with pytest.raises(ValueError, match="no prompts"):
        run([])


class Failing(Inline):
    """Fails what has this prompt."""

    def __init__(self, prompt: str) -> None:
        super().__init__()
        self.prompt = prompt

    def event(self, timeout: float) -> Event | None:
        work = self._waiting[0]
        bad = [task for task in work.tasks if task.request["prompt"] == self.prompt]
        self._waiting[0] = replace(work, tasks=[task for task in work.tasks if task not in bad])
        event = super().event(timeout)
        assert event is not None and event.result is not None
        event.result.failed += [(task.number, "it would not") for task in bad]
        return event


def test_a_failed_picture_is_left_alone_until_it_is_asked_for(run, tmp_path):
    finished = run(PROMPTS, engine=Failing("a ship"))
    assert (finished.done, finished.failed) == (4, 1)
    (failure,) = [json.loads(line) for line in (tmp_path / "out/failures.jsonl").read_text().splitlines()]
    assert (failure["prompt"], failure["error"]) == ("a ship", "it would not")
    idle = Inline()
    assert run(PROMPTS, engine=idle).failed == 1 and idle.batches == []
    again = run(PROMPTS, retry_failed=True)
    assert (again.done, again.failed) == (5, 0)
    assert (tmp_path / "out/failures.jsonl").read_text() == ""


class Mortal(Inline):
    """Dies over every batch that has this prompt."""

    def __init__(self, prompt: str) -> None:
        super().__init__()
        self.prompt = prompt
        self.alone: list[bool] = []

    def event(self, timeout: float) -> Event | None:
        work = self._waiting[0]
        if any(task.request["prompt"] == self.prompt for task in work.tasks):
            self.alone.append(work.alone)
            self.lost += 1
            self._waiting.pop(0)
            return Event(work.key, lost="its worker died (killed by signal 9)")
        return super().event(timeout)


def test_a_picture_that_kills_its_workers_is_given_up_and_its_neighbours_are_not(run, tmp_path):
    engine = Mortal("a ship")
    finished = run(PROMPTS, engine=engine)
    assert (finished.done, finished.failed, finished.report.lost_workers) == (4, 1, 4)
    assert engine.alone == [False, True, True, True]
    assert "killed by signal 9), 4 times" in (tmp_path / "out/failures.jsonl").read_text()


class Full(Inline):
    """Has room on its disk for so many batches."""

    def __init__(self, room: int = 2) -> None:
        super().__init__()
        self.left = room

    def event(self, timeout: float) -> Event | None:
        if len(self.batches) == self.left:
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().event(timeout)


def test_a_full_disk_ends_the_run_and_the_same_command_goes_on(run, tmp_path):
    with pytest.raises(OSError, match="No space left on device"):
        run(PROMPTS, batch=1, engine=Full())
    assert not (tmp_path / "out/.genpipe/parts").exists()
    finished = run(PROMPTS, batch=1)
    assert finished.done == 5 and finished.report.pictures == 3


class Removing(Inline):
    """Has somebody remove a path of the folder after its second batch."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    def event(self, timeout: float) -> Event | None:
        event = super().event(timeout)
        if len(self.batches) == 2:
            shutil.rmtree(self.path)
        return event


@pytest.mark.parametrize("again", [False, True])
def test_a_folder_that_is_removed_during_the_run_ends_it(run, tmp_path, again):
    class Replacing(Removing):
        def event(self, timeout: float) -> Event | None:
            event = super().event(timeout)
            if again and len(self.batches) == 2:
                folder = OutputFolder(self.path)
                folder.open().close()
                folder.close()
            return event

    engine = Replacing(tmp_path / "out")
    with pytest.raises(OSError, match="out was removed or replaced during the run: the same command begins it again"):
        run(PROMPTS, engine=engine, batch=1)
    assert len(engine.batches) == 2 and not (tmp_path / "out/metadata.jsonl").exists()
    assert run(PROMPTS, batch=1).done == 5 and len(metadata(tmp_path / "out")) == 5


def test_images_that_are_removed_during_the_run_are_not_in_the_metadata(run, tmp_path):
    with pytest.raises(OSError, match=r"2 of the images that were drawn are not in .*out any more"):
        run(PROMPTS, engine=Removing(tmp_path / "out/images"), batch=1)
    rows = metadata(tmp_path / "out")
    assert len(rows) == 3 and all((tmp_path / "out" / row["file_name"]).is_file() for row in rows)
    assert json.loads((tmp_path / "out/report.json").read_text())["left"] == 2
    rest = Inline()
    assert run(PROMPTS, engine=rest, batch=1).done == 5
    assert len(rest.batches) == 2 and len(metadata(tmp_path / "out")) == 5


def test_images_of_former_plans_that_were_removed_leave_the_metadata(run, tmp_path):
    run(PROMPTS)
    for row in metadata(tmp_path / "out"):
        (tmp_path / "out" / row["file_name"]).unlink()
    assert run(["another"]).done == 1
    assert [row["prompt"] for row in metadata(tmp_path / "out")] == ["another"]


WITHOUT_POSIX = """
import errno, sys, types
from pathlib import Path
sys.modules["fcntl"] = sys.modules["resource"] = None
held = set()
def locking(file, how, count):
    if held:
        raise OSError(errno.EACCES, "Permission denied")
    held.add((how, count))
import genpipe.cli, genpipe.render.run, genpipe.workers.renderer
from genpipe.hardware import peak_memory
from genpipe.render.folder import OutputFolder
sys.modules["msvcrt"] = types.SimpleNamespace(LK_NBLCK=2, locking=locking)  # not before: subprocess looks for it
OutputFolder(Path(sys.argv[1])).open()
print(peak_memory(), held)
try:
    OutputFolder(Path(sys.argv[1])).open()
except OSError as error:
    print(error)
del sys.modules["msvcrt"]
try:
    OutputFolder(Path(sys.argv[1])).open()
except OSError as error:
    print(error)
"""


def test_systems_without_posix_modules_have_other_locks(tmp_path):
    """Run with Windows' lock imitated; on Windows itself nothing of this has been tried."""
    command = [sys.executable, "-c", WITHOUT_POSIX, str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ})
    first, second, third = done.stdout.splitlines() or [done.stderr, "", ""]
    assert first == "0 {(2, 1)}" and "is being rendered into by process" in second
    assert "this system has no locks for files" in third


def test_rows_may_begin_from_images_which_may_be_gone_when_the_run_goes_on(run, tmp_path):
    Image.new("RGB", (32, 32), "red").save(tmp_path / "red.png")
    Image.new("RGB", (32, 32), "blue").save(tmp_path / "blue.png")
    rows = [{"prompt": "a", "image": str(tmp_path / f"{colour}.png"), "strength": 0.5} for colour in ("red", "blue")]
    (tmp_path / "p.jsonl").write_text("\n".join(json.dumps(row) for row in [*rows, {"prompt": "b"}, {"prompt": "c"}]))
    with pytest.raises(OSError, match="No space left"):
        run(tmp_path / "p.jsonl", engine=Full(room=0))
    (tmp_path / "red.png").unlink()
    Image.new("RGB", (32, 32), "green").save(tmp_path / "blue.png")
    finished = run(tmp_path / "p.jsonl")
    assert (finished.done, finished.rejected) == (3, 1)
    failures = [json.loads(line) for line in (tmp_path / "out/failures.jsonl").read_text().splitlines()]
    assert [failure["line"] for failure in failures] == [1] and "red.png' cannot be read" in failures[0]["error"]
    assert [row["prompt"] for row in metadata(tmp_path / "out")] == ["a", "b", "c"]
    (tmp_path / "blue.png").unlink()
    assert run(tmp_path / "p.jsonl").rejected == 2 and len(metadata(tmp_path / "out")) == 3
    assert (tmp_path / "out/index.html").is_file()


def test_an_image_that_goes_during_the_run_fails_those_that_begin_from_it(run, tmp_path):
    class Losing(Inline):
        def event(self, timeout: float) -> Event | None:
            (tmp_path / "red.png").unlink(missing_ok=True)
            return super().event(timeout)

    Image.new("RGB", (32, 32), "red").save(tmp_path / "red.png")
    finished = run([{"prompt": "a", "image": str(tmp_path / "red.png")}, "b"], engine=Losing())
    assert (finished.done, finished.failed) == (1, 1)
    (failure,) = [json.loads(line) for line in (tmp_path / "out/failures.jsonl").read_text().splitlines()]
    assert failure["prompt"] == "a" and "red.png' cannot be read: No such file" in failure["error"]


def test_an_image_in_memory_cannot_travel(run, tmp_path):
    with pytest.raises(ValueError, match="image must be a file that every worker can read, not an image in memory"):
        run([{"prompt": "a", "image": Image.new("RGB", (32, 32))}])


def test_two_renderers_cannot_have_one_folder(run, tmp_path):
    code = (
        "import sys; from pathlib import Path; from genpipe.render.folder import OutputFolder\n"
        "OutputFolder(Path(sys.argv[1])).open(); print('open', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "out")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**os.environ}) as other:
        assert other.stdout is not None and other.stdout.readline() == b"open\n"
        with pytest.raises(OSError, match=f"out is being rendered into by process {other.pid} on "):
            run(["a"])
        other.kill()
    assert run(["a"]).done == 1


def test_a_folder_of_somebody_elses_is_refused(run, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "metadata.jsonl").write_text("mine")
    with pytest.raises(ValueError, match=r"out has metadata\.jsonl"):
        run(["a"])
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="is a file"):
        run(["a"], out="file")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs a folder that even root cannot write: /sys")
def test_a_folder_that_cannot_be_written_is_refused(run):
    with pytest.raises(OSError, match="cannot write into this folder") as caught:
        run(["a"], out="/sys/genpipe")
    assert caught.value.filename == "/sys/genpipe"


def test_in_memory_nothing_is_left_on_the_disk(tiny_checkpoint, monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    options = Options.of(model=str(tiny_checkpoint), dtype="fp32", settings={"steps": 1})
    pictures = list(Run(["a", "b"], None, options, engine=Inline()).pictures())
    assert [picture.image.size for picture in pictures] == [(32, 32)] * 2
    assert pictures[0].path is None and pictures[0].request.prompt == "a"
    assert list(tmp_path.iterdir()) == []


def test_the_function_and_the_module_are_one(tiny_checkpoint, tmp_path):
    engine = Inline()
    drawn = genpipe.render(
        [{"prompt": "a", "mood": 1}],
        out=tmp_path / "o",
        engine=engine,
        model=str(tiny_checkpoint),
        steps=1,
        dtype="fp32",
    )
    (picture,) = drawn
    assert picture.extra == {"mood": 1} and picture.request.steps == 1
    assert Path(str(picture.path)).is_file() and picture.image.size == (32, 32)
    assert importlib.import_module("genpipe.render") is genpipe.render and callable(genpipe.render)


def test_a_caller_that_has_seen_enough_leaves_the_folder_in_order(tiny_checkpoint, tmp_path):
    options = Options.of(model=str(tiny_checkpoint), dtype="fp32", batch=1, settings={"steps": 1})
    pictures = Run(PROMPTS, tmp_path / "out", options, engine=Inline()).pictures()
    next(pictures)
    pictures.close()
    assert len(metadata(tmp_path / "out")) == 1
    assert not (tmp_path / "out/.genpipe/parts").exists()


def test_pictures_go_to_a_url(run, tmp_path):
    fsspec = pytest.importorskip("fsspec")
    options = Options.of(model=run(["x"], out=None).options.spec.model, dtype="fp32", settings={"steps": 1})
    finished = Run(["a"], tmp_path / "out", options, engine=Inline(), storage="memory://there")
    (picture,) = finished.pictures()
    assert picture.path == f"memory://there/images/{picture.id}.png" and picture.image.size == (32, 32)
    there = fsspec.filesystem("memory")
    assert {path.rpartition("/")[2] for path in there.find("/there")} == {
        *(f"{picture.id}.png", "metadata.jsonl", "failures.jsonl", "report.json")
    }
    assert not (tmp_path / "out/images").exists()


def test_the_report_adds_up(run, tmp_path):
    run(PROMPTS)
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert (report["pictures"], report["failed"], report["left"], report["workers"]) == (5, 0, 0, 1)
    seconds = report["seconds"]
    assert 0 < seconds["text"] + seconds["denoise"] + seconds["decode"] <= seconds["drawing"]
    assert 0 < report["device_utilisation"] <= 1 and report["peak_memory_bytes"] > 1e6
    run(PROMPTS)
    assert json.loads((tmp_path / "out/report.json").read_text())["pictures"] == 5


def test_image_folder_reads_it(run, tmp_path):
    datasets = pytest.importorskip("datasets")
    run([{"prompt": "a", "mood": 1}, {"prompt": "b", "file_name": "x/y", "width": 288}])
    assert list((tmp_path / "out/.genpipe/thumbnails").iterdir())
    loaded = datasets.load_dataset("imagefolder", data_dir=str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"))
    rows = loaded["train"]
    assert sorted(rows["prompt"]) == ["a", "b"] and rows[0]["image"].size == (32, 32)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"batch": 0}, "batch must be a whole number from 1"),
        ({"n": True}, "n must be"),
        ({"best_of": 0}, "best_of must be"),
        ({"format": "gif"}, "format must be one of png, jpg, webp, not 'gif'"),
        ({"settings": {"steps": 0}}, "steps must be"),
        ({"settings": {"stepz": 1}}, "no setting stepz"),
    ],
)
def test_options_are_checked(values, reason):
    with pytest.raises(ValueError, match=reason):
        Options.of(**values)


def test_measured_and_reduced_sizes_are_used_for_what_follows(run, tmp_path):
    class Sized(Inline):
        def open(self, job):
            self.out = job.out
            return MODEL

        def event(self, timeout):
            work = self._waiting.pop(0)
            self.batches.append(list(work.tasks))
            drawn = []
            for task in work.tasks:
                Path(self.out, task.path).parent.mkdir(exist_ok=True)
                Path(self.out, task.path).write_bytes(b"x")
                drawn.append((task.number, 1, "00" * 32, None))
            return Event(work.key, Result(drawn=drawn, size=16 if work.waiting else None))

    engine = Sized()
    run([str(number) for number in range(200)], engine=engine)
    assert [len(batch) for batch in engine.batches][:2] == [8, 8]
    assert {len(batch) for batch in engine.batches[3:-1]} == {16}
    assert sum(map(len, engine.batches)) == 200


@pytest.mark.parametrize(
    ("workers", "count", "pixels", "sizes"),
    [
        (1, 100, 16 * 32 * 32, [16] * 6 + [4]),
        (1, 20, 64 * 32 * 32, [10, 10]),  # a worker has two at least, so that one is written beside the other
        (4, 20, 64 * 32 * 32, [3] * 6 + [2]),
        (1, 20, None, [8, 8, 4]),
        (1, 20, 100, [1] * 20),
    ],
)
def test_batches_are_as_large_as_a_device_wants_and_as_many_as_there_are_devices(run, workers, count, pixels, sizes):
    class Wide(Inline):
        def open(self, job):
            self.workers = workers
            return replace(super().open(job), pixels=pixels)

    engine = Wide()
    run([f"a cat {number}" for number in range(count)], engine=engine, settings={"steps": 1})
    assert [len(batch) for batch in engine.batches] == sizes

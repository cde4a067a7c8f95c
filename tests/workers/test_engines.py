"""Real processes: what is killed, at whatever moment, costs no picture; Ctrl-C ends in order."""

import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from genpipe.render import LocalEngine, Options, Run
from tests.render.conftest import Inline

ROOT = Path(__file__).parents[2]
COUNT = 24


@pytest.fixture(scope="module")
def command(tiny_checkpoint, tmp_path_factory):
    """The command that renders COUNT pictures with the tiny checkpoint into a folder, as a process."""
    prompts = tmp_path_factory.mktemp("prompts") / "p.txt"
    prompts.write_text("".join(f"a red cat {number // 2}\n" for number in range(COUNT)))

    def start(out: Path, *more: str) -> subprocess.Popen[str]:
        arguments = ["render", str(prompts), "--out", str(out), "--model", str(tiny_checkpoint), "--steps", "3"]
        return subprocess.Popen(
            [sys.executable, "-m", "genpipe", *arguments, "--deterministic", "--batch", "1", "--quiet", *more],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


def rendered(folder: Path) -> dict[str, bytes]:
    """The pixels of every picture by its id; each is there once, and nothing else is."""
    rows = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
    files = {path.relative_to(folder).as_posix() for path in (folder / "images").rglob("*")}
    assert len(rows) == len(files) == COUNT and {row["file_name"] for row in rows} == files
    with sqlite3.connect(folder / ".genpipe/journal.sqlite") as journal:
        assert journal.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert journal.execute("SELECT count(*) FROM pictures WHERE state = 1").fetchone() == (COUNT,)
    assert not (folder / ".genpipe/parts").exists() and not list(folder.rglob("*.part"))
    return {row["id"]: Image.open(folder / row["file_name"]).tobytes() for row in rows}


def pictures(folder: Path) -> int:
    return sum(1 for _ in (folder / "images").glob("*.png")) if (folder / "images").is_dir() else 0


def wait_for(condition, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not condition() and process.poll() is None:
        assert time.monotonic() < deadline, "nothing is drawn"
        time.sleep(0.002)


def test_killed_five_times_and_nothing_is_lost(command, tmp_path, tiny_checkpoint):
    rng = random.Random(0)
    out = tmp_path / "killed"
    killed = 0
    while killed < 5:
        process = command(out)
        seen = pictures(out)
        wait_for(lambda seen=seen: pictures(out) >= min(seen + rng.randrange(1, 4), COUNT), process)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        if killed in (1, 3) and children:  # a worker, whom another follows; then the coordinator
            os.kill(int(children[0]), signal.SIGKILL)
            killed += 1
            time.sleep(rng.uniform(0, 0.5))
        process.kill()
        killed += 1
        process.communicate()
    process = command(out)
    printed, complaints = process.communicate()
    assert (process.returncode, printed.strip()) == (0, str(out / "index.html")), complaints
    options = Options.of(model=str(tiny_checkpoint), settings={"steps": 3}, deterministic=True)
    rows = [f"a red cat {number // 2}" for number in range(COUNT)]
    undisturbed = Run(rows, tmp_path / "whole", options, engine=Inline())
    assert sum(1 for _ in undisturbed.pictures()) == COUNT
    assert rendered(out) == rendered(tmp_path / "whole")


def test_ctrl_c_finishes_the_batch_and_says_how_to_go_on(command, tmp_path):
    out = tmp_path / "stopped"
    process = command(out, "--steps", "40")  # slow enough that it cannot be done before it is told to stop
    wait_for(lambda: pictures(out) >= 2, process)
    process.send_signal(signal.SIGINT)
    printed, complaints = process.communicate(timeout=60)
    assert process.returncode == 130 and printed == ""
    done = len((out / "metadata.jsonl").read_text().splitlines())
    assert 2 <= done == pictures(out) < COUNT
    assert f"interrupted with {done} of {COUNT} images done: the same command goes on" in complaints
    assert "Traceback" not in complaints


def test_a_second_ctrl_c_stops_at_once(command, tmp_path):
    out = tmp_path / "stopped"
    process = command(out, "--steps", "900")
    wait_for((out / ".genpipe" / "journal.sqlite").exists, process)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    _, complaints = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in complaints


def test_workers_do_not_outlive_their_coordinator(command, tmp_path):
    out = tmp_path / "orphans"
    process = command(out)
    wait_for(lambda: pictures(out) >= 1, process)
    children = [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
    process.kill()
    process.communicate()
    deadline = time.monotonic() + 30
    while any(Path(f"/proc/{pid}/cmdline").exists() and b"process" in Path(f"/proc/{pid}/cmdline").read_bytes()
              for pid in children):  # fmt: skip
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert children


def test_a_model_that_cannot_be_loaded_is_refused_in_one_line(tmp_path):
    run = Run(["a"], tmp_path / "out", Options.of(model=str(tmp_path / "missing")), engine=LocalEngine("cpu"))
    with pytest.raises(ValueError, match="does not exist"):
        list(run.pictures())


def test_workers_that_die_while_loading_end_the_run(tmp_path):
    engine = LocalEngine("cpu", [sys.executable, "-c", "import sys; sys.exit(3)"])
    with pytest.raises(RuntimeError, match=r"workers die while they load the model \(exit status 3\)"):
        list(Run(["a"], tmp_path / "out", Options(), engine=engine).pictures())

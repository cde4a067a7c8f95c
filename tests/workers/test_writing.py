"""Images that threads or processes write: the same files, and the same errors, whoever writes."""

import hashlib
import json
import os
import signal
import subprocess
import sys
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from genpipe.images import Picture
from genpipe.workers.image_files import Written, write_image
from genpipe.workers.messages import thumbnail_path
from genpipe.workers.storage import Folder
from genpipe.workers.writer_process import SHARED, Gone, WriterProcess
from genpipe.workers.writing import Writer, writer_processes

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-m"]
TEXTS = {"parameters": "ein Schiff, корабль 🚢\nSteps: 20", "genpipe": '{"prompt": "\\ud800"}'}


def picture(side: int = 32, seed: int = 0) -> Picture:
    levels = np.random.default_rng(seed).integers(0, 256, (side, side + 8, 3), dtype=np.uint8)
    made = Picture.of_levels(levels)
    made.info |= TEXTS
    return made


@pytest.fixture
def process(tmp_path: Path):
    (tmp_path / "there").mkdir()
    made = WriterProcess(str(tmp_path / "there"))
    yield made
    made.close()


def alike(one: Written, other: Written) -> bool:
    return one[:2] == other[:2]


@pytest.mark.parametrize("path", ["images/a.png", "images/b/c.jpg", "d.webp"])
@pytest.mark.parametrize("side", [32, 300])
def test_a_process_writes_what_this_one_writes(process, tmp_path, path, side):
    (tmp_path / "here").mkdir()
    here = write_image(Folder(tmp_path / "here"), "1" * 32, path, picture(side))
    there = process.write("1" * 32, path, picture(side))
    data = (tmp_path / "there" / path).read_bytes()
    assert alike(here, there) and data == (tmp_path / "here" / path).read_bytes()
    assert there[:2] == (len(data), hashlib.sha256(data).hexdigest()) and there.encode > 0 and there.write > 0
    assert (tmp_path / "there" / thumbnail_path("1" * 32)).exists() == (side == 300)


def test_an_error_of_the_disk_comes_back_as_it_is(process, tmp_path):
    (tmp_path / "there" / "images").write_text("in the way")
    for _ in range(2):
        with pytest.raises(FileExistsError, match="there/images"):
            process.write("1" * 32, "images/a.png", picture())
    (tmp_path / "there" / "images").unlink()
    assert process.write("1" * 32, "images/a.png", picture()).size > 1000


@pytest.mark.parametrize("processes", [0, 2])
def test_many_at_a_time(tmp_path, processes):
    writer = Writer(str(tmp_path), processes=processes)
    futures = [writer.submit(f"{k:032x}", f"images/{k}.png", picture(seed=k)) for k in range(40)]
    for number, future in enumerate(futures):
        written = future.result(timeout=60)
        data = (tmp_path / f"images/{number}.png").read_bytes()
        assert written[:2] == (len(data), hashlib.sha256(data).hexdigest())
        with Image.open(tmp_path / f"images/{number}.png") as image:
            assert (np.asarray(image) == np.asarray(picture(seed=number))).all()
            image.load()
            assert image.info["parameters"] == TEXTS["parameters"]  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize("processes", [0, 1])
def test_who_waits_is_told_of_errors(tmp_path, processes):
    (tmp_path / "images").write_text("in the way")
    writer = Writer(str(tmp_path), processes=processes)
    with pytest.raises(FileExistsError, match="images"):
        writer.submit("1" * 32, "images/a.png", picture()).result(timeout=60)
    assert writer.submit("1" * 32, "a.png", picture()).result(timeout=60).size > 1000


def test_a_process_that_is_killed_loses_no_image(tmp_path, monkeypatch):
    made: list[Any] = []
    popen = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda *given, **how: made.append(popen(*given, **how)) or made[-1])
    writer = Writer(str(tmp_path), processes=1)
    assert writer.submit("1" * 32, "a.png", picture()).result(timeout=60).size > 1000
    os.kill(made[0].pid, signal.SIGKILL)
    futures: list[Future[Written]] = [writer.submit("1" * 32, f"{k}.png", picture(seed=k)) for k in range(3)]
    assert all(future.result(timeout=60).size > 1000 for future in futures)
    assert made[0].wait(timeout=20) == -signal.SIGKILL


def test_a_process_that_is_gone_says_so(process):
    process.close()
    with pytest.raises(Gone):
        process.write("1" * 32, "a.png", picture())


def test_a_process_ends_with_its_input(tmp_path):
    opening = json.dumps({"out": str(tmp_path), "sign": None}).encode() + b"\n"
    half = (
        json.dumps({"id": "1", "path": "a.png", "width": 9, "height": 9, "info": {}, "shared": False}).encode()
        + b"\nhalf of an image"
    )
    for given in (b"", opening, opening + half):
        done = subprocess.run(
            [*COMMAND, "genpipe.workers.writer_process"], input=given, check=True, capture_output=True, cwd=ROOT
        )
        assert done.stdout == b""
    assert not (tmp_path / "a.png").exists()


def test_few_processors_have_no_processes_beside():
    assert [writer_processes(count) for count in (1, 2, 4, 6, 8, 16, 128)] == [0, 0, 0, 2, 4, 8, 8]


def test_an_image_too_large_for_the_memory_that_is_shared_is_written_too(process, tmp_path):
    large = Picture.of_levels(np.zeros((4104, 4104, 3), np.uint8))
    assert SHARED < 3 * 4104**2
    written = process.write("1" * 32, "images/a.png", large)
    assert written.sha256 == hashlib.sha256((tmp_path / "there/images/a.png").read_bytes()).hexdigest()
    with Image.open(tmp_path / "there/images/a.png") as image:
        assert image.size == (4104, 4104) and image.getextrema() == ((0, 0),) * 3
    assert process.write("1" * 32, "images/b.png", picture()).size > 1000


def test_writing_loads_no_torch():
    code = "import sys; import genpipe.workers.writer_process; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)

"""Several devices, posed by processes on the CPU: each draws, one that fails costs only what it was at."""

import json
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from genpipe.render import LocalEngine, Options, Run
from genpipe.workers.messages import Job
from tests.render.conftest import MODEL

# A worker that takes any name for the CPU, notes what it is called, and fails as it is told by the environment.
POSING = """
import json, os, sys, time
from genpipe.workers import process
from genpipe.workers.renderer import Renderer

def make(job, device):
    name = os.environ.get("CUDA_VISIBLE_DEVICES") or device
    renderer = Renderer(job, "cpu", beside=True)
    with open(os.environ["NOTES"], "a") as file:
        file.write(json.dumps([name, device, os.environ.get("CUDA_VISIBLE_DEVICES")]) + "\\n")
    stream = renderer.pipeline.stream

    def failing(requests):
        if name == os.environ.get("BROKEN"):
            raise RuntimeError("CUDA error: uncorrectable ECC error encountered")
        while sum(1 for _ in open(os.environ["NOTES"])) < int(os.environ["TOGETHER"]):
            time.sleep(0.01)
        time.sleep(0.1)
        if any(request.prompt == os.environ.get("DEADLY") for request in requests):
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        return stream(requests)

    renderer.pipeline.stream = failing
    return renderer

process.main(make)
"""
PROMPTS = [f"a red cat {number}" for number in range(16)]

# A worker that draws nothing, and notes what it is told.
NOTING = """
import json, os, sys
device = json.loads(sys.stdin.readline())["device"]
with open(os.environ["NOTES"], "a") as file:
    file.write(json.dumps([device, os.environ.get("CUDA_VISIBLE_DEVICES")]) + "\\n")
print(json.dumps({"opened": json.loads(os.environ["MODEL"]), "device": "cuda", "cards": 1}), flush=True)
sys.stdin.read()
"""


@pytest.fixture
def told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[list[Any]]]:
    """Open an engine of two workers; gives the device and CUDA_VISIBLE_DEVICES of each."""
    notes = tmp_path / "notes"
    monkeypatch.setenv("NOTES", str(notes))
    monkeypatch.setenv("MODEL", json.dumps(asdict(MODEL)))

    def told(devices: str, visible: str | None = None) -> list[list[Any]]:
        if visible is not None:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        engine = LocalEngine(devices, [sys.executable, "-c", NOTING])
        assert engine.open(Job("")) == MODEL and engine.workers == 2
        assert engine.event(60) is None  # the second is there
        engine.close()
        return sorted(json.loads(line) for line in notes.read_text().splitlines())

    return told


@pytest.fixture
def drawn(tmp_path: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch):
    """Render PROMPTS on devices that are posed; gives the run, what each worker noted when it began, and the errors."""
    notes = tmp_path / "notes"
    monkeypatch.setenv("NOTES", str(notes))

    def drawn(
        devices: str, prompts: list[str] = PROMPTS, **variables: str
    ) -> tuple[Run, list[list[Any]], dict[str, str | None]]:
        for name, value in {"TOGETHER": "2", **variables}.items():
            monkeypatch.setenv(name, value)
        options = Options.of(model=str(tiny_checkpoint), dtype="fp32", settings={"steps": 1}, batch=2)
        run = Run(prompts, tmp_path / "out", options, engine=LocalEngine(devices, [sys.executable, "-c", POSING]))
        errors = {picture.request.prompt: picture.error for picture in run.pictures()}
        return run, [json.loads(line) for line in notes.read_text().splitlines()], errors

    return drawn


def test_each_device_has_a_process_of_its_own(drawn):
    run, noted, _ = drawn("cuda:0,cuda:1")
    assert run.done == len(PROMPTS) and run.report.workers == 2 and run.report.lost_workers == 0
    assert sorted(noted) == [["cuda:0", "cuda:0", None], ["cuda:1", "cuda:1", None]]


def test_a_slice_is_all_that_its_process_sees(told):
    assert told("MIG-a,MIG-b") == [["cuda", "MIG-a"], ["cuda", "MIG-b"]]


def test_cards_are_numbered_among_those_that_are_visible(told):
    assert told("cuda:0,cuda:1", "2,3") == [["cuda:0", "2,3"], ["cuda:1", "2,3"]]


@pytest.mark.parametrize("devices", ["auto", "cuda"])
def test_slices_that_are_visible_are_all_used(told, devices):
    assert told(devices, "MIG-a,MIG-b") == [["cuda", "MIG-a"], ["cuda", "MIG-b"]]


def test_a_card_that_fails_is_left_out_and_others_draw_what_it_was_at(drawn):
    with pytest.warns(UserWarning, match=r"cuda:1 is left out: its workers died 3 times in a row \(exit status 1\)"):
        run, noted, _ = drawn("cuda:0,cuda:1", TOGETHER="4", BROKEN="cuda:1")
    assert (run.done, run.failed) == (len(PROMPTS), 0)
    assert Counter(name for name, *_ in noted) == {"cuda:0": 1, "cuda:1": 3} and run.report.lost_workers == 3


def test_an_image_that_kills_its_workers_is_given_up_on_any_card(drawn):
    run, _, errors = drawn("cuda:0,cuda:1", [*PROMPTS, "death"], DEADLY="death")
    assert errors.pop("death") == "its worker died (exit status 1), 4 times over it"
    assert errors == dict.fromkeys(PROMPTS)
    assert (run.done, run.failed, run.report.lost_workers) == (len(PROMPTS), 1, 4)


def test_slices_of_workers_that_are_not_there_end_the_run_in_one_line(tmp_path):
    code = "import sys; from genpipe.workers import process; process.main(lambda job, device: 1 / 0)"
    refusing = code.replace("1 / 0", "(_ for _ in ()).throw(ValueError('torch sees 0 CUDA devices'))")
    engine = LocalEngine("MIG-a", [sys.executable, "-c", refusing])
    with pytest.raises(ValueError, match=r"^MIG-a: torch sees 0 CUDA devices$"):
        list(Run(["a"], tmp_path / "out", Options(), engine=engine).pictures())

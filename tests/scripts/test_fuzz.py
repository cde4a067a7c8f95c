"""The fuzzer notices everything that it is to notice, and finds nothing in 500 samples of each seed that is tried here."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
from PIL import Image

from genpipe.files import atomic_write
from scripts.evaluate.fuzz.sandbox import Sample, Sandbox, command, function
from scripts.evaluate.fuzz.values import mutated, spoiled

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(os.name != "posix", reason="alarms are POSIX's")


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    here = os.getcwd()
    yield Sandbox(tmp_path_factory.mktemp("sandbox"), patience=0.2)
    os.chdir(here)


def say(text: str, status: int = 2) -> int:
    print(text, file=sys.stderr)
    return status


def fail(error: BaseException) -> Any:
    raise error


def half_written() -> int:
    with atomic_write(Path("a.png")) as part:
        part.with_name(".genpipe-left.part").touch()
    return 0


def lost() -> int:
    print("a.png")
    return 0


BAD: dict[str, tuple[Callable[[], int | None], str]] = {
    "exception": (lambda: fail(TypeError("x")), "TypeError at"),
    "exception of its own": (lambda: fail(ValueError("a clear line: with a fix")), "ValueError at"),
    "status": (lambda: 3, "exit status 3"),
    "silence": (lambda: 1, "exit status 1 without a line"),
    "long line": (lambda: say("genpipe: error: " + "x" * 5000), "a line of 5 thousand"),
    "control characters": (lambda: say("genpipe: error: the value \x1b[31m is red"), "a line with control characters"),
    "bare line": (lambda: say("genpipe: error: list index out of range"), "a line that does not help"),
    "hang": (lambda: time.sleep(5), "hang of more than 0.2 s"),  # pyright: ignore
    "writing outside": (lambda: (ROOT / "x").open("w").close(), "open outside"),  # pyright: ignore
    "removing outside": (lambda: os.remove("/missing/x"), "os.remove outside"),
    "program": (lambda: subprocess.run(["true"], check=False).returncode, "a program is started"),
    "lost image": (lost, "an image is lost"),
    "half-written file": (half_written, "a half-written file is left"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_bad_is_noticed(sandbox: Sandbox, name: str) -> None:
    run, says = BAD[name]
    sandbox.empty()
    try:
        assert says in (sandbox.observe(Sample(name, run, images=name == "lost image")) or "")
    finally:
        (ROOT / "x").unlink(missing_ok=True)


def test_what_is_sound_is_not(sandbox: Sandbox) -> None:
    def draw() -> int:
        Image.new("RGB", (2, 2)).save("a.png")
        return lost()

    for sample in (
        Sample("image", draw, images=True),
        Sample("line", lambda: say("genpipe: error: steps must be a whole number from 1 to 1000, not 0")),
        command("a command", ["vocabulary", "cat"]),
        command("a mistake", ["ship", "--steps", "0"]),
        function("call", lambda: fail(ValueError("steps must be a whole number from 1 to 1000, not 0"))),
    ):
        sandbox.empty()
        assert sandbox.observe(sample) is None, sample.name


def test_a_place_that_the_command_line_names_is_not_outside(sandbox: Sandbox, tmp_path: Path) -> None:
    named = command("a command", ["inspect", "a.png", f"--outdir={tmp_path / 'here'}", "--outdir", str(tmp_path / "b")])
    assert named.outputs == (f"{tmp_path / 'here'}", str(tmp_path / "b"))
    for name, wrong in (("here", None), ("hereafter", "os.mkdir outside")):
        sandbox.empty()
        found = sandbox.observe(
            replace(named, run=lambda name=name: (tmp_path / name / "c").mkdir(parents=True, exist_ok=True))
        )
        assert found is None if wrong is None else wrong in (found or "")


def test_values_are_spoiled_the_same_way_for_a_seed() -> None:
    content = {"a": [1, {"b": "c"}], "d": 2.0}
    for seed in range(50):
        first, again = (spoiled(Random(seed), content) for _ in range(2))
        assert repr(first) == repr(again) and content == {"a": [1, {"b": "c"}], "d": 2.0}
        assert mutated(Random(seed), b"abc" * 50) == mutated(Random(seed), b"abc" * 50)
    assert len({repr(spoiled(Random(seed), content)) for seed in range(50)}) > 20


def test_500_hostile_inputs_do_no_harm(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", "scripts.evaluate.fuzz", "--count", "500", "--seed", "1", "--out", str(tmp_path)],
        capture_output=True, text=True, env=environment, cwd=ROOT, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    figures = json.loads(done.stdout.splitlines()[-1])
    assert (figures["inputs"], figures["bad"]) == (500, 0) and not list(tmp_path.iterdir())

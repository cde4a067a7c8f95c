"""The command, run in this process in an empty folder, on a tiny checkpoint."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from genpipe.cli import main

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in an empty folder."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command: (exit status, stdout, stderr)."""

    def run(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        try:
            status = main([str(argument) for argument in arguments])
        except SystemExit as stopped:
            status = stopped.code
        return status, *capsys.readouterr()  # pyright: ignore[reportReturnType]

    return run


@pytest.fixture
def draw(command: Run, tiny_checkpoint: Path) -> Run:
    """Run the command on the tiny checkpoint and the CPU, in two steps unless others are given."""

    def run(*arguments: object) -> tuple[int, str, str]:
        steps = [] if "--steps" in arguments else ["--steps", 2]
        return command(*arguments, *steps, "--model", tiny_checkpoint, "--device", "cpu")

    return run


def pixels(path: str | Path) -> np.ndarray:
    """The levels of an image's file, (H, W, 3)."""
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))

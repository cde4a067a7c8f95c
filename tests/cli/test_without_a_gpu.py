"""What asks for a GPU where there is none gets one line that says so, and no image."""

import re
from pathlib import Path

import pytest
import torch

from tests.cli.conftest import Run

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
NO_CARD = r"genpipe: error: device 'cuda' is not available: .*; use cpu\n"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--device", "cuda"], NO_CARD),
        (["--device", "cpu", "--fp8"], r"genpipe: error: fp8 runs on NVIDIA's GPUs alone, not on cpu: .*--no-fp8.*\n"),
        (
            ["--device", "cpu", "--compile"],
            r"genpipe: error: compile is for CUDA alone, not for cpu: .*--no-compile.*\n",
        ),
    ],
)
@pytest.mark.parametrize("command_of", ["generate", "render"])
def test_an_option_for_gpus(
    command: Run, tiny_checkpoint: Path, tmp_path: Path, command_of: str, options: list[str], says: str
) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a ship\n")
    out = tmp_path / ("out" if command_of == "render" else "a.png")
    if command_of == "render":
        given = ["render", prompts, "--out", out, *(["--devices" if o == "--device" else o for o in options])]
    else:
        given = ["a ship", "--output", out, *options]
    status, printed, complained = command(*given, "--model", tiny_checkpoint)
    assert status == 2 and printed == ""
    assert complained.count("\n") == 1 and re.fullmatch(says, complained), complained
    assert not list(tmp_path.rglob("*.png"))

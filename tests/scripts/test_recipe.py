"""The recipe of `scripts.train.embedded`, whole, stopped and killed, with networks of a few thousand weights."""

import importlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from threading import Timer

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from genpipe import Pipeline
from genpipe.checkpoints import Checkpoint
from genpipe.training.loop import choose_accelerator
from genpipe.training.text_to_image import SCHEDULER
from scripts.train.recipe import LOG_CHARACTERS, STAGES, Recipe, carry_out
from tests.conftest import tiny_parts

TOY = Recipe({"text": 0.2, "autoencoder": 0.3, "denoiser": 0.3, "growth": 0.2}, batch=4, vae_batch=2, growth_batch=2,
             judged=8, measured=1, prompts=("cat",))  # fmt: skip
CONCEPTS = ("cat", "pirate ship", "castle", "apple", "car", "owl")
MINUTES = 0.05
ROOT = Path(__file__).parents[2]


def tiny(folder: Path) -> Checkpoint:
    """Tiny networks for images of 32 pixels."""
    parts = tiny_parts()
    defaults = {"height": 32, "width": 32, "steps": 2, "guidance_scale": 2.0, "guidance_rescale": 0.0}
    return Checkpoint(**{**parts, "scheduler_config": dict(SCHEDULER)}, defaults=defaults, source="")


def cook(out: Path, *, minutes: float = MINUTES, limit: float | None = None, recipe: Recipe = TOY) -> None:
    accelerator = choose_accelerator("cpu", "fp32")
    carry_out(recipe, out, minutes=minutes, concepts=CONCEPTS, accelerator=accelerator, begin=tiny, limit=limit)


def check(out: Path) -> None:
    """Every stage left its state, and the folder holds what it is to hold."""
    for folder in STAGES.values():
        state = load_file(out / folder / "state.safetensors")
        assert all(tensor.isfinite().all() for tensor in state.values()), folder
    log = (out / "log.txt").read_text()
    assert len(log) <= LOG_CHARACTERS and "held-out images" in log and "dB on unseen scenes" in log
    assert all(f"{stage}: " in log for stage in STAGES) and "no state yet" not in log and "stopped" not in log
    assert json.loads((out / "figures.json").read_text())["images"]["images"] == 8
    pipe = Pipeline.from_pretrained(out / "checkpoint", device="cpu", dtype="fp32")
    assert pipe("cat", seed=1, progress=False).size == (64, 64)
    assert pipe.checkpoint.defaults["concepts"] == list(CONCEPTS)
    assert Image.open(out / "samples.png").size == (64, 64)
    assert not list(out.rglob("*.tmp")) and not list(out.rglob("*.part"))


pytestmark = pytest.mark.filterwarnings("ignore:the prompt is cut")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of a training that was killed as the autoencoder had a state, ran out of time at once, and then went on
    to its end; and the log of the second run."""
    out = tmp_path_factory.mktemp("recipe")
    code = f"from pathlib import Path; from tests.scripts.test_recipe import cook; cook(Path({str(out)!r}))"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, env=environment, stderr=subprocess.DEVNULL,
                               stdout=subprocess.DEVNULL)  # fmt: skip
    while not (out / "base" / "vae" / "state.safetensors").exists() and process.poll() is None:
        time.sleep(0.005)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    cook(out, limit=0.0)
    log = (out / "log.txt").read_text()
    cook(out)
    return out, log


def test_a_killed_run_continues_to_its_end(finished: tuple[Path, str]) -> None:
    check(finished[0])


def test_a_run_that_is_out_of_time_says_where_it_stopped(finished: tuple[Path, str]) -> None:
    assert re.search(r"(vae|denoiser|growth) stopped at step \d+: the same command continues it", finished[1])
    assert re.search(r"^text: \d+ steps in", finished[1], re.MULTILINE) and "held-out" not in finished[1]


def test_the_same_command_again_changes_no_weights(finished: tuple[Path, str]) -> None:
    weights = finished[0] / "checkpoint" / "unet" / "diffusion_pytorch_model.safetensors"
    before = load_file(weights)
    cook(finished[0])
    check(finished[0])
    assert all(torch.equal(weight, before[name]) for name, weight in load_file(weights).items())


def test_a_run_that_is_asked_to_end_keeps_what_it_has(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(signal.SIGTERM)
    Timer(1.0, os.kill, (os.getpid(), signal.SIGTERM)).start()
    cook(tmp_path, minutes=10)
    assert re.search(r"text stopped at step \d+", (tmp_path / "log.txt").read_text())
    assert signal.getsignal(signal.SIGTERM) is before
    plan = capsys.readouterr().out.splitlines()[0]
    assert plan.startswith(
        "text 120 s, autoencoder 180 s, denoiser 180 s, growth 120 s; steps if images are drawn as fast:"
    )


def damaged(out: Path) -> None:
    (out / "recipe.json").write_text("{")


@pytest.mark.parametrize(
    ("spoil", "recipe", "minutes", "message"),
    [
        (None, TOY, 0.03, rf"holds a training with minutes {MINUTES}: repeat its command, or use another folder"),
        (None, replace(TOY, batch=8), MINUTES, r"holds a training with batch 4: repeat its command"),
        (damaged, TOY, MINUTES, r"recipe.json is damaged: delete .* to begin again"),
    ],
)
def test_a_folder_of_another_training_is_refused(
    tmp_path: Path,
    finished: tuple[Path, str],
    spoil: Callable[[Path], None] | None,
    recipe: Recipe,
    minutes: float,
    message: str,
) -> None:
    shutil.copy(finished[0] / "recipe.json", tmp_path)
    if spoil is not None:
        spoil(tmp_path)
    with pytest.raises(ValueError, match=message):
        cook(tmp_path, recipe=recipe, minutes=minutes)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU: the recipe would run")
def test_without_a_gpu_the_recipe_says_what_it_would_take(tmp_path: Path) -> None:
    module = importlib.import_module("scripts.train.embedded")
    with pytest.raises(SystemExit) as error:
        module.main(["--recipe", "gpu", "--minutes", "9", "--out", str(tmp_path / "out")])
    said = str(error.value)
    assert said.startswith("error: --recipe gpu is for a GPU with CUDA, and torch sees none. On ") and "\n" not in said
    assert "the 9,720 steps that the denoiser is meant to make would take" in said and not (tmp_path / "out").exists()


@pytest.mark.parametrize("option", ["--init", "--vae", "--vae-share", "--growth-minutes"])
def test_options_that_a_recipe_decides_are_refused(
    option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    module = importlib.import_module("scripts.train.embedded")
    with pytest.raises(SystemExit):
        module.main(["--recipe", "gpu", option, "0.7", "--out", str(tmp_path / "out")])
    assert f"--recipe has stages of its own: leave {option} out" in capsys.readouterr().err

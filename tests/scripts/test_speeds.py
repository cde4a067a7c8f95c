"""The script that compares the speeds, run for real on a tiny checkpoint."""

import importlib
import json
import math
import random
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

from genpipe.pipeline import BATCH, Pipeline
from genpipe.scenes import caption, names
from genpipe.seeds import seeds_for


@pytest.fixture
def module() -> ModuleType:
    return importlib.import_module("scripts.evaluate.speeds")


@pytest.mark.filterwarnings("ignore:the prompt is cut")
def test_every_part_gives_its_figures(
    module: ModuleType, tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("skimage")
    few = ["--prompts", "9", "--runs", "1", "--steps", "3"]
    module.main(["--device", "cpu", "--model", str(tiny_checkpoint), "--checkpoint", str(tiny_checkpoint), *few])
    printed = capsys.readouterr().out
    report: dict[str, Any] = json.loads(printed.splitlines()[-1])
    for part in module.PARTS:
        assert list(report[part]["speeds"]) == ["exact", "balanced", "draft"]
    assert (report["cost"]["steps"], report["cost-sd15"]["steps"]) == (30, 3)
    assert report["cost"]["speeds"]["exact"]["times_faster"] == 1
    assert printed.count("| exact |") == 3 and "| | PSNR, dB | SSIM | object_top1_error | setting |" in printed

    # The same images, drawn and compared without the script.
    rows = report["quality"]["speeds"]
    scenes = module.held_out_scenes(random.Random("held out"), names(), 9)
    pipe, seeds = Pipeline.from_pretrained(tiny_checkpoint, device="cpu"), seeds_for(1000, 9)

    def drawn(speed: str) -> np.ndarray:
        images = []
        for part in (slice(0, BATCH), slice(BATCH, 9)):
            prompts = [caption(scene) for scene in scenes[part]]
            images += pipe(prompts, seeds=seeds[part], speed=speed, progress=False)
        return np.stack([np.asarray(image, dtype=np.float64) for image in images])

    exact = drawn("exact")
    for speed in ("balanced", "draft"):
        errors = np.square(drawn(speed) - exact).mean(axis=(1, 2, 3))
        assert rows[speed]["psnr_db"] == pytest.approx(np.mean(20 * np.log10(255 / np.sqrt(errors))))
        assert 0 < rows[speed]["ssim"] < 1 and set(module.JUDGED) <= set(rows[speed])
        change = (rows[speed]["gained"] - rows[speed]["lost"]) / 9
        assert rows[speed]["satisfied"] - rows["exact"]["satisfied"] == pytest.approx(change)
    assert rows["draft"]["psnr_db"] != rows["balanced"]["psnr_db"] < 60
    assert rows["exact"]["lost"] == rows["exact"]["gained"] == 0 and "ssim" not in rows["exact"]


def test_similarity_of_flat_images_is_that_of_the_formulas(module: ModuleType) -> None:
    pytest.importorskip("skimage")

    def flat(level: int) -> Image.Image:
        return Image.new("RGB", (32, 32), (level,) * 3)

    found = module.similarity([flat(110)], [flat(100)])
    c1 = (0.01 * 255) ** 2
    assert found["psnr_db"] == pytest.approx(20 * math.log10(25.5))
    assert found["ssim"] == pytest.approx((2 * 110 * 100 + c1) / (110**2 + 100**2 + c1))
    both = module.similarity([flat(110), flat(100)], [flat(100), flat(100)])
    same = 10 * math.log10(255**2 * 32 * 32 * 3)
    assert both["psnr_db"] == pytest.approx((found["psnr_db"] + same) / 2)
    assert both["ssim"] == pytest.approx((found["ssim"] + 1) / 2)


class Clocked:
    """A pipeline whose images take known times: those of the first timed run of each speed are a second more."""

    name, device, dtype = "clocked", "cpu", "torch.float32"
    seconds = {"exact": 8.0, "balanced": 4.0, "draft": 2.0}  # noqa: RUF012

    def __init__(self) -> None:
        self.now, self.calls = 0.0, []

    def __call__(self, prompt: str, *, seed: int, steps: int, speed: str, progress: bool) -> None:
        self.calls.append((speed, seed, steps))
        self.now += self.seconds[speed] + (len(self.calls) <= 6)

    def defaults(self) -> dict[str, int]:
        return {"width": 512, "height": 512}

    def sampler(self) -> "Clocked":
        return self


def test_speeds_are_timed_in_turn_and_the_first_images_not_counted(
    module: ModuleType,
) -> None:
    pipe = Clocked()
    found = module.cost(pipe, 3, 20, clock=lambda: pipe.now)
    speeds = list(pipe.seconds)
    assert pipe.calls == [(speed, 0, 4) for speed in speeds] + [(s, seed, 20) for seed in range(3) for s in speeds]
    assert {speed: row["seconds"] for speed, row in found["speeds"].items()} == pipe.seconds
    assert [row["times_faster"] for row in found["speeds"].values()] == [1, 2, 4]
    assert found["speeds"]["draft"]["all_seconds"] == [3, 2, 2]
    assert "| draft | 2 | 4.00 |" in module.cost_table("Some model", found)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--prompts", "0"], "--prompts 0 is too few: use 1 or more"),
        (["--runs", "-1"], "--runs -1 is too few: use 1 or more"),
        (["--steps", "0"], "--steps 0 is out of range: use 1 to 1000"),
        (["--parts", "all"], "invalid choice: 'all'"),
        (["--checkpoint", "nowhere"], "--checkpoint nowhere holds no model_index.json"),
        (["--model", "nowhere/at/all", "--device", "cpu"], "nowhere/at/all"),
    ],
)
def test_mistakes_are_one_line(
    module: ModuleType, arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as error:
        module.main(arguments)
    assert says in (capsys.readouterr().err if error.value.code == 2 else str(error.value))


def test_without_scikit_image_the_extra_is_named(
    module: ModuleType, monkeypatch: pytest.MonkeyPatch, tiny_checkpoint: Path
) -> None:
    monkeypatch.setitem(sys.modules, "skimage.metrics", None)
    with pytest.raises(SystemExit, match=r'SSIM needs scikit-image: pip install "genpipe\[compare\]"'):
        module.main(["--model", str(tiny_checkpoint), "--parts", "quality", "--device", "cpu"])

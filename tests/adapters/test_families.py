"""Every family draws through genpipe what it draws by hand in diffusers, and all around it works as for other models."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from genpipe.metadata import read_made
from genpipe.pipeline import Pipeline, Progress
from genpipe.pipeline.wrapped import WrappedDrawer
from genpipe.render import Options, Run
from tests.adapters.conftest import families, family_named
from tests.adapters.tiny import Family
from tests.render.conftest import Inline

pytestmark = pytest.mark.filterwarnings("ignore")  # diffusers' own, of what it will drop one day
ROOT = Path(__file__).parents[2]
Load = Callable[[Family], Pipeline]
Save = Callable[[Family], Path]


def by_hand(pipeline: Pipeline, family: Family, prompt: str, seed: int, **more: Any) -> np.ndarray:
    """What diffusers draws, called as its documentation does."""
    assert isinstance(pipeline.drawer, WrappedDrawer)
    pipe = pipeline.drawer.adapted.pipe
    generator = torch.Generator("cpu").manual_seed(seed)
    made = pipe(prompt=prompt, generator=generator, **family.by_hand, **more)
    images = made.image if hasattr(made, "image") else made.images
    return np.asarray(images[0].convert("RGB")).astype(int)


def levels(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(int)


@pytest.mark.parametrize("each", families(), ids=lambda family: family.name)
def test_an_image_is_that_of_diffusers_with_the_seeds_generator(each: Family, loaded: Load):
    family, pipeline, states = each, loaded(each), []
    image = pipeline("a red cat", seed=2**63, progress=False, callback=states.append, **family.settings)
    expected = by_hand(pipeline, family, "a red cat", 2**63)
    assert np.array_equal(levels(image), expected)
    assert expected.std() > 5, "a grey image would agree with anything"
    assert family.large or not np.array_equal(expected, by_hand(pipeline, family, "a red cat", 1))
    assert [(state.step, state.steps) for state in states] == [(k + 1, family.steps) for k in range(family.steps)]


def test_images_of_a_batch_are_those_drawn_alone(family: Family, loaded: Load):
    pipeline = loaded(family)
    prompts, seeds = ["a red cat", "a blue dog, old", "a red cat"], [3, 4, 5]
    images = pipeline(prompts, seeds=seeds, progress=False, **family.settings)
    for image, prompt, seed in zip(images, prompts, seeds, strict=True):
        # Of a batch the same sums come in another order.
        assert np.abs(levels(image) - by_hand(pipeline, family, prompt, seed)).max() <= 2


def test_a_negative_prompt_reaches_the_pipeline_or_is_warned_of(family: Family, loaded: Load):
    pipeline = loaded(family)
    settings = {"seed": 7, "progress": False, "negative_prompt": "blue", **family.settings}
    if not family.negative:
        with pytest.warns(UserWarning, match="negative_prompt has no effect"):
            pipeline("a red cat", **settings)
        return
    image = levels(pipeline("a red cat", **settings))
    assert np.array_equal(image, by_hand(pipeline, family, "a red cat", 7, negative_prompt="blue"))


def test_a_file_draws_its_image_again(family: Family, loaded: Load, tmp_path: Path):
    pipeline = loaded(family)
    image = pipeline("a red cat", seed=5, progress=False, **family.settings)
    image.save(tmp_path / "cat.png")
    made = read_made(tmp_path / "cat.png")
    assert made.model["model"] == pipeline.name and made.model["dtype"] == "fp32"
    settings = {name: value for name, value in made.request.items() if name not in ("prompt", "seed")}
    again = pipeline(made.request["prompt"], seed=made.request["seed"], progress=False, **settings)
    assert np.array_equal(levels(again), levels(Image.open(tmp_path / "cat.png")))


def test_a_run_that_was_stopped_goes_on(family: Family, folder_of: Save, loaded: Load, tmp_path: Path):
    rows = [{"prompt": "a red cat", "seed": seed} for seed in range(3)]
    given = {"model": str(folder_of(family)), "dtype": "fp32", "batch": 1, "settings": family.settings}

    def run(stop_after: int = 0) -> Run:
        made = Run(rows, tmp_path / "out", Options.of(**given), engine=Inline())
        for count, _ in enumerate(made.pictures(), start=1):
            if count == stop_after:
                made.stop()
        return made

    assert run(stop_after=1).done < 3
    finished = run()
    assert (finished.done, finished.failed) == (3, 0) and finished.report.pictures < 3
    pipeline = loaded(family)
    lines = (tmp_path / "out" / "metadata.jsonl").read_text().splitlines()
    for said in map(json.loads, lines):
        image = levels(Image.open(tmp_path / "out" / said["file_name"]))
        assert np.abs(image - by_hand(pipeline, family, "a red cat", said["seed"])).max() <= 1
    assert len(lines) == 3


def test_a_step_can_be_the_last_that_is_waited_for(family: Family, loaded: Load):
    """A stream that is closed ends the call of diffusers, and the next image is whole."""
    pipeline = loaded(family)
    (request,) = pipeline.requests("a red cat", seed=5, **family.settings)
    stream = pipeline.stream([request])
    first: Progress = next(stream)
    assert first.step == 1 < first.steps and len(first.preview()) == 1
    with pytest.raises(RuntimeError, match="one batch at a time"):
        next(pipeline.stream([request]))
    stream.close()  # type: ignore[attr-defined]
    image = levels(pipeline("a red cat", seed=5, progress=False, **family.settings))
    assert np.array_equal(image, by_hand(pipeline, family, "a red cat", 5))


def test_a_killed_process_loses_no_image(folder_of: Save, loaded: Load, tmp_path: Path):
    family = family_named(name := "Kandinsky 2.2")
    rows = tmp_path / "rows.jsonl"
    settings = {**family.settings, "steps": 4}
    rows.write_text("".join(json.dumps({"prompt": "a red cat", "seed": seed, **settings}) + "\n" for seed in range(8)))
    out = tmp_path / "out"
    command = [
        sys.executable,
        "-m",
        "genpipe",
        "render",
        str(rows),
        "--out",
        str(out),
        "--model",
        str(folder_of(family)),
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}

    def start() -> subprocess.Popen[str]:
        more = ["--devices", "cpu", "--dtype", "fp32", "--batch", "1", "--quiet"]
        return subprocess.Popen([*command, *more], env=environment, stderr=subprocess.PIPE, text=True)

    process = start()
    while process.poll() is None and not list((out / "images").glob("*.png")):
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    process = start()
    _, complaints = process.communicate(timeout=120)
    assert process.returncode == 0, complaints
    said = [json.loads(line) for line in (out / "metadata.jsonl").read_text().splitlines()]
    assert sorted(one["seed"] for one in said) == list(range(8))
    pipeline = loaded(family)
    steps = {**family.by_hand, "num_inference_steps": 4}
    for one in said[:2]:
        expected = by_hand(pipeline, Family(name, None, steps, {}), "a red cat", one["seed"])
        assert np.abs(levels(Image.open(out / one["file_name"])) - expected).max() <= 1

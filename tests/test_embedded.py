"""The embedded model, as it ships."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from genpipe.embedded import EMBEDDED, JUDGES, learned_concepts
from genpipe.judge.scene_judge import Judge
from genpipe.metadata import read_request
from genpipe.pipeline import Pipeline, generate
from genpipe.scenes import caption, concepts, sample
from genpipe.scenes.details import open_details

PROMPTS = {
    "pirate ship": "pirate ship", "пиратский корабль": "pirate ship", "ship": "ship", "корабль": "ship",
    "a castle": "castle", "замок": "castle", "apple": "apple", "яблоко": "apple", "kitty": "cat", "кошка": "cat",
}  # fmt: skip


@pytest.fixture(scope="module")
def pipe() -> Pipeline:
    return Pipeline.from_pretrained(device="cpu", dtype="fp32")


@pytest.fixture(scope="module")
def judge() -> Judge:
    return Judge.load(JUDGES / "model.safetensors", device="cpu")


@pytest.fixture(scope="module")
def learned() -> list[str]:
    return list(learned_concepts())


def pixels(images: Any) -> torch.Tensor:
    arrays = [np.asarray(image, dtype=np.float32) / 127.5 - 1 for image in images]
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2)


@pytest.mark.parametrize("seed", [1, 2])
def test_prompts_draw_what_they_name(pipe: Pipeline, judge: Judge, seed: int) -> None:
    """The judge sees what was asked for, and of the other images it is less sure that they show it."""
    images = pipe(list(PROMPTS), seeds=[seed] * len(PROMPTS), progress=False)
    scores = judge.scores(images, list(PROMPTS))
    assert sum(bool(score.satisfied) for score in scores) >= 8  # of 10
    for name in ("apple", "castle"):
        others = [image for image, thing in zip(images, PROMPTS.values(), strict=True) if thing != name]
        own = [score.total for score, thing in zip(scores, PROMPTS.values(), strict=True) if thing == name]
        assert max(score.total for score in judge.scores(others, [name] * len(others))) < min(own)


def test_each_seed_is_another_image_of_the_same_thing(pipe: Pipeline, judge: Judge) -> None:
    images = pipe(["pirate ship"] * 6, seeds=range(6), progress=False)
    assert sum(bool(score.satisfied) for score in judge.scores(images, ["pirate ship"] * 6)) >= 5
    flat = pixels(images).flatten(1)
    apart = torch.pdist(flat).div(flat.shape[1] ** 0.5)  # root mean square; from black to white it is 2
    assert apart.median() > 0.25


def test_what_a_seed_says_can_be_asked_for(pipe: Pipeline) -> None:
    for prompt, seed in (("penguin", 4), ("a red car in the snow", 9), ("две ракеты", 4)):
        said = open_details(prompt, seed, learned_concepts())
        settings: Any = {"seed": seed, "steps": 2, "progress": False}
        asked = pipe(f"{prompt} {said}", prompt_syntax="plain", **settings)
        assert said and torch.equal(*pixels([pipe(prompt, **settings), asked]))


def test_an_image_that_is_given_says_what_the_prompt_leaves_open(pipe: Pipeline) -> None:
    begun = pipe("penguin", seed=4, steps=2, progress=False)
    settings: Any = {"image": begun, "strength": 0.5, "seed": 4, "steps": 4, "progress": False}
    assert open_details("penguin", 4, learned_concepts())
    assert torch.equal(*pixels([pipe("penguin", **settings), pipe("penguin", **settings, prompt_syntax="plain")]))


def test_combinations_that_were_held_out_of_training_are_drawn(
    pipe: Pipeline, judge: Judge, learned: list[str]
) -> None:
    rng = random.Random(0)
    scenes = [sample(rng, learned, held=True) for _ in range(60)]
    prompts = [caption(scene) for scene in scenes if scene.kind in ("setting", "colour")][:16]
    images = pipe(prompts, seeds=range(len(prompts)), progress=False)
    scores = judge.scores(images, prompts)
    assert (
        sum(bool(score.satisfied) for score in scores) >= 8
    )  # of 16; scripts/evaluate/embedded.py says how many of 1,000


@pytest.mark.filterwarnings("ignore:the model reads 'shp' as 'ship'")
def test_a_prompt_draws_the_same_however_it_is_typed(pipe: Pipeline) -> None:
    for plain, typed in (("ship", "SHIP!!!"), ("ship", "shp"), ("cat in the snow", "🐈 in the snow")):
        images = pipe([plain, typed], seeds=[1, 1], steps=2, progress=False)
        assert torch.equal(*pixels(images))
        assert [read_request(image).prompt for image in images] == [plain, typed]  # as it was written


def test_a_slip_is_told(pipe: Pipeline) -> None:
    with pytest.warns(UserWarning, match="the model reads 'shp' as 'ship'"):
        pipe("a red shp", seed=1, steps=1, progress=False)


def test_a_prompt_is_what_makes_the_difference(pipe: Pipeline) -> None:
    settings: Any = {"prompt_syntax": "plain", "progress": False}
    ship, plain = pixels(pipe(["pirate ship", "ship"], seeds=[1, 1], **settings))
    other = pixels([pipe("pirate ship", seed=2, **settings)])[0]
    assert (ship - plain).square().mean() > 2 * (ship - other).square().mean()


def test_diffusers_draws_the_same_image_from_it() -> None:
    diffusers = pytest.importorskip("diffusers")
    reference = diffusers.StableDiffusionPipeline.from_pretrained(EMBEDDED, safety_checker=None).to(torch.float32)
    reference.set_progress_bar_config(disable=True)
    pipe = Pipeline.from_pretrained(device="cpu", dtype="fp32")
    defaults = pipe.defaults()
    said = open_details("pirate ship", 1, learned_concepts())
    for asked, syntax in (("pirate ship", "plain"), (f"pirate ship {said}", "a1111")):
        theirs = reference(
            asked,
            num_inference_steps=defaults["steps"],
            guidance_scale=defaults["guidance_scale"],
            generator=torch.Generator("cpu").manual_seed(1),
        ).images
        ours = pixels([pipe("pirate ship", seed=1, prompt_syntax=syntax, progress=False)])
        assert (ours - pixels(theirs)).abs().max() <= 1.01 / 127.5
        assert pixels(theirs).std() > 20 / 127.5


def test_drawing_needs_neither_network_nor_the_reference_libraries(tmp_path: Path) -> None:
    code = (
        "import socket, sys\n"
        "def refuse(*_, **__): raise OSError('no network here')\n"
        "socket.socket.connect = refuse\n"
        "from genpipe import generate\n"
        "image = generate('pirate ship', seed=1, progress=False, device='cpu')\n"
        "image.save('ship.png')\n"
        "assert not {'diffusers', 'transformers', 'accelerate'} & set(sys.modules)\n"
    )
    root = str(Path(__file__).parents[1])
    subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        check=True,
        env={**os.environ, "PYTHONPATH": root},
    )
    assert (tmp_path / "ship.png").stat().st_size > 5000


def test_it_is_small_and_safe_and_says_what_it_learned(learned: list[str]) -> None:
    files = [path for path in EMBEDDED.rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")]
    weights = [path for path in EMBEDDED.glob("*/*.safetensors") if path.parent.name != "judge"]
    assert round(sum(path.stat().st_size for path in weights) / 1e6, 1) <= 24.1
    assert sum(path.stat().st_size for path in files) < 40e6
    assert {path.suffix for path in files} <= {".safetensors", ".json", ".txt", ".md"}
    assert set(learned) <= set(concepts())
    assert "pirate ship" in learned


def test_generate_is_the_one_liner() -> None:
    image: Any = generate("pirate ship", seed=1, device="cpu", progress=False)
    assert image.size == (256, 256)
    assert json.loads(image.info["genpipe"])["model"] == "embedded"

"""Images that join and leave a running batch at any step are the images that the pipeline draws."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from genpipe.pipeline import Pipeline
from genpipe.pipeline.run import Run, Together
from genpipe.request import Request
from genpipe.sampling.names import SOLVERS
from tests.pipeline.drawing import difference, draw

OWN = [
    name for name in SOLVERS if name in ("pndm", "ddim", "euler", "euler_a", "heun", "dpmpp_2m", "dpmpp_2m_sde", "lcm")
]


def request(pipe: Pipeline, prompt: str = "a red cat", **settings: Any) -> Request:
    given: Any = {"seed": 5, "steps": 4, "guidance_scale": 4.0, **settings}
    (made,) = pipe.requests(prompt, **given)
    return made


def drawn(pipe: Pipeline, requests: Sequence[Request], *, apart: int = 1) -> list[Image.Image]:
    """Draw requests, of which one joins after every `apart` evaluations."""
    runs: list[Run] = []
    waiting = list(requests)
    forms: dict[Any, Together] = {}
    tick = 0
    while waiting or not all(run.done for run in runs):
        if waiting and tick % apart == 0:
            run = pipe.begin(waiting.pop(0))
            assert run is not None
            runs.append(run)
        tick += 1
        by_form: dict[Any, list[Run]] = {}
        for run in runs:
            if not run.done:
                by_form.setdefault(run.form, []).append(run)
        for form, together in by_form.items():
            forms.setdefault(form, Together())(together)
    return [pipe.decode(run.latents, [run.request])[0] for run in runs]


def alone(pipe: Pipeline, wanted: Request) -> Image.Image:
    latents = torch.empty(0)
    for state in pipe.stream([wanted]):
        latents = state.latents
    return pipe.decode(latents, [wanted])[0]


def check(pipe: Pipeline, requests: Sequence[Request], *, apart: int = 1) -> None:
    images = drawn(pipe, requests, apart=apart)
    expected = [alone(pipe, one) for one in requests]
    assert max(difference(ours, theirs) for ours, theirs in zip(images, expected, strict=True)) <= 2
    assert len({one.tobytes() for one in expected}) == len(requests)  # else mixing them up would not be seen


@pytest.mark.parametrize("sampler", OWN)
def test_every_solver_keeps_its_own_state(pipe: Pipeline, sampler: str) -> None:
    check(pipe, [request(pipe, seed=seed, steps=3 + seed, sampler=sampler) for seed in range(3)])


def test_solvers_steps_and_scales_mix(pipe: Pipeline) -> None:
    asked = [
        request(pipe, "a red cat", seed=1, steps=6, sampler="heun"),
        request(pipe, "a blue dog", seed=2, steps=2, sampler="euler_a", guidance_scale=9.0),
        request(pipe, "a pirate ship", seed=3, steps=5, sampler="dpmpp_2m_karras", guidance_rescale=0.7),
        request(pipe, "", seed=4, steps=4, negative_prompt="a dog"),
        request(pipe, seed=5, steps=3, guidance_scale=1.0),
        request(pipe, seed=6, steps=3, height=48),
    ]
    check(pipe, asked, apart=2)


def test_a_diffusers_scheduler_keeps_its_own_state(pipe: Pipeline) -> None:
    pytest.importorskip("diffusers")
    check(pipe, [request(pipe, seed=seed, steps=3 + seed, sampler="unipc") for seed in range(3)])


def test_prompts_that_change_join_and_repeat(pipe: Pipeline) -> None:
    asked = [
        request(pipe, "a [red:blue:0.5] cat", seed=1, steps=4),
        request(pipe, "a [cat|dog|ship]", seed=2, steps=5),
        request(pipe, "a red cat AND a blue dog :0.7", seed=3),
        request(pipe, " ".join(["a red cat and a blue dog"] * 5), seed=4),
    ]
    check(pipe, asked)


def test_images_to_begin_from_and_masks(pipe: Pipeline) -> None:
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8))
    mask = Image.new("L", (32, 32))
    mask.paste(255, (8, 8, 24, 30))
    asked = [
        request(pipe, seed=1, image=image, strength=0.5, steps=6),
        request(pipe, seed=2, image=image, mask=mask, steps=4),
        request(pipe, seed=3, image=image, mask=mask, strength=1.0, steps=3, sampler="euler_a"),
        request(pipe, seed=4),
    ]
    check(pipe, asked)


def test_sizes_and_pooled_prompts_of_sdxl(tiny_xl_checkpoint: Path) -> None:
    pipe = Pipeline.from_pretrained(tiny_xl_checkpoint, device="cpu", dtype="fp32")
    asked = [
        request(pipe, "a red cat", seed=1, steps=5),
        request(pipe, "a blue dog", seed=2, steps=3, crop=(8, 4)),
        request(pipe, "", seed=3, steps=4, original_size=(64, 32)),
    ]
    check(pipe, asked)


@pytest.mark.parametrize(
    "settings", [{}, {"sampler": "euler_a", "steps": 5}, {"sampler": "heun", "guidance_scale": 1.0}]
)
def test_one_alone_is_bitwise_the_pipelines(pipe: Pipeline, settings: dict[str, Any]) -> None:
    (ours,) = drawn(pipe, [request(pipe, **settings)])
    assert np.array_equal(np.asarray(ours), np.asarray(draw(pipe, deterministic=True, **settings)))


def test_steps_and_latents_are_those_of_the_stream(pipe: Pipeline) -> None:
    asked = request(pipe, sampler="heun", steps=3)
    states = [(state.step, state.steps, state.latents) for state in pipe.stream([asked])]
    run, together, seen = pipe.begin(asked), Together(), []
    assert run is not None
    while not run.done:
        before = run.step
        together([run])
        if run.step > before:
            seen.append((run.step, run.steps, run.latents))
    assert [each[:2] for each in seen] == [each[:2] for each in states] == [(1, 3), (2, 3), (3, 3)]
    assert all(torch.equal(ours[2], theirs[2]) for ours, theirs in zip(seen, states, strict=True))


def test_what_must_be_drawn_by_itself_is_not_begun(
    pipe: Pipeline, tiny_xl_checkpoint: Path, tiny_refiner_checkpoint: Path
) -> None:
    assert pipe.begin(request(pipe, speed="draft")) is None
    refined = Pipeline.from_pretrained(tiny_xl_checkpoint, device="cpu", dtype="fp32", refiner=tiny_refiner_checkpoint)
    assert refined.begin(request(refined)) is None
    assert refined.begin(request(refined, refiner_start=1.0)) is not None


def test_what_cannot_be_drawn_is_refused_when_it_begins(pipe: Pipeline) -> None:
    with pytest.raises(ValueError, match="AND joins prompts by guidance"):
        pipe.begin(request(pipe, "a cat AND a dog", guidance_scale=1.0))
    image = Image.new("RGB", (32, 32))
    with pytest.raises(ValueError, match="not one whole step"):
        pipe.begin(request(pipe, image=image, strength=0.1))

"""Images that join and leave a running batch at any step are the images that the pipeline draws."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from genpipe.pipeline import Pipeline
from genpipe.pipeline.run import Together
from genpipe.sampling.names import SOLVERS
from tests.pipeline.drawing import draw
from tests.pipeline.joined import asked_of, check, drawn

OWN = [
    name for name in SOLVERS if name in ("pndm", "ddim", "euler", "euler_a", "heun", "dpmpp_2m", "dpmpp_2m_sde", "lcm")
]


@pytest.mark.parametrize("sampler", OWN)
def test_every_solver_keeps_its_own_state(pipe: Pipeline, sampler: str) -> None:
    check(pipe, [asked_of(pipe, seed=seed, steps=3 + seed, sampler=sampler) for seed in range(3)])


def test_solvers_steps_and_scales_mix(pipe: Pipeline) -> None:
    asked = [
        asked_of(pipe, "a red cat", seed=1, steps=6, sampler="heun"),
        asked_of(pipe, "a blue dog", seed=2, steps=2, sampler="euler_a", guidance_scale=9.0),
        asked_of(pipe, "a pirate ship", seed=3, steps=5, sampler="dpmpp_2m_karras", guidance_rescale=0.7),
        asked_of(pipe, "", seed=4, steps=4, negative_prompt="a dog"),
        asked_of(pipe, seed=5, steps=3, guidance_scale=1.0),
        asked_of(pipe, seed=6, steps=3, height=48),
    ]
    check(pipe, asked, apart=2)


def test_a_diffusers_scheduler_keeps_its_own_state(pipe: Pipeline) -> None:
    pytest.importorskip("diffusers")
    check(pipe, [asked_of(pipe, seed=seed, steps=3 + seed, sampler="unipc") for seed in range(3)])


def test_prompts_that_change_join_and_repeat(pipe: Pipeline) -> None:
    asked = [
        asked_of(pipe, "a [red:blue:0.5] cat", seed=1, steps=4),
        asked_of(pipe, "a [cat|dog|ship]", seed=2, steps=5),
        asked_of(pipe, "a red cat AND a blue dog :0.7", seed=3),
        asked_of(pipe, " ".join(["a red cat and a blue dog"] * 5), seed=4),
    ]
    check(pipe, asked)


def test_images_to_begin_from_and_masks(pipe: Pipeline) -> None:
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8))
    mask = Image.new("L", (32, 32))
    mask.paste(255, (8, 8, 24, 30))
    asked = [
        asked_of(pipe, seed=1, image=image, strength=0.5, steps=6),
        asked_of(pipe, seed=2, image=image, mask=mask, steps=4),
        asked_of(pipe, seed=3, image=image, mask=mask, strength=1.0, steps=3, sampler="euler_a"),
        asked_of(pipe, seed=4),
    ]
    check(pipe, asked)


def test_sizes_and_pooled_prompts_of_sdxl(tiny_xl_checkpoint: Path) -> None:
    pipe = Pipeline.from_pretrained(tiny_xl_checkpoint, device="cpu", dtype="fp32")
    asked = [
        asked_of(pipe, "a red cat", seed=1, steps=5),
        asked_of(pipe, "a blue dog", seed=2, steps=3, crop=(8, 4)),
        asked_of(pipe, "", seed=3, steps=4, original_size=(64, 32)),
    ]
    check(pipe, asked)


@pytest.mark.parametrize(
    "settings", [{}, {"sampler": "euler_a", "steps": 5}, {"sampler": "heun", "guidance_scale": 1.0}]
)
def test_one_alone_is_bitwise_the_pipelines(pipe: Pipeline, settings: dict[str, Any]) -> None:
    (ours,) = drawn(pipe, [asked_of(pipe, **settings)])
    assert np.array_equal(np.asarray(ours), np.asarray(draw(pipe, deterministic=True, **settings)))


def test_steps_and_latents_are_those_of_the_stream(pipe: Pipeline) -> None:
    asked = asked_of(pipe, sampler="heun", steps=3)
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


def test_second_passes_that_are_cut_into_squares_join(pipe: Pipeline) -> None:
    large = {"upscale": 4.0, "width": 96, "upscale_guidance_scale": 4.0}
    asked = [
        asked_of(pipe, seed=1, steps=4, **large),
        asked_of(pipe, "a blue dog", seed=2, steps=7, sampler="euler_a", **large),
        asked_of(pipe, seed=3, steps=5, speed="draft", **large),
        asked_of(pipe, seed=4, steps=6, width=96),
    ]
    check(pipe, asked)
    second = []
    for each in asked[:2]:
        run, together = pipe.begin(each), Together()
        assert run is not None and run.then is not None
        while not run.done:
            together([run])
        second.append(run.then(run.latents))
    assert second[0].form == second[1].form and second[0].tile is not None


@pytest.mark.parametrize("speed", ["draft", "balanced"])
def test_speeds_that_leave_evaluations_out_join(pipe: Pipeline, speed: str) -> None:
    asked = [asked_of(pipe, seed=seed, steps=8 + seed, speed=speed) for seed in range(4)]
    asked += [
        asked_of(pipe, "a [red:blue:0.5] cat", seed=5, steps=9, speed=speed),
        asked_of(pipe, "a red cat AND a blue dog :0.7", seed=6, speed=speed),
        asked_of(pipe, seed=7, steps=6, speed=speed, guidance_scale=1.0),
        asked_of(pipe, seed=8, steps=7),
        asked_of(pipe, seed=9, steps=5, guidance_scale=1.0),
        asked_of(pipe, seed=10, upscale=2.0, steps=6, speed=speed),
    ]
    check(pipe, asked)
    check(pipe, asked, apart=2)


def test_drafts_of_pooled_prompts_join(tiny_xl_checkpoint: Path) -> None:
    pipe = Pipeline.from_pretrained(tiny_xl_checkpoint, device="cpu", dtype="fp32")
    asked = [
        asked_of(pipe, "a red cat", seed=1, steps=7, speed="draft"),
        asked_of(pipe, seed=2, steps=9, speed="draft"),
    ]
    check(pipe, [*asked, asked_of(pipe, "a ship", seed=3, steps=6, guidance_scale=1.0), asked_of(pipe, "", seed=4)])


def test_second_passes_join_first_ones(pipe: Pipeline) -> None:
    asked = [
        asked_of(pipe, seed=1, upscale=2.0, steps=5),
        asked_of(pipe, seed=2, upscale=1.5, upscale_by="latents", upscale_strength=0.8, steps=4),
        asked_of(
            pipe, "a blue dog", seed=3, height=64, width=64, steps=7
        ),  # of the size of the first one's second pass
        asked_of(pipe, seed=4, upscale=2.0, steps=5, sampler="euler_a", upscale_guidance_scale=2.0),
    ]
    check(pipe, asked)


def test_a_refiner_goes_on_with_each(tiny_xl_checkpoint: Path, tiny_refiner_checkpoint: Path) -> None:
    pipe = Pipeline.from_pretrained(tiny_xl_checkpoint, device="cpu", dtype="fp32", refiner=tiny_refiner_checkpoint)
    asked = [
        asked_of(pipe, "a red cat", seed=1, steps=6),
        asked_of(pipe, "a blue dog", seed=2, steps=8, refiner_start=0.5),
        asked_of(pipe, "a ship", seed=3, steps=4, refiner_start=1.0),
        asked_of(pipe, "a ship", seed=4, steps=6, upscale=2.0),
    ]
    check(pipe, asked)


def test_steps_are_counted_over_all_stages(pipe: Pipeline) -> None:
    asked = asked_of(pipe, upscale=2.0, steps=5)
    states = [(state.step, state.steps) for state in pipe.stream([asked])]
    run, seen = pipe.begin(asked), []
    while run is not None:
        together = Together()
        while not run.done:
            together([run])
            seen.append((run.step, run.steps))
        run = None if run.then is None else run.then(run.latents)
    assert seen == states and seen[-1] == (7, 7)


def test_what_cannot_be_drawn_is_refused_when_it_begins(pipe: Pipeline) -> None:
    with pytest.raises(ValueError, match="AND joins prompts by guidance"):
        pipe.begin(asked_of(pipe, "a cat AND a dog", guidance_scale=1.0))
    image = Image.new("RGB", (32, 32))
    with pytest.raises(ValueError, match="not one whole step"):
        pipe.begin(asked_of(pipe, image=image, strength=0.1))

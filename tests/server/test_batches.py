"""What a worker does about accidents: others' images go on."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from genpipe.checkpoints import save_checkpoint
from genpipe.models.denoiser import Inputs, evaluate
from genpipe.pipeline import Pipeline
from genpipe.server.batches import Batches
from genpipe.server.jobs import Drawn, Failed, Job, News, Stepped
from genpipe.server.paths import without_paths
from genpipe.server.sizes import Sizes
from tests.conftest import tiny_parts
from tests.pipeline.drawing import difference
from tests.server.conftest import picture


@pytest.fixture
def fresh(tiny_checkpoint: Path) -> Pipeline:
    """A pipeline to break."""
    return Pipeline.from_pretrained(tiny_checkpoint, device="cpu", dtype="fp32")


def batches_of(pipe: Pipeline) -> Batches:
    return Batches({"tiny": pipe}, Sizes({"tiny": pipe}, most=8))


def finished(batches: Batches) -> tuple[dict[str, Drawn | Failed], list[int]]:
    """What became of all jobs, and how many images each evaluation had."""
    news: list[News] = []
    evaluated = []
    while len(batches):
        told, images = batches.tick()
        news += told
        evaluated.append(images)
    return {one.id: one for one in news if not isinstance(one, Stepped)}, [count for count in evaluated if count]


def check(pipe: Pipeline, jobs: list[Job], ends: dict[str, Drawn | Failed]) -> None:
    for job in jobs:
        end = ends[job.id]
        assert isinstance(end, Drawn), end
        assert difference(Image.open(io.BytesIO(end.data)), picture(pipe, job.request)) <= 2


def test_they_are_evaluated_together_and_leave_when_done(pipe: Pipeline, job: Callable[..., Job]) -> None:
    batches = batches_of(pipe)
    jobs = [job("a", seed=1, steps=2), job("b", seed=2, steps=4), job("c", seed=3, steps=4)]
    assert [batches.add(one) for one in jobs] == [[], [], []]
    ends, evaluated = finished(batches)
    check(pipe, jobs, ends)
    assert evaluated == [3, 3, 2, 2]


def test_forms_that_differ_take_turns(pipe: Pipeline, job: Callable[..., Job]) -> None:
    batches = batches_of(pipe)
    for name, height in (("a", 32), ("b", 32), ("c", 64)):
        batches.add(job(name, steps=3, height=height))
    _, evaluated = finished(batches)
    assert evaluated == [2, 1, 2, 1, 2, 1]


def test_fewer_go_together_where_memory_is_short(fresh: Pipeline, pipe: Pipeline, job: Callable[..., Job]) -> None:
    def short(unet: Any, inputs: Inputs) -> Any:
        if len(inputs.latents) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return evaluate(unet, inputs)

    fresh.networks.evaluate = short
    batches = batches_of(fresh)
    jobs = [job(f"{k}", seed=k, steps=2) for k in range(5)]
    for one in jobs:
        batches.add(one)
    ends, evaluated = finished(batches)
    check(pipe, jobs, ends)
    assert max(evaluated[1:]) == 2


def test_an_accident_of_one_is_not_the_others(fresh: Pipeline, pipe: Pipeline, job: Callable[..., Job]) -> None:
    jobs = [job("a", seed=1), job("b", seed=2, guidance_rescale=0.5), job("c", seed=3)]

    def broken(unet: Any, inputs: Inputs) -> Any:
        output, deep = evaluate(unet, inputs)
        if len(inputs.latents) == 3 or float(inputs.latents[0, 0, 0, 0]) == bad:
            raise RuntimeError("no such kernel")
        return output, deep

    run = pipe.begin(jobs[1].request)
    assert run is not None
    bad = float(run.latents[0, 0, 0, 0])
    fresh.networks.evaluate = broken
    batches = batches_of(fresh)
    for one in jobs:
        batches.add(one)
    ends, _ = finished(batches)
    check(pipe, [jobs[0], jobs[2]], ends)
    assert ends["b"] == Failed("b", "RuntimeError: no such kernel")


def test_numbers_that_are_not_finite_are_repaired(fresh: Pipeline, pipe: Pipeline, job: Callable[..., Job]) -> None:
    calls = 0

    def overflowing(unet: Any, inputs: Inputs) -> Any:
        nonlocal calls
        calls += 1
        output, deep = evaluate(unet, inputs)
        return (output * float("inf") if calls == 2 else output), deep

    fresh.networks.evaluate = overflowing
    batches = batches_of(fresh)
    one = job("a")
    batches.add(one)
    ends, evaluated = finished(batches)
    check(pipe, [one], ends)
    assert len(evaluated) == 6  # three steps, and again


def test_a_cancelled_image_is_not_evaluated(pipe: Pipeline, job: Callable[..., Job]) -> None:
    batches = batches_of(pipe)
    for name in "ab":
        batches.add(job(name, steps=3))
    batches.tick()
    batches.cancel("a")
    ends, evaluated = finished(batches)
    assert ends.keys() == {"b"} and evaluated == [1, 1]


def test_second_passes_join_images_of_their_size(pipe: Pipeline, job: Callable[..., Job]) -> None:
    batches = batches_of(pipe)
    jobs = [job("a", seed=1, upscale=2.0, steps=5), job("b", seed=2, height=64, width=64, steps=8)]
    for one in jobs:
        batches.add(one)
    ends, evaluated = finished(batches)
    check(pipe, jobs, ends)
    assert evaluated.count(2) == 2  # those of the second pass


def test_sizes_that_have_the_same_latents_are_drawn_together_and_decoded_apart(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, **tiny_parts(), defaults={"half_size": True})
    halving = Pipeline.from_pretrained(tmp_path, device="cpu", dtype="fp32")
    batches = batches_of(halving)
    jobs = [
        Job(f"{side}", halving.requests("a red cat", seed=side, steps=3, height=side, width=side)[0], "tiny")
        for side in (16, 32)
    ]
    for one in jobs:
        batches.add(one)
    ends, evaluated = finished(batches)
    check(halving, jobs, ends)
    assert evaluated == [2, 2, 2]


def test_speeds_that_leave_evaluations_out_join(pipe: Pipeline, job: Callable[..., Job]) -> None:
    batches = batches_of(pipe)
    jobs = [job(f"{k}", seed=k, steps=8, speed="draft") for k in range(3)] + [job("exact", seed=9, steps=8)]
    for one in jobs:
        batches.add(one)
    ends, evaluated = finished(batches)
    check(pipe, jobs, ends)
    assert evaluated.count(3) >= 5 and max(evaluated) == 4  # what is evaluated in full is so with the exact one


def test_what_fails_between_its_stages_fails_alone(
    fresh: Pipeline, pipe: Pipeline, job: Callable[..., Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    batches = batches_of(fresh)
    jobs = [job("bad", seed=1, upscale=2.0, steps=3), job("good", seed=2, steps=6)]
    for one in jobs:
        batches.add(one)

    def broken(*arguments: Any, **options: Any) -> Any:
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(fresh.vae, "encode", broken)
    ends, _ = finished(batches)
    check(pipe, jobs[1:], ends)
    assert ends["bad"] == Failed("bad", "RuntimeError: no such kernel")


def test_files_do_not_say_where_the_servers_files_lie() -> None:
    made = (
        '{"model": "tiny", "vae": "/srv/vae.safetensors", "loras": [{"path": "/srv/loras/ink.safetensors"}], "seed": 1}'
    )
    assert "/srv" not in str(without_paths({"genpipe": made})) and without_paths({}) == {}

"""What a worker makes of a batch: the pictures that the pipeline draws, and what happens when something fails."""

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from genpipe import Pipeline, Request
from genpipe.checkpoints.fingerprint import checkpoint_files
from genpipe.fit import Traits
from genpipe.images import save_image
from genpipe.judge import Score
from genpipe.metadata import read_metadata, read_request
from genpipe.models.finite import NonFiniteError
from genpipe.spec import ModelSpec
from genpipe.workers.kept_sizes import KeptSizes
from genpipe.workers.messages import Job, Task, Work, thumbnail_path
from genpipe.workers.renderer import Renderer
from genpipe.workers.turns import Turns

PROMPTS = ["a red cat", "a blue dog", "a pirate ship", "a red cat", "", "a ship"]


@pytest.fixture
def job(tiny_checkpoint: Path, tmp_path: Path) -> Job:
    return Job(out=str(tmp_path), spec=ModelSpec(model=str(tiny_checkpoint), dtype="fp32"))


def task(number: int, prompt: str = "a red cat", **changes) -> Task:
    settings = {"steps": 2, "guidance_scale": 4.0, "height": 32, "width": 32, **changes}
    request = Request(prompt, seed=settings.pop("seed", number), **settings)
    return Task(number, f"{number:032x}", f"images/{number}.png", request.to_dict())


def draw(renderer: Renderer, tasks: list[Task], **options):
    return renderer.finish(renderer.begin(renderer.prepare(tasks), **options))


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB")).astype(int)


@pytest.mark.parametrize("deterministic", [False, True])
def test_a_batch_of_different_prompts_is_what_the_pipeline_draws_one_by_one(job, tmp_path, deterministic):
    renderer = Renderer(replace(job, deterministic=deterministic), "cpu")
    tasks = [task(number, prompt, guidance_scale=3.0 + number) for number, prompt in enumerate(PROMPTS)]
    result = draw(renderer, tasks)
    assert sorted(number for number, *_ in result.drawn) == list(range(len(PROMPTS))) and not result.failed
    pipe = Pipeline.from_pretrained(replace(job.spec, device="cpu"))
    for number, one in enumerate(tasks):
        request = {key: value for key, value in one.request.items()}
        alone = pipe(request.pop("prompt"), **request, progress=False, deterministic=True)
        difference = np.abs(np.asarray(alone).astype(int) - pixels(tmp_path / one.path)).max()
        assert difference <= (0 if deterministic else 1), number


def test_the_pipeline_refuses_to_mix_guided_and_unguided_pictures(job):
    pipe = Pipeline.from_pretrained(replace(job.spec, device="cpu"))
    requests = [
        Request.from_dict(task(number, guidance_scale=scale).request) for number, scale in enumerate((1.0, 4.0))
    ]
    with pytest.raises(ValueError, match=r"guided.*1\.0, 4\.0"):
        next(pipe.stream(requests))


def test_a_file_says_what_made_it_and_has_the_size_and_hash_that_are_told(job, tmp_path):
    one = task(7, "a pirate ship")
    ((number, size, digest, detail),) = draw(Renderer(job, "cpu"), [one]).drawn
    data = (tmp_path / one.path).read_bytes()
    assert (number, size, digest, detail) == (7, len(data), hashlib.sha256(data).hexdigest(), None)
    assert read_request(tmp_path / one.path) == Request.from_dict(one.request)


def test_each_distinct_prompt_is_encoded_once(job, monkeypatch):
    renderer = Renderer(job, "cpu")
    encoded: list[int] = []
    encoder = renderer.pipeline.text_encoders[0]
    forward = encoder.forward
    monkeypatch.setattr(encoder, "forward", lambda ids, **k: encoded.append(len(ids)) or forward(ids, **k))
    draw(renderer, [task(number, prompt) for number, prompt in enumerate(PROMPTS)])
    draw(renderer, [task(number, prompt, seed=99) for number, prompt in enumerate(PROMPTS)])
    assert sum(encoded) == len(set(PROMPTS))  # the empty one is every picture's negative prompt, too


def test_one_picture_that_is_not_finite_fails_alone(job, monkeypatch, tmp_path):
    renderer = Renderer(job, "cpu")
    stream = renderer.pipeline.stream

    def poisoned(requests):
        if any(request.seed == 2 for request in requests):
            raise NonFiniteError("it is not finite")
        return stream(requests)

    monkeypatch.setattr(renderer.pipeline, "stream", poisoned)
    result = draw(renderer, [task(number) for number in range(5)])
    assert result.failed == [(2, "it is not finite")]
    assert sorted(number for number, *_ in result.drawn) == [0, 1, 3, 4]
    assert not (tmp_path / "images/2.png").exists()


def test_out_of_memory_halves_the_batch_and_loses_nothing(job, monkeypatch):
    renderer = Renderer(job, "cpu")
    stream, sizes = renderer.pipeline.stream, []

    def small(requests):
        sizes.append(len(requests))
        if len(requests) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return stream(requests)

    monkeypatch.setattr(renderer.pipeline, "stream", small)
    result = draw(renderer, [task(number) for number in range(8)], shape="s")
    assert (len(result.drawn), result.failed, result.size) == (8, [], 2)
    assert sizes == [8, 4, 2, 2, 2, 2]
    draw(renderer, [task(number) for number in range(8)], shape="s")
    assert sizes[6:] == [2, 2, 2, 2]


def test_out_of_memory_with_one_picture_is_its_failure(job, monkeypatch):
    renderer = Renderer(job, "cpu")

    def never(latents, requests):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")

    monkeypatch.setattr(renderer.pipeline, "decode", never)
    result = draw(renderer, [task(1), task(2)])
    assert [number for number, _ in result.failed] == [1, 2]
    assert "out of memory" in result.failed[0][1]


def test_out_of_memory_for_a_moment_fails_no_picture(job, monkeypatch):
    renderer = Renderer(job, "cpu")
    stream, calls = renderer.pipeline.stream, []

    def once(requests):
        calls.append(len(requests))
        if len(calls) == 1:
            raise MemoryError
        return stream(requests)

    monkeypatch.setattr(renderer.pipeline, "stream", once)
    assert len(draw(renderer, [task(1)]).drawn) == 1 and calls == [1, 1]


def test_a_fault_of_the_device_is_not_taken_for_one_of_the_picture(job, monkeypatch):
    renderer = Renderer(job, "cpu")

    def broken(requests):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(renderer.pipeline, "stream", broken)
    with pytest.raises(RuntimeError, match="CUDA error"):
        draw(renderer, [task(1), task(2)])


def test_large_pictures_get_a_thumbnail_and_small_ones_none(job, tmp_path):
    renderer = Renderer(job, "cpu")
    small, large = task(1), task(2, width=288, height=32, steps=1)
    draw(renderer, [small])
    draw(renderer, [large])
    assert not (tmp_path / thumbnail_path(small.id)).exists()
    with Image.open(tmp_path / thumbnail_path(large.id)) as image:
        assert image.format == "JPEG" and image.size == (256, 28)


@pytest.mark.parametrize(("suffix", "format"), [(".jpg", "JPEG"), (".webp", "WEBP")])
def test_other_formats(job, tmp_path, suffix, format):
    one = task(1)
    draw(Renderer(job, "cpu"), [Task(1, one.id, f"images/a{suffix}", one.request)])
    with Image.open(tmp_path / f"images/a{suffix}") as image:
        assert image.format == format


def brightness(image: Image.Image, prompt: str) -> Score:
    """A judge: the brighter the better."""
    return Score(prompt, float(np.asarray(image).mean()) / 255)


def test_the_best_of_several_is_kept(job, tmp_path):
    judged = replace(job, best_of=3, judged=True, judge=f"{__name__}:brightness")
    one = task(5, "a ship")
    ((_, _, _, detail),) = draw(Renderer(judged, "cpu"), [one]).drawn
    pipe = Pipeline.from_pretrained(replace(job.spec, device="cpu"))
    request: Any = dict(one.request)
    images: Any = {seed: pipe(**request | {"seed": seed}, progress=False) for seed in (5, 6, 7)}
    totals = {seed: brightness(image, "").total for seed, image in images.items()}
    best = max(totals, key=lambda seed: totals[seed])
    assert detail is not None and detail["seed"] == best and detail["total"] == pytest.approx(totals[best], abs=0.01)
    assert detail["score"]["prompt"] == "a ship"
    assert read_request(tmp_path / one.path).seed == best
    json.dumps(detail)


REASON = "the judge failed: KeyError: 'a ship'"


def broken(image: Image.Image, prompt: str):
    raise KeyError(prompt)


def test_a_judge_that_fails_costs_the_score_and_not_the_image(job, tmp_path):
    judged = replace(job, judged=True, judge=f"{__name__}:broken")
    result = draw(Renderer(judged, "cpu"), [task(1, "a ship")])
    ((_, _, _, detail),) = result.drawn
    assert detail == {"seed": 1, "total": None, "score": {"prompt": "a ship", "total": None, "reason": REASON}}
    assert not result.failed and read_metadata(tmp_path / task(1).path)["best_of"][0]["reason"] == REASON


def test_a_judge_that_is_not_there_is_refused(job):
    with pytest.raises(ValueError, match="judge 'nowhere:score' cannot be imported"):
        Renderer(replace(job, judged=True, judge="nowhere:score"), "cpu")


def test_the_best_size_is_found_after_a_batch_was_drawn(job, monkeypatch, tmp_path):
    renderer = Renderer(job, "cpu", kept=KeptSizes(tmp_path / "sizes.json"))
    stream, sizes = renderer.pipeline.stream, []

    def small(requests):
        sizes.append(len(requests))
        if len(requests) > 2:
            raise MemoryError
        return stream(requests)

    monkeypatch.setattr(renderer.pipeline, "stream", small)
    result = draw(renderer, [task(number) for number in range(4)], shape="s", waiting=10**7)
    assert len(result.drawn) == 4 and result.size in (1, 2) and sizes[:3] == [4, 2, 2] and {1, 2, 4} <= set(sizes[3:])
    assert result.said is not None and "32x32" in result.said and "there is no memory for more" in result.said
    draw(renderer, [task(number) for number in range(4)], shape="s")
    assert sizes[-4 // result.size :] == [result.size] * (4 // result.size)
    sizes.clear()
    again = Renderer(job, "cpu", kept=KeptSizes(tmp_path / "sizes.json"))
    monkeypatch.setattr(again.pipeline, "stream", small)
    result = draw(again, [task(4)], shape="s", waiting=10**7)
    assert len(sizes) == 1 and result.said is not None and "found by an earlier run" in result.said


def test_what_cannot_be_drawn_has_no_best_size(job, monkeypatch):
    renderer = Renderer(job, "cpu")

    def broken(requests):
        raise NonFiniteError("it is not finite")

    monkeypatch.setattr(renderer.pipeline, "stream", broken)
    result = draw(renderer, [task(1), task(2)], shape="s", waiting=10**7)
    assert (result.size, result.said) == (None, None) and len(result.failed) == 2


def test_a_full_disk_is_an_error_of_the_run_and_leaves_no_part(job, monkeypatch, tmp_path):
    renderer = Renderer(job, "cpu")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("genpipe.workers.storage.os.fsync", full)
    with pytest.raises(OSError, match=r"No space left.*images/1.png"):
        draw(renderer, [task(1)])
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_checkpoint_is_its_weights_configs_and_vocabulary(tiny_checkpoint):
    names = {name for name, _ in checkpoint_files(str(tiny_checkpoint), None)}
    present = {path.relative_to(tiny_checkpoint).as_posix() for path in tiny_checkpoint.rglob("*") if path.is_file()}
    assert {"model_index.json", "unet/config.json", "unet/diffusion_pytorch_model.safetensors"} <= names <= present


def test_the_model_says_what_planning_needs(job):
    model = Renderer(job, "cpu").model()
    assert (model.dtype, model.traits) == ("float32", Traits(factor=4, tile_factor=8, layers=3))
    assert (model.defaults[""]["steps"], model.defaults["lcm"]["steps"]) == (30, 4)
    assert len(model.fingerprint) == 64


def test_bytes_are_those_of_the_pipelines_own_files(job, tmp_path):
    one = task(3, "a ship")
    draw(Renderer(replace(job, deterministic=True), "cpu"), [one])
    pipe = Pipeline.from_pretrained(replace(job.spec, device="cpu"))
    save_image(pipe(**dict(one.request), progress=False, deterministic=True), tmp_path / "alone.png")
    assert (tmp_path / one.path).read_bytes() == (tmp_path / "alone.png").read_bytes()


def test_a_renderer_that_prepares_and_decodes_beside_its_networks_draws_the_same(job, tmp_path):
    tasks = [task(number, prompt, guidance_scale=3.0 + number) for number, prompt in enumerate(PROMPTS)]
    draw(Renderer(job, "cpu"), tasks)
    plain = [(tmp_path / one.path).read_bytes() for one in tasks]
    renderer = Renderer(replace(job, out=str(tmp_path / "beside")), "cpu", beside=True)
    (tmp_path / "beside").mkdir()
    works = iter([Work(number, tasks[2 * number : 2 * number + 2]) for number in range(3)])
    turns = Turns(renderer)
    with ThreadPoolExecutor(renderer.model().depth) as threads:
        results = [one.result()[1] for one in [threads.submit(turns.draw, lambda: next(works)) for _ in range(3)]]
    assert all(
        result is not None and {"text", "denoise", "decode", "busy"} <= result.seconds.keys() for result in results
    )
    for one, before in zip(tasks, plain, strict=True):
        (tmp_path / one.path).write_bytes(before)
        assert np.abs(pixels(tmp_path / one.path) - pixels(tmp_path / "beside" / one.path)).max() <= 1


def test_prompts_are_encoded_before_it_is_their_batchs_turn(job):
    renderer = Renderer(job, "cpu", beside=True)
    draw(renderer, [task(1, "a red cat")])
    encoder, encoded = renderer.pipeline.text_encoders[0], []
    forward = encoder.forward
    encoder.forward = lambda ids, **more: encoded.append(len(ids)) or forward(ids, **more)
    prepared = renderer.prepare([task(2, "a blue dog"), task(3, "a ship")])
    assert sum(encoded) == 2
    renderer.finish(renderer.begin(prepared))
    assert sum(encoded) == 2


@pytest.mark.parametrize(
    ("beside", "deterministic", "said"), [(True, False, True), (True, True, False), (False, False, False)]
)
def test_the_last_step_is_told_where_the_device_works_by_itself(job, beside, deterministic, said):
    renderer = Renderer(replace(job, deterministic=deterministic), "cpu", beside=beside)
    told: list[bool] = []
    renderer.finish(renderer.begin(renderer.prepare([task(1), task(2)]), launched=lambda: told.append(True)))
    assert told == [True] * said


def test_out_of_memory_while_prompts_are_encoded_ahead_costs_nothing(job, monkeypatch):
    renderer = Renderer(job, "cpu", beside=True)
    draw(renderer, [task(1)])

    def short(requests):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(renderer.pipeline, "encode", short)
    assert len(draw(renderer, [task(2, "a ship")]).drawn) == 1


def test_out_of_memory_while_decoding_decodes_fewer_at_a_time(job, monkeypatch):
    renderer = Renderer(job, "cpu", beside=True)
    decode, sizes = renderer.pipeline.decode, []

    def small(latents, requests):
        sizes.append(len(requests))
        if len(requests) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return decode(latents, requests)

    monkeypatch.setattr(renderer.pipeline, "decode", small)
    result = draw(renderer, [task(number) for number in range(6)], shape="s")
    assert (len(result.drawn), result.failed, result.size, sizes) == (6, [], None, [6, 3, 1, 1, 1, 1, 1, 1])
    sizes.clear()
    draw(renderer, [task(6), task(7)], shape="s")
    assert sizes == [1, 1]

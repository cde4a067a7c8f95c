"""Jobs are drawn together, fairly and once, and each is the image of its seed."""

import io
import json
import os
import signal
import time
from collections.abc import Callable
from typing import Any

import pytest
from PIL import Image

from genpipe.pipeline import Pipeline
from genpipe.server.engine import ATTEMPTS, Closing, Engine
from genpipe.server.jobs import Drawn, Failed, Job
from genpipe.server.processes import SpawnedProcess, spawn
from genpipe.server.queue import QueueFull
from genpipe.spec import ModelSpec
from tests.pipeline.drawing import difference
from tests.server.conftest import Heard, Thread, picture, threads

MakeJob = Callable[..., Job]


def opened(news: Any) -> Image.Image:
    assert isinstance(news, Drawn), news
    image = Image.open(io.BytesIO(news.data))
    image.load()
    return image


def test_each_image_is_that_of_its_seed(engine: Engine, job: MakeJob, pipe: Pipeline) -> None:
    asked = [
        job(f"{k}", seed=k, steps=2 + k % 4, client="ab"[k % 2], sampler=("ddim", "euler_a", "heun")[k % 3])
        for k in range(12)
    ]
    asked += [job("guided less", seed=20, guidance_scale=1.0), job("tall", seed=21, height=64)]
    asked += [job("draft", seed=22, speed="draft", steps=6), job("a [cat|dog]", "a [cat|dog]", seed=23)]
    heard = Heard()
    engine.submit(asked, heard)
    for one, news in zip(asked, heard.wait(*(one.id for one in asked)), strict=True):
        assert difference(opened(news), picture(pipe, one.request)) <= 2, one.id
        assert [each.step for each in heard.steps[one.id]] == list(range(1, one.request.steps + 1))
        assert json.loads(opened(news).info["genpipe"])["seed"] == one.request.seed
    assert engine.idle


def test_previews_are_made_where_they_are_wanted(engine: Engine, job: MakeJob) -> None:
    heard = Heard()
    engine.submit([job("with", previews=True), job("without")], heard)
    heard.wait("with", "without")
    previews = [step.preview for step in heard.steps["with"]]
    assert [Image.open(io.BytesIO(each or b"")).size for each in previews] == [(8, 8)] * 3
    assert [step.preview for step in heard.steps["without"]] == [None] * 3


def test_files_are_of_the_format_that_was_asked_for(engine: Engine, job: MakeJob) -> None:
    heard = Heard()
    engine.submit([job("a", suffix=".webp"), job("b", suffix=".jpg")], heard)
    assert [opened(news).format for news in heard.wait("a", "b")] == ["WEBP", "JPEG"]


def test_a_cancelled_job_ends_within_a_step(engine: Engine, job: MakeJob) -> None:
    heard = Heard()
    engine.submit([job("long", steps=900), job("waits", client="b", steps=900)], heard)
    heard.until(lambda: "long" in heard.steps)
    assert engine.cancel("long") and engine.cancel("waits") and not engine.cancel("long") and not engine.cancel("x")
    assert heard.wait("long", "waits") == [Failed(name, "it was cancelled", "cancelled") for name in ("long", "waits")]
    engine.submit([job("next", steps=1)], heard)
    heard.wait("next", seconds=20)


def test_a_job_ends_at_its_deadline(engine: Engine, job: MakeJob) -> None:
    heard = Heard()
    engine.submit([job("late", steps=900, deadline=time.monotonic() + 0.2), job("done", steps=1)], heard)
    late, done = heard.wait("late", "done", seconds=20)
    assert isinstance(late, Failed) and late.kind == "late" and isinstance(done, Drawn)


def test_what_cannot_be_drawn_fails_alone_and_says_why(engine: Engine, job: MakeJob) -> None:
    heard = Heard()
    engine.submit([job("bad", "a cat AND a dog", guidance_scale=1.0), job("good")], heard)
    bad, good = heard.wait("bad", "good")
    assert isinstance(bad, Failed) and bad.kind == "refused" and "AND joins prompts by guidance" in bad.reason
    assert isinstance(good, Drawn)


def test_warnings_go_to_whoever_asked(engine: Engine, job: MakeJob) -> None:
    heard = Heard()
    engine.submit([job("cut", "cat dog " * 20, prompt_syntax="plain"), job("whole")], heard)
    cut, whole = heard.wait("cut", "whole")
    assert isinstance(cut, Drawn) and isinstance(whole, Drawn)
    assert (
        len(cut.warnings) == 1 and "the prompt is cut after 14 tokens" in str(cut.warnings[0]) and whole.warnings == ()
    )


def test_a_late_client_is_not_behind_anothers_hundred(
    pipe: Pipeline, specs: dict[str, ModelSpec], job: MakeJob
) -> None:
    engine = Engine(specs, devices="cpu", most=2, launch=threads({"tiny": pipe}))
    engine.open()
    assert engine.wait(30)
    heard = Heard()
    late = job("b", client="b", steps=2)
    engine.submit([job(f"a{k}", client="a", steps=20) for k in range(40)], heard)
    before = len(heard.order)
    engine.submit([late], heard)
    heard.wait("b")
    assert heard.order.index("b") - before <= 8
    assert not engine.close()  # most were not drawn
    assert sum(isinstance(each, Failed) for each in heard.ends.values()) >= 20


def test_there_is_room_for_so_many_and_no_more(pipe: Pipeline, specs: dict[str, ModelSpec], job: MakeJob) -> None:
    engine = Engine(specs, devices="cpu", most=1, waiting=2, launch=threads({"tiny": pipe}))
    heard = Heard()
    engine.submit([job("a"), job("b")], heard)
    with pytest.raises(QueueFull):
        engine.submit([job("c")], heard)
    assert engine.retry_after() == 5  # nothing is known yet
    engine.open()
    heard.wait("a", "b")
    assert engine.close(drain=10)
    with pytest.raises(Closing, match="shutting down"):
        engine.submit([job("d")], heard)
    assert b"genpipe_refused_full_total 1.0" in engine.metrics.text()


def test_accepted_work_is_finished_before_the_end(engine: Engine, job: MakeJob) -> None:
    heard = Heard()
    engine.submit([job(f"{k}", steps=5, client=str(k % 3)) for k in range(20)], heard)
    assert engine.close(drain=60)
    assert len(heard.ends) == 20 and all(isinstance(each, Drawn) for each in heard.ends.values())


def test_a_dead_workers_jobs_are_drawn_again(pipe: Pipeline, specs: dict[str, ModelSpec], job: MakeJob) -> None:
    started: list[Thread] = []
    engine = Engine(specs, devices="cpu", launch=threads({"tiny": pipe}, started))
    engine.open()
    asked = [job(f"{k}", seed=k, steps=40) for k in range(4)]
    heard = Heard()
    engine.submit(asked, heard)
    heard.until(lambda: len(heard.steps) == 4)
    started[0].connection.close()  # the worker's end sees it as the end of the server; the engine as a death
    for one, news in zip(asked, heard.wait("0", "1", "2", "3"), strict=True):
        assert difference(opened(news), picture(pipe, one.request)) <= 2
    assert len(started) == 2 and b"genpipe_worker_deaths_total 1.0" in engine.metrics.text()
    engine.close()


def test_a_job_that_kills_its_workers_is_given_up_and_those_beside_it_are_not(
    pipe: Pipeline, specs: dict[str, ModelSpec], job: MakeJob
) -> None:
    class Deadly:
        """A pipeline whose worker dies when one request is begun."""

        def __getattr__(self, name: str) -> Any:
            return getattr(pipe, name)

        def begin(self, request: Any) -> Any:
            if request.seed == 666:
                raise RuntimeError("CUDA error: an illegal memory access was encountered")
            return pipe.begin(request)

    started: list[Thread] = []
    engine = Engine(specs, devices="cpu", launch=threads({"tiny": Deadly()}, started))  # type: ignore[dict-item]
    engine.open()
    heard = Heard()
    engine.submit([job("good", seed=1, steps=500), job("poison", seed=666), job("other", seed=2, steps=5)], heard)
    good, poison, other = heard.wait("good", "poison", "other")
    assert isinstance(good, Drawn) and isinstance(other, Drawn)
    assert isinstance(poison, Failed) and f"its worker died {ATTEMPTS} times" in poison.reason
    assert len(started) == 1 + ATTEMPTS
    engine.close()


def test_models_that_cannot_be_loaded_are_refused_in_one_line(tmp_path: Any) -> None:
    engine = Engine({"x": ModelSpec(str(tmp_path / "missing"), device="cpu")}, devices="cpu")
    engine.open()
    with pytest.raises(ValueError, match="does not exist"):
        engine.wait(60)
    with pytest.raises(Closing):
        engine.submit([], Heard())
    engine.close()


def test_a_killed_process_is_started_again_and_its_images_are_the_same(
    specs: dict[str, ModelSpec], pipe: Pipeline, job: MakeJob
) -> None:
    """The worker as it is in earnest: a process of its own, killed in the middle."""
    started: list[SpawnedProcess] = []

    def launch() -> SpawnedProcess:
        started.append(spawn())
        return started[-1]

    engine = Engine(specs, devices="cpu", deterministic=False, launch=launch)
    engine.open()
    assert engine.wait(120) and engine.models["tiny"].traits.factor == pipe.vae.config.factor
    heard = Heard()
    asked = [job(f"{k}", seed=k, steps=120) for k in range(3)]
    engine.submit(asked, heard)
    heard.until(lambda: len(heard.steps) == 3)
    assert started[0].pid is not None
    os.kill(started[0].pid, signal.SIGKILL)
    for one, news in zip(asked, heard.wait("0", "1", "2", seconds=120), strict=True):
        assert difference(opened(news), picture(pipe, one.request)) <= 2
    assert len(started) == 2
    engine.close()
    assert not started[1].process.is_alive()


def test_when_there_is_room_again_is_told_by_how_fast_images_are_drawn(
    pipe: Pipeline, specs: dict[str, ModelSpec], job: MakeJob
) -> None:
    times = iter(range(0, 1_000_000, 2))  # each look at the clock is two seconds after the last
    engine = Engine(specs, devices="cpu", most=1, clock=lambda: float(next(times)), launch=threads({"tiny": pipe}))
    engine.open()
    heard = Heard()
    engine.submit([job(f"{k}", steps=1) for k in range(5)], heard)
    heard.wait(*"01234")
    seconds = engine.retry_after()
    assert seconds >= 4 and engine.retry_after(3) > 2 * seconds and engine.retry_after(10_000) == 600
    engine.close()

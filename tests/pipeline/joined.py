"""Images that are drawn together, each at a step of its own, beside those that the pipeline draws of each alone."""

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image

from genpipe.pipeline import Pipeline
from genpipe.pipeline.run import Run, Together
from genpipe.request import Request
from tests.pipeline.drawing import difference


def asked_of(pipe: Pipeline, prompt: str = "a red cat", **settings: Any) -> Request:
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
        runs = [run.then(run.latents) if run.done and run.then is not None else run for run in runs]
    return [pipe.decode(run.latents, [asked])[0] for run, asked in zip(runs, requests, strict=True)]


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

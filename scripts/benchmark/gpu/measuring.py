"""What the sections share: requests, whole images, times."""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from genpipe.pipeline import Pipeline
from genpipe.request import Request
from scripts.benchmark.gpu.sections import Plan, Say
from scripts.make.checkpoint import PROMPT

SAMPLER = "ddim"
DECODED = 8  # images decoded together


def load(plan: Plan, say: Say, name: str, cache: str) -> Pipeline:
    """A checkpoint's pipeline, with what loading and its first image take."""
    started = time.perf_counter()
    pipe = Pipeline.from_pretrained(plan.checkpoint(name), device=plan.device)
    synchronize(plan.device)
    say("load_s", time.perf_counter() - started)
    for key in (f"first_image_s/{cache}", "image_s"):
        started = time.perf_counter()
        draw(pipe, requests_for(pipe, 1, plan.steps))
        say(key, time.perf_counter() - started)
    return pipe


def prompts(count: int) -> list[str]:
    """So many different prompts."""
    return [f"{PROMPT} {k}" for k in range(count)]


def requests_for(pipe: Pipeline, count: int, steps: int) -> list[Request]:
    """So many requests, which agree in what a batch must."""
    return pipe.requests(prompts(count), seeds=list(range(count)), steps=steps, sampler=SAMPLER)


def draw(pipe: Pipeline, requests: Sequence[Request]) -> list[Any]:
    """The images of one batch."""
    latents = torch.empty(0)
    for state in pipe.stream(requests):
        latents = state.latents
    images = []
    for start in range(0, len(requests), DECODED):
        part = slice(start, start + DECODED)
        images += pipe.decode(latents[part], requests[part])
    return images


def seconds_per_call(call: Callable[[], Any], plan: Plan) -> float:
    """The median over blocks of calls, after warming up."""

    def block(count: int) -> float:
        synchronize(plan.device)
        started = time.perf_counter()
        for _ in range(count):
            call()
        synchronize(plan.device)
        return (time.perf_counter() - started) / count

    block(1 if plan.toy else 5)
    count = max(1, min(200, round(0.1 / block(1))))
    return block(1) if plan.toy else statistics.median(block(count) for _ in range(5))


def synchronize(device: str) -> None:
    """Wait for what the device was given to do; a CPU has done it already."""
    if device == "cuda":
        torch.cuda.synchronize()


def pixels(images: Sequence[Any]) -> np.ndarray:
    """Images as numbers (N, H, W, 3), 0 … 255."""
    return np.stack([np.asarray(image, dtype=np.float64) for image in images])


def psnr(result: np.ndarray, reference: np.ndarray) -> float:
    """In decibels, of images of 0 … 255."""
    return float(20 * np.log10(255) - 10 * np.log10(max(np.square(result - reference).mean(), 1e-20)))

"""Beside others: how exact the images are, what diffusers takes on a GPU, whether both draw the same in fp32."""

import importlib
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from genpipe.pipeline import Pipeline
from genpipe.request import Request
from genpipe.sampling.noise import ImageNoise
from scripts.benchmark.gpu.measuring import (
    DECODED,
    draw,
    load,
    pixels,
    prompts,
    psnr,
    requests_for,
    seconds_per_call,
)
from scripts.benchmark.gpu.sections import Plan, Say
from scripts.make.checkpoint import FAMILIES, narrow

GUIDANCE = 7.5


def found(module: str, name: str) -> Any:
    """What a module holds by a name; None where it, or a package that it needs, is not installed."""
    try:
        return getattr(importlib.import_module(module), name)
    except ImportError:
        return None


# Now, since it takes seconds in which the section before is still measured.
PIPELINE = found("diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion", "StableDiffusionPipeline")
SCHEDULER = found("diffusers.schedulers.scheduling_ddim", "DDIMScheduler")
CHECK = found("scripts.evaluate.parity", "check")
if PIPELINE is not None:
    found("diffusers.utils.logging", "disable_progress_bar")()


def quality(plan: Plan, say: Say) -> None:
    """How far the default's images are from those in fp32, and how far those of diffusers in bf16."""
    default = load(plan, say, "sd15", "warm")
    requests = requests_for(default, 2, plan.steps)
    ours = pixels(draw(default, requests))
    del default
    allowed = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    exact = pixels(draw(Pipeline.from_pretrained(plan.checkpoint("sd15"), device=plan.device, dtype="fp32"), requests))
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = allowed
    say("contrast", float(exact.std()))
    say("psnr_db/default", psnr(ours, exact))
    theirs = pipeline(plan, say)
    if theirs is not None:
        say("psnr_db/diffusers", psnr(drawn_by_diffusers(theirs, plan, requests), exact))


def diffusers(plan: Plan, say: Say) -> None:
    """bf16 as shipped, then channels_last; whole images in batches, and one after the other."""
    pipe = pipeline(plan, say)
    if pipe is None:
        return
    step_times(pipe, plan, say, "eager", (1, 4, 16))
    pipe.unet.to(memory_format=torch.channels_last)
    pipe.vae.to(memory_format=torch.channels_last)
    step_times(pipe, plan, say, "channels_last", (1, 16))
    latents = torch.randn(2 if plan.toy else DECODED, 4, *[pipe.unet.config.sample_size] * 2).to(
        pipe.vae.device, pipe.dtype
    )
    with torch.inference_mode():
        say(f"decode_ms/{DECODED}", 1000 * seconds_per_call(lambda: pipe.vae.decode(latents), plan))
    for batch in (1, 2) if plan.toy else (1, 16):
        whole(pipe, batch, 2)
        started = time.perf_counter()
        whole(pipe, batch, plan.steps)
        say(f"images_per_s/{batch}", batch / (time.perf_counter() - started))


def diffusers_compiled(plan: Plan, say: Say) -> None:
    """bf16, channels_last, torch.compile."""
    pipe = pipeline(plan, say)
    if pipe is None:
        return
    pipe.unet.to(memory_format=torch.channels_last)
    pipe.unet = torch.compile(pipe.unet, backend="eager" if plan.toy else "inductor")
    started = time.perf_counter()
    step(pipe, 1)()
    say("first_s", time.perf_counter() - started)
    step_times(pipe, plan, say, "compiled", (1, 16))


def parity(plan: Plan, say: Say) -> None:
    """Stable Diffusion 1.5 in fp32."""
    agreement(plan, say, "sd15")


def parity_sdxl(plan: Plan, say: Say) -> None:
    """SDXL in fp32, from weights in fp16."""
    agreement(plan, say, "sdxl")


def agreement(plan: Plan, say: Say, name: str) -> None:
    """The check of `scripts.evaluate.parity`."""
    if CHECK is None:
        say("diffusers", "absent")
        return
    family = narrow(FAMILIES[name]) if plan.toy else FAMILIES[name]
    with tempfile.TemporaryDirectory(dir=plan.folder) as folder:
        result = CHECK(family, Path(folder), family.steps, plan.device)
    for solver, row in result["solvers"].items():
        for key, value in row.items():
            say(f"{solver}/{key}", value)
    say("ok", result["ok"])


def pipeline(plan: Plan, say: Say) -> Any:
    """Its pipeline of Stable Diffusion 1.5 in bf16; None where diffusers is absent, which is said."""
    if PIPELINE is None:
        say("diffusers", "absent")
        return None
    pipe = PIPELINE.from_pretrained(plan.checkpoint("sd15"), torch_dtype=torch.bfloat16, safety_checker=None)
    pipe.to(plan.device)
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = SCHEDULER.from_config(pipe.scheduler.config, clip_sample=False)
    return pipe


def step(pipe: Any, batch: int) -> Callable[[], Tensor]:
    """One guided evaluation of its U-Net."""
    unet, device = pipe.unet, pipe.device
    shape, width = (2 * batch, 4, *[unet.config.sample_size] * 2), unet.config.cross_attention_dim
    given = (torch.randn(shape), torch.tensor(500.0), torch.randn(2 * batch, 77, width))
    latents, timestep, context = (tensor.to(device, torch.bfloat16) for tensor in given)
    return lambda: unet(latents, timestep, context, return_dict=False)[0]


def step_times(pipe: Any, plan: Plan, say: Say, form: str, batches: Sequence[int]) -> None:
    """Milliseconds per guided step by the images in the batch."""
    for batch in (1, 2) if plan.toy else batches:
        with torch.inference_mode():
            say(f"{form}_step_ms/{batch}", 1000 * seconds_per_call(step(pipe, batch), plan))


def whole(pipe: Any, batch: int, steps: int, latents: Tensor | None = None) -> list[Any]:
    """Whole images, one batch."""
    return pipe(prompts(batch), num_inference_steps=steps, guidance_scale=GUIDANCE, latents=latents).images


def drawn_by_diffusers(pipe: Any, plan: Plan, requests: Sequence[Request]) -> np.ndarray:
    """The images (N, H, W, 3) of requests whose prompts are `prompts(N)`, in bf16, from the same noise."""
    side = pipe.unet.config.sample_size
    noise = ImageNoise([request.seed for request in requests], (4, side, side), torch.device(plan.device))
    return pixels(whole(pipe, len(requests), requests[0].steps, noise().to(torch.bfloat16)))

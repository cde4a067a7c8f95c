"""What the networks take on a GPU: the card itself, steps, decodes, text, whole images."""

import os
import platform
import statistics
import subprocess
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from genpipe.checkpoints import load_checkpoint
from genpipe.models.conditioning import Conditioning
from genpipe.models.cuda.forms import NAMED, evaluation
from genpipe.models.denoiser import UNetDenoiser
from genpipe.models.prepare import prepare
from genpipe.pipeline import Pipeline
from genpipe.spec import ModelSpec
from scripts.benchmark.ceiling import gemm_rate, step_flops
from scripts.benchmark.gpu.measuring import (
    DECODED,
    draw,
    load,
    pixels,
    prompts,
    psnr,
    requests_for,
    seconds_per_call,
    synchronize,
)
from scripts.benchmark.gpu.sections import Plan, Say
from scripts.make.checkpoint import FAMILIES, make_checkpoint, narrow

SHOWN = 30  # kernels
PACKAGES = ("torch", "triton", "diffusers", "transformers", "accelerate")


def card(plan: Plan, say: Say) -> None:
    """What the figures hold for; then the checkpoints that the other sections load."""
    for key, value in machine(plan.device).items():
        say(key, value)
    side, dtype = (256, torch.float32) if plan.toy else (8192, torch.bfloat16)
    say("gemm_tflops", gemm_rate(dtype, plan.device, side) / 1e12)
    say("copy_gb_per_s", copy_rate(plan) / 1e9)
    for name in plan.checkpoints:
        started = time.perf_counter()
        family = narrow(FAMILIES[name]) if plan.toy else replace(FAMILIES[name], stored=torch.float16)
        make_checkpoint(family, plan.checkpoint(name), words=prompts(64), device=plan.device)
        say(f"made_s/{name}", time.perf_counter() - started)


def machine(device: str) -> dict[str, Any]:
    """Card, driver, processor, versions."""
    found: dict[str, Any] = {"cores": os.cpu_count(), "python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "absent"
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        found |= {"card": properties.name, "memory_gb": properties.total_memory / 1e9, "cuda": torch.version.cuda}
        found |= {"cudnn": torch.backends.cudnn.version(), "driver": driver()}
    return found


def copy_rate(plan: Plan) -> float:
    """Bytes per second, read and written, of one large copy."""
    x = torch.empty(2**20 if plan.toy else 2**31, dtype=torch.uint8, device=plan.device)
    y = torch.empty_like(x)
    return 2 * x.nbytes / seconds_per_call(lambda: y.copy_(x), plan)


def driver() -> str | None:
    """The version of the driver; None where nvidia-smi does not say."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.split()[0]
    except (OSError, subprocess.SubprocessError, IndexError):
        return None


def sd15(plan: Plan, say: Say) -> None:
    """Stable Diffusion 1.5 in the default form; kernels are in no cache yet."""
    pipe = load(plan, say, "sd15", "cold")
    step_times(pipe, plan, say, (1, 16, 4, 32), work=not plan.toy)
    decode_times(pipe, plan, say, DECODED)
    texts = iter(prompts(10**6))
    batch = 2 if plan.toy else 64
    requests = requests_for(pipe, batch, plan.steps)

    def encode() -> None:
        pipe.encode([replace(request, prompt=next(texts)) for request in requests])  # none of them known from before

    say(f"text_ms/{batch}", 1000 * seconds_per_call(encode, plan))
    image_rates(pipe, plan, say, (32, 64))
    say("peak_gb", peak_gb(plan))


def sdxl(plan: Plan, say: Say) -> None:
    """SDXL in the default form."""
    pipe = load(plan, say, "sdxl", "cold")
    step_times(pipe, plan, say, (1, 4, 8))
    decode_times(pipe, plan, say, 1)
    image_rates(pipe, plan, say, (8, 16))
    say("peak_gb", peak_gb(plan))


def forms(plan: Plan, say: Say) -> None:
    """One guided evaluation of the U-Net in each form, without the solver."""
    device, dtype = torch.device(plan.device), torch.bfloat16
    for name, form in reversed(NAMED.items()):  # those with the most first
        if plan.toy and (form.kernels or form.graphs):  # for CUDA alone
            continue
        unet = load_checkpoint(plan.checkpoint("sd15")).unet
        prepare(unet, device=device, dtype=dtype, forms=form)
        for batch in (1, 2) if plan.toy else (1, 16, 4):
            context = torch.randn(2 * batch, 77, unet.config.context_channels, device=device, dtype=dtype)
            latents = torch.randn(batch, 4, *unet.config.sample_shape, device=device)
            with torch.inference_mode():
                evaluate = evaluation(unet, form, device)
                denoiser = UNetDenoiser(unet, [500.0], Conditioning(context), evaluate=evaluate)
                call = partial(denoiser, latents, 500.0)
                say(f"{name}_ms/{batch}", 1000 * seconds_per_call(call, plan))


def compiled(plan: Plan, say: Say) -> None:
    """The step with compiled blocks; compiling takes longer than all else, so the batch that counts comes first."""
    with_option(plan, say, "compile", (16, 1))


def fp8(plan: Plan, say: Say) -> None:
    """The step in fp8, and what it costs of the images."""
    pipe = with_option(plan, say, "fp8", (16, 1))
    if pipe is None:
        return
    requests = requests_for(pipe, 2, plan.steps)
    ours = pixels(draw(pipe, requests))
    default = Pipeline.from_pretrained(plan.checkpoint("sd15"), device=plan.device)
    say("psnr_db/default", psnr(ours, pixels(draw(default, requests))))


def with_option(plan: Plan, say: Say, option: str, batches: Sequence[int]) -> Pipeline | None:
    """The step of a pipeline that is loaded with an option; None where that cannot be, which is said."""
    try:
        started = time.perf_counter()
        spec = {"model": plan.checkpoint("sd15"), "device": plan.device, option: True}
        pipe = Pipeline.from_pretrained(ModelSpec.from_dict(spec))
        step_seconds(pipe, batches[0], plan)
        say(f"{option}_first_s", time.perf_counter() - started)
        step_times(pipe, plan, lambda key, value: say(f"{option}_{key}", value), batches)
    except (ValueError, RuntimeError) as error:
        say(option, " ".join(str(error).split())[:200])
        return None
    return pipe


def kernels(plan: Plan, say: Say) -> None:
    """Where the time of a step goes: the kernels that take the most of it."""
    batch, steps = (2, 3) if plan.toy else (16, 4)
    pipe = Pipeline.from_pretrained(plan.checkpoint("sd15"), device=plan.device)
    run_steps(pipe, batch, steps)
    activities = [ProfilerActivity.CPU] if plan.toy else [ProfilerActivity.CPU, ProfilerActivity.CUDA]
    with profile(activities=activities) as profiled:
        run_steps(pipe, batch, steps)
    kind = "self_cpu_time_total" if plan.toy else "self_device_time_total"
    rows = [row for row in profiled.key_averages() if plan.toy or row.device_type.name != "CPU"]
    rows.sort(key=lambda row: getattr(row, kind), reverse=True)
    total = sum(getattr(row, kind) for row in rows) / 1000 / steps
    say(f"total_ms/{batch}", total)
    for row in rows[:SHOWN]:
        spent = getattr(row, kind) / 1000 / steps
        say(f"kernel_ms/{row.key}", [round(spent, 3), row.count / steps])


def step_times(pipe: Pipeline, plan: Plan, say: Say, batches: Sequence[int], *, work: bool = False) -> None:
    """Milliseconds per guided step by the images in the batch; with `work`, the share of the ceiling, too."""
    for batch in (1, 2) if plan.toy else batches:
        try:
            seconds = step_seconds(pipe, batch, plan)
        except torch.OutOfMemoryError:
            say(f"step_ms/{batch}", "out of memory")
            continue
        say(f"step_ms/{batch}", 1000 * seconds)
        if work and "gemm_tflops" in plan.found.get("card", {}):
            share = step_flops(512, batch) / seconds / 1e12 / plan.found["card"]["gemm_tflops"]
            say(f"of_gemm_rate/{batch}", share)


def decode_times(pipe: Pipeline, plan: Plan, say: Say, batch: int) -> None:
    """Milliseconds per decode of latents to pixels."""
    config, sides = pipe.vae.config, pipe.unet.config.sample_shape
    latents = torch.randn(batch, config.latent_channels, *sides, device=plan.device)
    with torch.inference_mode():
        say(f"decode_ms/{batch}", 1000 * seconds_per_call(lambda: pipe.vae.decode(latents), plan))


def image_rates(pipe: Pipeline, plan: Plan, say: Say, batches: Sequence[int]) -> None:
    """Images per second of a pipeline alone, by its batch: text, steps, decoding, but no files."""
    for batch in (2,) if plan.toy else batches:
        requests = requests_for(pipe, batch, plan.steps)
        try:
            draw(pipe, [replace(request, steps=2) for request in requests])
            started = time.perf_counter()
            draw(pipe, requests)
            say(f"images_per_s/{batch}", batch / (time.perf_counter() - started))
        except torch.OutOfMemoryError:
            say(f"images_per_s/{batch}", "out of memory")


def step_seconds(pipe: Pipeline, batch: int, plan: Plan) -> float:
    """Seconds per step as the pipeline makes it: the denoiser, guidance and the solver; the median of three runs."""
    if plan.toy:
        return run_steps(pipe, batch, 3)
    run_steps(pipe, batch, 4)  # kernels are chosen, graphs captured
    steps = max(6, min(60, round(0.5 / run_steps(pipe, batch, 4))))
    return statistics.median(run_steps(pipe, batch, steps) for _ in range(3))


def run_steps(pipe: Pipeline, batch: int, steps: int) -> float:
    """Seconds per step of a run's third step and those after it."""
    device, started = pipe.device.type, 0.0
    for state in pipe.stream(requests_for(pipe, batch, steps)):
        if state.step == 2:
            synchronize(device)
            started = time.perf_counter()
    synchronize(device)
    return (time.perf_counter() - started) / (steps - 2)


def peak_gb(plan: Plan) -> float | None:
    """The most memory that tensors on the GPU have taken."""
    return torch.cuda.max_memory_allocated() / 1e9 if plan.device == "cuda" else None

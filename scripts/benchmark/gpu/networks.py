"""What the networks take on a GPU: the card itself, steps, decodes, text, whole images, training."""

import json
import os
import platform
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

from genpipe.embedded import EMBEDDED
from genpipe.pipeline import Pipeline
from genpipe.request import Request
from genpipe.spec import ModelSpec
from scripts.benchmark.ceiling import gemm_rate, step_flops
from scripts.benchmark.gpu.sections import Plan, Say
from scripts.make.checkpoint import FAMILIES, PROMPT, make_checkpoint, narrow

SAMPLER = "ddim"
DECODED = 8  # images decoded together
SHOWN = 15  # kernels
PACKAGES = ("torch", "triton", "diffusers", "transformers", "accelerate")


def card(plan: Plan, say: Say) -> None:
    """What the figures hold for; then the checkpoints that the other sections load."""
    for key, value in machine(plan.device).items():
        say(key, value)
    side, dtype = (256, torch.float32) if plan.toy else (8192, torch.bfloat16)
    say("gemm_tflops", gemm_rate(dtype, plan.device, side) / 1e12)
    say("copy_gb_per_s", copy_rate(plan) / 1e9)
    for name in ("sd15", "sdxl"):
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
    image_rates(pipe, plan, say, (16, 32, 64))
    say("peak_gb", peak_gb(plan))


def sdxl(plan: Plan, say: Say) -> None:
    """SDXL in the default form."""
    pipe = load(plan, say, "sdxl", "cold")
    step_times(pipe, plan, say, (1, 4, 8))
    decode_times(pipe, plan, say, 1)
    image_rates(pipe, plan, say, (4, 8, 16))
    say("peak_gb", peak_gb(plan))


def forms(plan: Plan, say: Say) -> None:
    """The step without what makes it fast, one thing after the other."""
    say("default", "see sd15")


def compiled(plan: Plan, say: Say) -> None:
    """The step with the options that change how it is computed."""
    for option in ("compile", "fp8"):
        if option not in {field.name for field in fields(ModelSpec)}:
            say(option, "not an option here")
            continue
        try:
            started = time.perf_counter()
            pipe = Pipeline.from_pretrained(plan.checkpoint("sd15"), device=plan.device, **{option: True})
            step_seconds(pipe, 1, plan)
            say(f"{option}_first_s", time.perf_counter() - started)
            step_times(pipe, plan, lambda key, value, option=option: say(f"{option}_{key}", value), (1, 16))
        except (ValueError, RuntimeError) as error:
            say(option, " ".join(str(error).split())[:200])


def kernels(plan: Plan, say: Say) -> None:
    """Where the time of a step goes: the kernels that take the most of it."""
    batch, steps = (2, 3) if plan.toy else (16, 4)
    pipe = Pipeline.from_pretrained(plan.checkpoint("sd15"), device=plan.device)
    run_steps(pipe, batch, steps)
    activities = [ProfilerActivity.CPU] if plan.toy else [ProfilerActivity.CPU, ProfilerActivity.CUDA]
    with profile(activities=activities) as profiled:
        run_steps(pipe, batch, steps)
    kind = "self_cpu_time_total" if plan.toy else "self_device_time_total"
    rows = [row for row in profiled.key_averages() if plan.toy or row.device_type != torch.autograd.DeviceType.CPU]
    rows.sort(key=lambda row: getattr(row, kind), reverse=True)
    total = sum(getattr(row, kind) for row in rows) / 1000 / steps
    say(f"total_ms/{batch}", total)
    for row in rows[:SHOWN]:
        spent = getattr(row, kind) / 1000 / steps
        say(f"kernel_ms/{row.key}", [round(spent, 3), row.count / steps])


def quality(plan: Plan, say: Say) -> None:
    """How far the default's images are from those in fp32, and how far those of diffusers in bf16."""
    default = load(plan, say, "sd15", "warm")
    requests = requests_for(default, 4, plan.steps)
    ours = pixels(draw(default, requests))
    del default
    allowed = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    exact = pixels(draw(Pipeline.from_pretrained(plan.checkpoint("sd15"), device=plan.device, dtype="fp32"), requests))
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = allowed
    say("contrast", float(exact.std()))
    say("psnr_db/default", psnr(ours, exact))
    try:
        from scripts.benchmark.gpu.peers import drawn_by_diffusers
    except ImportError:
        say("psnr_db/diffusers", "absent")
        return
    say("psnr_db/diffusers", psnr(drawn_by_diffusers(plan, requests), exact))


def training(plan: Plan, say: Say) -> None:
    """Steps per second of the embedded model's denoiser, by the images per step."""
    from genpipe.scenes.concepts import names
    from genpipe.training.loop import LOGGED, Budget, choose_accelerator
    from genpipe.training.text_to_image import train, trained_model
    from scripts.train.embedded import Scenes

    for batch in (4,) if plan.toy else (256, 512):
        accelerator = choose_accelerator(plan.device)
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder)
            steps = 2 if plan.toy else 3 * LOGGED
            scenes = Scenes(accelerator.device, concepts=names(core=True), seed=0)
            if plan.toy:
                scenes.period = 8
            model, budget = trained_model(out, EMBEDDED), Budget(steps=steps)
            started = time.perf_counter()
            train(model, scenes, out=out, accelerator=accelerator, denoiser=budget, batch=batch, freeze_text=True,
                  prompts=["pirate ship"])  # fmt: skip
            say(f"whole_s/{batch}", time.perf_counter() - started)
            log = out / "denoiser" / "log.jsonl"
            marks = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
        if len(marks) > 1:
            taken = marks[-1]["step"] - marks[0]["step"]
            say(f"steps_per_s/{batch}", taken / (marks[-1]["seconds"] - marks[0]["seconds"]))


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


def peak_gb(plan: Plan) -> float | None:
    """The most memory that tensors on the GPU have taken."""
    return torch.cuda.max_memory_allocated() / 1e9 if plan.device == "cuda" else None


def pixels(images: Sequence[Any]) -> np.ndarray:
    """Images as numbers (N, H, W, 3), 0 … 255."""
    return np.stack([np.asarray(image, dtype=np.float64) for image in images])


def psnr(result: np.ndarray, reference: np.ndarray) -> float:
    """In decibels, of images of 0 … 255."""
    return float(20 * np.log10(255) - 10 * np.log10(max(np.square(result - reference).mean(), 1e-20)))

"""Runs of diffusers' schedulers and of our samplers over one stand-in for a network, to be compared.

They are compared at each evaluation of the network: its timestep, its input, and the last latents. The noise comes from
the same seeded generators. The tolerance is 1e-4 of the larger of 1 and the largest value. It covers float32 rounding over
tens of steps, since diffusers keeps x / alpha (up to 15 times larger) where we keep x; a wrong coefficient or a timestep
that is off by one shows at 1e-3 and more.
"""

import inspect
import json
import math
from functools import cache
from typing import Any

import diffusers
import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from torch import Tensor

from genpipe.sampling.guidance import x0_from_output
from genpipe.sampling.names import SAMPLERS, split_name
from genpipe.sampling.samplers import make_sampler

diffusers.utils.logging.set_verbosity_error()

# What genpipe has its own solvers for, and what runs in diffusers.
_OWN = {"pndm", "ddim", "euler", "euler_a", "heun", "dpmpp_2m", "dpmpp_2m_sde", "lcm", "flow_euler"}
OWN = [name for name in SAMPLERS if split_name(name)[0] in _OWN and split_name(name)[1] != "beta"]
OTHERS = [name for name in SAMPLERS if name not in OWN]

TOLERANCE = 1e-4
STEP_COUNTS = (1, 2, 4, 10, 30)

_STABLE_DIFFUSION = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "trained_betas": None,
    "clip_sample": False,
}

SCHEDULER_FILES = {
    "sd15": _STABLE_DIFFUSION
    | {
        "_class_name": "PNDMScheduler",
        "_diffusers_version": "0.6.0",
        "set_alpha_to_one": False,
        "skip_prk_steps": True,
        "steps_offset": 1,
    },
    "sd21": _STABLE_DIFFUSION
    | {
        "_class_name": "DDIMScheduler",
        "_diffusers_version": "0.8.0",
        "prediction_type": "v_prediction",
        "set_alpha_to_one": False,
        "skip_prk_steps": True,
        "steps_offset": 1,
    },
    # As saved before diffusers 0.3: nothing said of the offset or of clipping.
    "old": {
        "_class_name": "DDIMScheduler",
        "_diffusers_version": "0.2.4",
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
    },
    "sd_turbo": _STABLE_DIFFUSION
    | {
        "_class_name": "EulerDiscreteScheduler",
        "_diffusers_version": "0.24.0.dev0",
        "interpolation_type": "linear",
        "prediction_type": "epsilon",
        "sample_max_value": 1.0,
        "set_alpha_to_one": False,
        "skip_prk_steps": True,
        "steps_offset": 1,
        "timestep_spacing": "trailing",
        "timestep_type": "discrete",
        "use_karras_sigmas": False,
    },
    "lcm_dreamshaper": _STABLE_DIFFUSION
    | {
        "_class_name": "LCMScheduler",
        "_diffusers_version": "0.22.0.dev0",
        "clip_sample": True,
        "clip_sample_range": 1.0,
        "dynamic_thresholding_ratio": 0.995,
        "original_inference_steps": 50,
        "prediction_type": "epsilon",
        "rescale_betas_zero_snr": False,
        "sample_max_value": 1.0,
        "set_alpha_to_one": True,
        "steps_offset": 1,
        "thresholding": False,
        "timestep_spacing": "leading",
    },
    "dpm_karras": _STABLE_DIFFUSION
    | {
        "_class_name": "DPMSolverMultistepScheduler",
        "_diffusers_version": "0.20.0",
        "algorithm_type": "sde-dpmsolver++",
        "final_sigmas_type": "sigma_min",
        "lower_order_final": True,
        "prediction_type": "epsilon",
        "solver_order": 2,
        "solver_type": "midpoint",
        "steps_offset": 0,
        "use_karras_sigmas": True,
    },
    "zero_snr": _STABLE_DIFFUSION
    | {
        "_class_name": "DDIMScheduler",
        "_diffusers_version": "0.23.0",
        "prediction_type": "v_prediction",
        "rescale_betas_zero_snr": True,
        "set_alpha_to_one": True,
        "steps_offset": 1,
        "timestep_spacing": "trailing",
    },
    "predicts_sample": _STABLE_DIFFUSION
    | {"_class_name": "DDIMScheduler", "prediction_type": "sample", "steps_offset": 1, "timestep_spacing": "linspace"},
    "flow": {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 3.0},
}


class SeededNoise:
    """The noise of two images, (2, 4, 8, 8), each from its own generator. `dtype` changes after drawing."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        self.generators = [torch.Generator().manual_seed(seed) for seed in (3, 4)]
        self.dtype = dtype
        self.draws = 0

    def __call__(self) -> Tensor:
        self.draws += 1
        return torch.cat([torch.randn(1, 4, 8, 8, generator=g) for g in self.generators]).to(self.dtype)


_MIXING = torch.randn(4, 4, generator=torch.Generator().manual_seed(5)) / 2


def network(x: Tensor, timestep: float) -> Tensor:
    """A fixed function of (x, timestep): smooth, not linear, and not small where x is large, as a real one's output."""
    return 0.7 * x + 0.3 * torch.tanh(torch.einsum("ij,bjhw->bihw", _MIXING.to(x.dtype), x) + math.sin(timestep / 173))


# --- The reference ---------------------------------------------------------------------------------------------------

Run = list[tuple[float, Tensor]]  # (timestep, network input) for each evaluation, then (-1, the last latents)


def loaded(file: dict[str, Any]) -> Any:
    """The file's scheduler after StableDiffusionPipeline has corrected it."""
    if file["_class_name"].startswith("FlowMatch"):
        return getattr(diffusers, file["_class_name"]).from_config(file)
    absent: Any = dict.fromkeys(("vae", "text_encoder", "tokenizer", "unet", "safety_checker", "feature_extractor"))
    scheduler = getattr(diffusers, file["_class_name"]).from_config(file)
    return StableDiffusionPipeline(**absent, scheduler=scheduler, requires_safety_checker=False).scheduler


# The diffusers class and the settings of it that a user would choose to get what we call by this name.
CLASSES: dict[str, tuple[str, dict[str, Any]]] = {
    "pndm": ("PNDMScheduler", {"skip_prk_steps": True}),
    "ddim": ("DDIMScheduler", {}),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler_a": ("EulerAncestralDiscreteScheduler", {}),
    "heun": ("HeunDiscreteScheduler", {}),
    "dpmpp_2m": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++"}),
    "dpmpp_2m_sde": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    "dpmpp_2m_sde_heun": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++", "solver_type": "heun"}),
    "dpmpp_3m_sde": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++", "solver_order": 3}),
    "dpmpp_2s_a": ("DPMSolverSinglestepScheduler", {}),
    "dpmpp_sde": ("DPMSolverSinglestepScheduler", {}),
    "dpm2": ("KDPM2DiscreteScheduler", {}),
    "dpm2_a": ("KDPM2AncestralDiscreteScheduler", {}),
    "lms": ("LMSDiscreteScheduler", {}),
    "unipc": ("UniPCMultistepScheduler", {}),
    "deis": ("DEISMultistepScheduler", {}),
    "ddpm": ("DDPMScheduler", {}),
    "lcm": ("LCMScheduler", {}),
    "tcd": ("TCDScheduler", {}),
    "flow_euler": ("FlowMatchEulerDiscreteScheduler", {}),
}


def switched(file: dict[str, Any], name: str) -> Any:
    """The diffusers scheduler that a user would make of the loaded one to get what we call `name`, made once."""
    return _switched(json.dumps(file), name)


@cache
def _switched(text: str, name: str) -> Any:
    file = json.loads(text)
    solver, spacing = split_name(name)
    class_name, changes = CLASSES.get(solver, (solver, {}))
    if spacing is not None:
        changes = changes | {f"use_{other}_sigmas": other == spacing for other in ("karras", "exponential", "beta")}
    if spacing == "trailing":
        changes = changes | {"timestep_spacing": "trailing"}
    before = loaded(file)
    if type(before).__name__ == class_name and not changes:
        return before
    scheduler = getattr(diffusers, class_name).from_config(before.config, **changes)
    if scheduler.config.get("clip_sample"):
        scheduler.register_to_config(clip_sample=False)  # see test_settings_are_those_of_from_config
    return scheduler


def diffusers_run(scheduler: Any, steps: int, **timing: Any) -> tuple[Run, float]:
    """A run as StableDiffusionPipeline makes it, and the largest value that its state reached."""
    scheduler.set_timesteps(steps, **timing)
    return diffusers_part(scheduler, 0, len(scheduler.timesteps))


def diffusers_part(scheduler: Any, start: int, stop: int, image: Tensor | None = None) -> tuple[Run, float]:
    """The evaluations `start` … `stop` of a timed scheduler, from noise or as its img2img pipeline makes them."""
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(start)  # else DPM-Solver loses its place where two rounded timesteps coincide
    noise, run, largest = SeededNoise(), [], 0.0
    if image is None:
        x = noise() * getattr(scheduler, "init_noise_sigma", 1.0)
    elif hasattr(scheduler, "scale_noise"):
        x = scheduler.scale_noise(image, scheduler.timesteps[start : start + 1], noise())
    else:
        x = scheduler.add_noise(image, noise(), scheduler.timesteps[start : start + 1])
    taken = inspect.signature(scheduler.step).parameters
    extra: dict[str, Any] = {"generator": noise.generators} if "generator" in taken else {}
    extra |= {"eta": 0.0} if "eta" in taken else {}  # StableDiffusionPipeline's own
    for t in scheduler.timesteps[start:stop]:
        largest = max(largest, x.abs().max().item())
        given = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        run.append((float(t), given))
        x = scheduler.step(network(given, float(t)), t, x, **extra).prev_sample
    if stop < len(scheduler.timesteps) and hasattr(scheduler, "scale_model_input"):
        x = scheduler.scale_model_input(x, scheduler.timesteps[stop])
    return [*run, (-1.0, x)], largest


def genpipe_run(
    name: str | None,
    file: dict[str, Any],
    steps: int,
    dtype: torch.dtype = torch.float32,
    *,
    image: Tensor | None = None,
    **part: Any,
) -> Run:
    sampler = make_sampler(name, file)
    schedule, noise, run = sampler.schedule(steps, **part), SeededNoise(dtype), []

    def denoise(x: Tensor, step: Any) -> Tensor:
        run.append((step.timestep, x))
        return x0_from_output(network(x, step.timestep), x, step, sampler.prediction_type)

    x = noise()
    x = x * schedule.initial_scale if image is None else schedule.steps[0].noised(image, x)
    yielded = list(sampler.sample(denoise, x, schedule, noise))
    assert len(yielded) == len(schedule.steps) - 1
    return [*run, (-1.0, yielded[-1])]


def check(ours: Run, theirs: Run, label: str, tolerance: float = TOLERANCE) -> None:
    assert len(ours) == len(theirs), f"{label}: {len(ours) - 1} evaluations, diffusers makes {len(theirs) - 1}"
    for i, ((our_t, our_x), (their_t, their_x)) in enumerate(zip(ours, theirs, strict=True)):
        where = f"{label}, " + (f"evaluation {i} of {len(theirs) - 1}" if i < len(theirs) - 1 else "final latents")
        assert our_t == their_t, f"{where}: timestep {our_t}, diffusers has {their_t}"
        error = (our_x - their_x).abs().max().item() / max(1.0, their_x.abs().max().item())
        assert error <= tolerance, f"{where}: off by {error:.1e}, allowed {tolerance:.0e}"

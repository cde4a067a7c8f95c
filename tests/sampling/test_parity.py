"""Every sampler against diffusers, at each evaluation of the network: its timestep, its input, and the last latents.

The network is a stand-in, the noise comes from the same seeded generators. The tolerance is 1e-4 of the larger of 1 and
the largest value. It covers float32 rounding over tens of steps, since diffusers keeps x / alpha (up to 15 times larger)
where we keep x; a wrong coefficient or a timestep that is off by one shows at 1e-3 and more.
"""

import inspect
import math
from typing import Any

import diffusers
import pytest
import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from torch import Tensor

from genpipe.sampling.guidance import x0_from_output
from genpipe.sampling.names import SAMPLERS, SOLVER_CLASSES, split_name
from genpipe.sampling.samplers import make_sampler
from genpipe.sampling.settings import DEFAULTS, completed, inherited

diffusers.utils.logging.set_verbosity_error()
# diffusers' own: what it deprecates in numpy, and its complaints of the very files that it corrects.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

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
    """Two pictures' noise, (2, 4, 8, 8), each from its own generator. `dtype` changes after drawing."""

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


def switched(file: dict[str, Any], name: str) -> Any:
    """The diffusers scheduler that a user would make of the loaded one to get what we call `name`."""
    solver, spacing = split_name(name)
    changes: dict[str, Any] = {"pndm": {"skip_prk_steps": True}, "dpmpp_2m": {"algorithm_type": "dpmsolver++"}}.get(
        solver, {"algorithm_type": "sde-dpmsolver++"} if solver == "dpmpp_2m_sde" else {}
    )
    if spacing is not None:
        changes |= {"use_karras_sigmas": False, f"use_{spacing}_sigmas": True}
    before, class_name = loaded(file), SOLVER_CLASSES.get(solver, solver)
    if type(before).__name__ == class_name and not changes:
        return before
    scheduler = getattr(diffusers, class_name).from_config(before.config, **changes)
    if scheduler.config.get("clip_sample"):
        scheduler.register_to_config(clip_sample=False)  # see test_settings_are_those_of_from_config
    return scheduler


def diffusers_run(scheduler: Any, steps: int) -> tuple[Run, float]:
    """A run as StableDiffusionPipeline makes it, and the largest value that its state reached."""
    scheduler.set_timesteps(steps)
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(0)  # else DPM-Solver loses its place where two rounded timesteps coincide
    noise, run, largest = SeededNoise(), [], 0.0
    x = noise() * getattr(scheduler, "init_noise_sigma", 1.0)
    drawing = "generator" in inspect.signature(scheduler.step).parameters
    extra = {"generator": noise.generators} if drawing else {}
    for t in scheduler.timesteps:
        largest = max(largest, x.abs().max().item())
        given = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        run.append((float(t), given))
        x = scheduler.step(network(given, float(t)), t, x, **extra).prev_sample
    return [*run, (-1.0, x)], largest


def genpipe_run(name: str | None, file: dict[str, Any], steps: int, dtype: torch.dtype = torch.float32) -> Run:
    sampler = make_sampler(name, file)
    schedule, noise, run = sampler.schedule(steps), SeededNoise(dtype), []

    def denoise(x: Tensor, step: Any) -> Tensor:
        run.append((step.timestep, x))
        return x0_from_output(network(x, step.timestep), x, step, sampler.prediction_type)

    yielded = list(sampler.sample(denoise, noise() * schedule.initial_scale, schedule, noise))
    assert len(yielded) == len(schedule.steps) - 1
    return [*run, (-1.0, yielded[-1])]


def check(ours: Run, theirs: Run, label: str, tolerance: float = TOLERANCE) -> None:
    assert len(ours) == len(theirs), f"{label}: {len(ours) - 1} evaluations, diffusers makes {len(theirs) - 1}"
    for i, ((our_t, our_x), (their_t, their_x)) in enumerate(zip(ours, theirs, strict=True)):
        where = f"{label}, " + (f"evaluation {i} of {len(theirs) - 1}" if i < len(theirs) - 1 else "final latents")
        assert our_t == their_t, f"{where}: timestep {our_t}, diffusers has {their_t}"
        error = (our_x - their_x).abs().max().item() / max(1.0, their_x.abs().max().item())
        assert error <= tolerance, f"{where}: off by {error:.1e}, allowed {tolerance:.0e}"


# --- Parity ----------------------------------------------------------------------------------------------------------


def _runs_in_diffusers(name: str, file: dict[str, Any]) -> bool:
    """Whether diffusers can, and we do, run this sampler with this file."""
    if name.startswith("flow") or file["_class_name"].startswith("FlowMatch"):
        return name.startswith("flow") and file["_class_name"].startswith("FlowMatch")
    if file.get("prediction_type") == "sample" and name in ("pndm", "euler_a"):
        return False  # diffusers raises; ours need no special case
    return not (file.get("rescale_betas_zero_snr") and split_name(name)[0] in ("pndm", "heun"))


@pytest.mark.parametrize(
    ("file", "name"),
    [(file, name) for file in SCHEDULER_FILES for name in SAMPLERS if _runs_in_diffusers(name, SCHEDULER_FILES[file])],
)
def test_each_sampler_matches_diffusers_with_each_file(file: str, name: str) -> None:
    scheduler = switched(SCHEDULER_FILES[file], name)
    for steps in STEP_COUNTS:
        if file == "zero_snr" and name.startswith("euler") and steps <= 2:
            continue  # test_a_state_of_thousands_costs_diffusers_its_precision_and_not_us
        theirs, _ = diffusers_run(scheduler, steps)
        check(genpipe_run(name, SCHEDULER_FILES[file], steps), theirs, f"{name} with {file}, {steps} steps")


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("betas", ["scaled_linear", "linear", "trained"])
def test_each_sampler_matches_diffusers_with_each_spacing(spacing: str, prediction_type: str, betas: str) -> None:
    file = SCHEDULER_FILES["sd15"] | {"timestep_spacing": spacing, "prediction_type": prediction_type}
    if betas == "trained":
        file["trained_betas"] = torch.linspace(0.001, 0.02, 1000).tolist()
    else:
        file["beta_schedule"] = betas
    for name in SAMPLERS:
        if _runs_in_diffusers(name, file):
            theirs, _ = diffusers_run(switched(file, name), 7)
            check(genpipe_run(name, file, 7), theirs, f"{name}, {spacing}, {prediction_type}, {betas}")


@pytest.mark.parametrize("name", ["ddim", "dpmpp_2m", "dpmpp_2m_karras", "dpmpp_2m_sde_exponential", "lcm"])
def test_cosine_betas_match_diffusers(name: str) -> None:
    file = SCHEDULER_FILES["sd15"] | {"beta_schedule": "squaredcos_cap_v2", "prediction_type": "v_prediction"}
    scheduler = switched(file, name)
    for steps in STEP_COUNTS:
        theirs, _ = diffusers_run(scheduler, steps)
        check(genpipe_run(name, file, steps), theirs, f"{name}, cosine, {steps} steps")


@pytest.mark.parametrize(
    ("name", "changes"),
    [(name, {"rescale_betas_zero_snr": True}) for name in SAMPLERS if name.startswith("euler")]
    + [(name, {"beta_schedule": "squaredcos_cap_v2"}) for name in ("euler", "heun", "heun_karras")],
)
@pytest.mark.parametrize("steps", [1, 2])
def test_a_state_of_thousands_costs_diffusers_its_precision_and_not_us(name: str, changes: dict, steps: int) -> None:
    """diffusers' Euler and Heun keep x / alpha in float32: of the order of 1e4 where alpha is 2⁻¹², so good to 1e-3 only.

    So exact arithmetic (ours in float64) is the judge: we are within 1e-5 of it, diffusers within its own rounding.
    """
    file = SCHEDULER_FILES["sd21"] | {"timestep_spacing": "trailing"} | changes
    exact = genpipe_run(name, file, steps, torch.float64)
    check(genpipe_run(name, file, steps), exact, f"{name}, float32 against float64", 1e-5)
    theirs, largest = diffusers_run(switched(file, name), steps)
    assert largest > 5_000
    check(exact, theirs, f"{name}, diffusers against float64", 4 * largest * torch.finfo(torch.float32).eps)


@pytest.mark.parametrize("file", SCHEDULER_FILES)
def test_without_a_name_the_files_own_scheduler_runs(file: str) -> None:
    scheduler = loaded(SCHEDULER_FILES[file])
    for steps in STEP_COUNTS:
        theirs, _ = diffusers_run(scheduler, steps)
        check(genpipe_run(None, SCHEDULER_FILES[file], steps), theirs, f"{file}, {steps} steps")


def test_what_lcm_keeps_of_its_input_matches_diffusers() -> None:
    """At the usual timestep_scaling of 10 it keeps less than the tolerance of every other test."""
    file = SCHEDULER_FILES["lcm_dreamshaper"] | {"timestep_scaling": 0.002}
    theirs, _ = diffusers_run(loaded(file), 4)
    check(genpipe_run("lcm", file, 4), theirs, "lcm, 4 steps")


@pytest.mark.parametrize("final", ["zero", "sigma_min"])
@pytest.mark.parametrize("name", ["euler", "euler_karras", "dpmpp_2m", "dpmpp_2m_karras", "dpmpp_2m_sde"])
def test_where_the_last_sigma_is_matches_diffusers(name: str, final: str) -> None:
    for changes in ({}, {"lower_order_final": False}, {"euler_at_final": True}):
        file = SCHEDULER_FILES["sd15"] | {"final_sigmas_type": final} | changes
        scheduler = switched(file, name)
        for steps in (2, 10, 20):
            theirs, _ = diffusers_run(scheduler, steps)
            check(genpipe_run(name, file, steps), theirs, f"{name}, {final}, {changes}, {steps} steps")


@pytest.mark.parametrize("steps", [3, 7, 15, 47, 100])
def test_awkward_step_counts_match_diffusers(steps: int) -> None:
    for name in ("pndm", "ddim", "euler", "heun_karras", "dpmpp_2m_karras", "dpmpp_2m_exponential"):
        for spacing in ("leading", "trailing", "linspace"):
            file = SCHEDULER_FILES["sd15"] | {"timestep_spacing": spacing}
            theirs, _ = diffusers_run(switched(file, name), steps)
            check(genpipe_run(name, file, steps), theirs, f"{name}, {spacing}, {steps} steps")


@pytest.mark.parametrize("steps", [1, 5, 20])
def test_evaluation_counts(steps: int) -> None:
    counts = {name: len(genpipe_run(name, SCHEDULER_FILES["sd15"], steps)) - 1 for name in ("heun", "pndm", "ddim")}
    assert counts == {"heun": 2 * steps - 1, "pndm": steps + 1 if steps > 1 else 1, "ddim": steps}


@pytest.mark.parametrize(
    ("name", "draws"), [("euler_a", 5), ("dpmpp_2m_sde", 5), ("lcm", 4), ("euler", 0), ("pndm", 0)]
)
def test_noise_is_drawn_as_often_as_diffusers_draws_it(name: str, draws: int) -> None:
    sampler, noise = make_sampler(name, SCHEDULER_FILES["sd15"]), SeededNoise()
    list(sampler.sample(lambda x, step: x / 2, torch.ones(2, 4, 8, 8), sampler.schedule(5), noise))
    assert noise.draws == draws
    scheduler, theirs = switched(SCHEDULER_FILES["sd15"], name), SeededNoise()
    scheduler.set_timesteps(5)
    extra = {"generator": theirs.generators} if draws else {}
    x = torch.ones(2, 4, 8, 8)
    for t in scheduler.timesteps:
        scheduler.scale_model_input(x, t)
        scheduler.step(x, t, x, **extra)
    for ours, their in zip(noise.generators, theirs.generators, strict=True):
        assert torch.equal(ours.get_state(), their.get_state())


# --- Settings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", [file for file in SCHEDULER_FILES if file != "flow"])
@pytest.mark.parametrize("class_name", [name for name in DEFAULTS if not name.startswith("FlowMatch")])
def test_settings_are_those_of_from_config(file: str, class_name: str) -> None:
    """Key for key. `clip_sample` is not among ours: it is off, also where a switch to DDIM would turn it on again."""
    before = loaded(SCHEDULER_FILES[file])
    same = type(before).__name__ == class_name
    after = before if same else getattr(diffusers, class_name).from_config(before.config)
    for key, value in completed(class_name, inherited(SCHEDULER_FILES[file], class_name)).items():
        assert value == after.config[key], f"{key}: {value!r}, diffusers has {after.config[key]!r}"


@pytest.mark.parametrize("class_name", DEFAULTS)
def test_defaults_are_those_of_the_class(class_name: str) -> None:
    config = getattr(diffusers, class_name)().config
    assert {key: config[key] for key in DEFAULTS[class_name]} == DEFAULTS[class_name]


# --- The adapter -----------------------------------------------------------------------------------------------------

ADAPTED = (
    "UniPCMultistepScheduler",
    "DEISMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "KDPM2DiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "DDPMScheduler",
    "TCDScheduler",
    "SASolverScheduler",
)


@pytest.mark.parametrize("file", ["sd15", "sd21"])
@pytest.mark.parametrize("name", ADAPTED)
def test_other_schedulers_run_through_diffusers_itself(name: str, file: str) -> None:
    scheduler = switched(SCHEDULER_FILES[file], name)
    for steps in (1, 2, 10):
        theirs, _ = diffusers_run(scheduler, steps)
        check(genpipe_run(name, SCHEDULER_FILES[file], steps), theirs, f"{name} with {file}, {steps} steps")


def test_latents_are_not_clipped_by_a_scheduler_that_would_by_default() -> None:
    """DDIMParallelScheduler clips unless the file says otherwise, and this file says nothing."""
    theirs, _ = diffusers_run(switched(SCHEDULER_FILES["old"], "DDIMParallelScheduler"), 5)
    assert theirs[-1][1].abs().max() > 1
    check(genpipe_run("DDIMParallelScheduler", SCHEDULER_FILES["old"], 5), theirs, "DDIMParallelScheduler")


def test_other_flow_schedulers_run_through_diffusers_itself() -> None:
    theirs, _ = diffusers_run(switched(SCHEDULER_FILES["flow"], "FlowMatchHeunDiscreteScheduler"), 6)
    check(genpipe_run("FlowMatchHeunDiscreteScheduler", SCHEDULER_FILES["flow"], 6), theirs, "flow Heun")


@pytest.mark.parametrize(
    ("class_name", "changes"),
    [
        ("DPMSolverMultistepScheduler", {"solver_order": 3}),
        ("DPMSolverMultistepScheduler", {"solver_type": "heun"}),
        ("DPMSolverMultistepScheduler", {"use_lu_lambdas": True}),
        ("EulerDiscreteScheduler", {"use_beta_sigmas": True}),
        ("EulerDiscreteScheduler", {"interpolation_type": "log_linear"}),
        ("PNDMScheduler", {"skip_prk_steps": False}),
        ("DDIMScheduler", {"thresholding": True}),
    ],
)
def test_a_setting_that_we_do_not_implement_runs_through_diffusers(class_name: str, changes: dict) -> None:
    file = SCHEDULER_FILES["sd15"] | {"_class_name": class_name} | changes
    assert make_sampler(None, file).name == class_name
    theirs, _ = diffusers_run(loaded(file), 10)
    check(genpipe_run(None, file, 10), theirs, f"{class_name} with {changes}")

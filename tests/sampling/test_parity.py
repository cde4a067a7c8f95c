"""Every sampler against diffusers, over whole schedules; see `tests.sampling.conftest` for how they are compared."""

from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers.pipelines.flux.pipeline_flux import calculate_shift

from genpipe.sampling.names import split_name
from genpipe.sampling.samplers import make_sampler
from genpipe.sampling.settings import DEFAULTS, completed, inherited
from tests.sampling.conftest import (
    OTHERS,
    OWN,
    SCHEDULER_FILES,
    STEP_COUNTS,
    SeededNoise,
    check,
    diffusers_run,
    genpipe_run,
    loaded,
    switched,
)

# diffusers' own: what it deprecates in numpy, and its complaints of the very files that it corrects.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


# --- Parity ----------------------------------------------------------------------------------------------------------


def _runs_in_diffusers(name: str, file: dict[str, Any]) -> bool:
    """Whether diffusers can, and we do, run this sampler with this file."""
    if name.startswith("flow") or file["_class_name"].startswith("FlowMatch"):
        return name.startswith("flow") and file["_class_name"].startswith("FlowMatch")
    if file.get("prediction_type") == "sample" and split_name(name)[0] in ("pndm", "euler_a"):
        return False  # diffusers raises; ours need no special case
    return not (file.get("rescale_betas_zero_snr") and split_name(name)[0] in ("pndm", "heun"))


@pytest.mark.parametrize(
    ("file", "name"),
    [(file, name) for file in SCHEDULER_FILES for name in OWN if _runs_in_diffusers(name, SCHEDULER_FILES[file])],
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
    for name in OWN:
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
    [(name, {"rescale_betas_zero_snr": True}) for name in OWN if name.startswith("euler")]
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
    *[name for name in OTHERS if not name.startswith("flow")],
    "DPMSolverSinglestepScheduler",
    "SASolverScheduler",
)


@pytest.mark.parametrize("file", ["sd15", "sd21"])
@pytest.mark.parametrize("name", ADAPTED)
def test_other_schedulers_run_through_diffusers_itself(name: str, file: str) -> None:
    scheduler = switched(SCHEDULER_FILES[file], name)
    for steps in (1, 2, 10) if file == "sd15" else (10,):
        theirs, _ = diffusers_run(scheduler, steps)
        check(genpipe_run(name, SCHEDULER_FILES[file], steps), theirs, f"{name} with {file}, {steps} steps")


def test_a_seed_is_an_image_also_where_a_scheduler_would_draw_from_torchs_global_generator() -> None:
    """DPMSolverSDEScheduler takes its Brownian paths from a seed of its own; the adapter gives it each image's."""
    pytest.importorskip("torchsde")
    scheduler = switched(SCHEDULER_FILES["sd15"], "DPMSolverSDEScheduler")
    scheduler.noise_sampler_seed = [generator.initial_seed() for generator in SeededNoise().generators]
    theirs, _ = diffusers_run(scheduler, 5)
    for _ in range(2):
        check(genpipe_run("DPMSolverSDEScheduler", SCHEDULER_FILES["sd15"], 5), theirs, "DPMSolverSDEScheduler")


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


# --- Noise levels that depend on the image's size --------------------------------------------------------------------

FLUX = {
    "_class_name": "FlowMatchEulerDiscreteScheduler",
    "base_image_seq_len": 256,
    "base_shift": 0.5,
    "max_image_seq_len": 4096,
    "max_shift": 1.15,
    "num_train_timesteps": 1000,
    "shift": 3.0,
    "use_dynamic_shifting": True,
}


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        (None, {}),
        (None, {"time_shift_type": "linear"}),
        (None, {"base_shift": 0.3, "max_shift": 0.9, "max_image_seq_len": 8192}),
        ("flow_euler_karras", {}),
        (None, {"shift_terminal": 0.02}),  # Qwen-Image's, which runs in diffusers
        ("flow_euler_beta", {}),
    ],
)
def test_noise_levels_shifted_by_size_are_those_of_the_flux_pipeline(name: str | None, changes: dict) -> None:
    file = FLUX | changes
    scheduler = switched(file, name or file["_class_name"])
    for steps, tokens in ((4, 256), (20, 4096), (9, 6400)):
        shift = calculate_shift(
            tokens, *(file[key] for key in ("base_image_seq_len", "max_image_seq_len", "base_shift", "max_shift"))
        )
        theirs, _ = diffusers_run(scheduler, steps, sigmas=np.linspace(1.0, 1 / steps, steps), mu=shift)
        ours = genpipe_run(name, file, steps, image_tokens=tokens)
        check(ours, theirs, f"{name} with {changes}, {steps} steps, {tokens} tokens")


@pytest.mark.parametrize("changes", [{}, {"shift_terminal": 0.02}])
def test_a_size_that_is_needed_and_not_given_is_asked_for_in_one_line(changes: dict) -> None:
    with pytest.raises(
        ValueError, match=r"by the image's size: give image_tokens, or set use_dynamic_shifting to false"
    ):
        make_sampler(None, FLUX | changes).schedule(4)


def test_sd3s_static_shift_needs_no_size() -> None:
    file = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 3.0}
    for steps in (4, 28):
        theirs, _ = diffusers_run(switched(file, "flow_euler"), steps)
        check(genpipe_run(None, file, steps, image_tokens=4096), theirs, f"SD 3, {steps} steps")

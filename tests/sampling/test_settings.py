"""scheduler_config.json as input: every key has its values, and nothing else is built of it."""

import inspect
import json
import math
from contextlib import suppress
from functools import cache
from typing import Any

import diffusers
import pytest
import torch

from genpipe.sampling.guidance import x0_from_output
from genpipe.sampling.samplers import make_sampler
from genpipe.sampling.settings import KINDS, SIZE_SHIFT, check_settings, size_shift
from tests.sampling.conftest import SCHEDULER_FILES, SeededNoise, diffusers_run, network, switched

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::RuntimeWarning")


@cache
def schedulers() -> dict[str, Any]:
    """Those of diffusers that the adapter runs, with their arguments."""
    found = {}
    for name in dir(diffusers):
        if name.endswith("Scheduler"):
            made = None
            with suppress(Exception):  # it wants arguments, or a package
                made = getattr(diffusers, name)()
            if made is None:
                continue
            if hasattr(made, "alphas_cumprod") or name.startswith("FlowMatch"):
                found[name] = {
                    key: parameter.default
                    for key, parameter in inspect.signature(type(made).__init__).parameters.items()
                    if parameter.kind is parameter.POSITIONAL_OR_KEYWORD and key != "self"
                }
    return found


def test_every_key_that_a_scheduler_takes_has_its_kind_and_takes_the_class_default() -> None:
    taken = schedulers()
    assert len(taken) > 15
    for name, arguments in taken.items():
        for key, default in arguments.items():
            assert key in KINDS, f"{name} takes {key}"
            assert KINDS[key].accepts(default), f"{name}: {key} = {default!r}"


@pytest.mark.parametrize("file", SCHEDULER_FILES)
def test_published_files_are_accepted(file: str) -> None:
    check_settings({key: value for key, value in SCHEDULER_FILES[file].items() if key in KINDS})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"beta_end": []}, r"beta_end must be a number from 1e-06 to 0.999, not \[\]"),
        ({"beta_start": 0}, "beta_start must be a number from 1e-06 to 0.999, not 0"),
        ({"trained_betas": 3}, "trained_betas must be null or a list of 1 to 100000, .* not 3"),
        ({"trained_betas": [math.nan] * 1000}, r"trained_betas must be null or a list .* not \[nan"),
        ({"trained_betas": [0.1]}, "trained_betas holds 1 values for 1000 training timesteps"),
        ({"timestep_scaling": ""}, "timestep_scaling must be a number above 0 up to 1e[+]06, not ''"),
        (
            {"original_inference_steps": 2**64},
            "original_inference_steps must be a whole number from 1 to 100000, not 1844",
        ),
        (
            {"original_inference_steps": 5000},
            "original_inference_steps must be at most num_train_timesteps 1000, not 5000",
        ),
        ({"num_train_timesteps": True}, "num_train_timesteps must be a whole number from 1 to 100000, not True"),
        ({"base_image_seq_len": 4096, "max_image_seq_len": 4096}, "base_image_seq_len and max_image_.* both are 4096"),
    ],
)
def test_an_odd_value_is_named_with_its_file_its_key_and_what_is_allowed(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=rf"^scheduler_config\.json: {message}"):
        check_settings(settings)


def test_a_schedule_that_begins_without_noise_is_refused() -> None:
    with pytest.raises(
        ValueError, match="FlowMatchEulerDiscreteScheduler refuses: it shows the network images without noise"
    ):
        make_sampler(None, SCHEDULER_FILES["flow"] | {"invert_sigmas": True}).schedule(4)


def test_betas_that_leave_nothing_of_an_image_are_refused() -> None:
    for changes in ({"beta_start": 0.9, "beta_end": 0.9}, {"trained_betas": [0.999] * 1000}):
        for name in ("ddim", "unipc"):
            with pytest.raises(ValueError, match=r"its betas leave no signal at timestep \d+"):
                make_sampler(name, SCHEDULER_FILES["sd15"] | changes)


ODD = (
    *(None, True, False, 0, 1, -1, 3, 2**31, 2**64, 10**5000, 0.5, -0.0, 1e308, 1e-320, math.nan, math.inf, -math.inf),
    *("", "8", "linear", "sample", "x" * 100_000, "\x1b[31m\n", "\ud800", [], [1], [[1]], [None] * 5, [0.5] * 1000),
    *({}, {"content": 5}),
)
CLASSES = (
    *("PNDMScheduler", "DDIMScheduler", "EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler"),
    *("HeunDiscreteScheduler", "DPMSolverMultistepScheduler", "LCMScheduler", "FlowMatchEulerDiscreteScheduler"),
    *("UniPCMultistepScheduler", "DDPMScheduler", "TCDScheduler", "SASolverScheduler"),
)


@pytest.mark.parametrize("class_name", CLASSES)
def test_odd_values_are_drawn_with_or_refused_in_one_short_line(class_name: str) -> None:
    taken = schedulers()[class_name]
    flow = class_name.startswith("FlowMatch")
    base = SCHEDULER_FILES["flow"] if flow else SCHEDULER_FILES["sd15"]
    for key in [*taken, "_use_default_values", "_class_name", "_diffusers_version"]:
        for value in ODD:
            try:
                sampler = make_sampler(None, base | {"_class_name": class_name, key: value})
                schedule, noise = sampler.schedule(2, image_tokens=1024), SeededNoise()

                def denoise(x: torch.Tensor, step: Any, kind: str = sampler.prediction_type) -> torch.Tensor:
                    return x0_from_output(network(x, step.timestep), x, step, kind)

                *_, x = sampler.sample(denoise, noise() * schedule.initial_scale, schedule, noise)
            except ValueError as error:
                line = str(error)
                assert line.isprintable() and len(line) <= 400, f"{class_name}, {key}={str(value)[:60]}: {line[:1000]}"
                assert "\n" not in line and line != ""
            else:
                if not x.isfinite().all():  # UniPC's last step may divide by zero, in diffusers too
                    file = base | {"_class_name": class_name, key: value}
                    run, _ = diffusers_run(switched(file, class_name), 2)
                    assert not run[-1][1].isfinite().all(), f"{class_name}, {key}={value!r:.60}"


def test_the_shift_by_size_is_that_of_the_file_and_else_fluxs() -> None:
    assert size_shift({}, 256) == pytest.approx(0.5) and size_shift({}, 4096) == pytest.approx(1.15)
    assert size_shift({"base_shift": 0.3}, 256) == pytest.approx(0.3)
    assert json.loads(json.dumps(SIZE_SHIFT)) == SIZE_SHIFT
    with pytest.raises(ValueError, match="give image_tokens"):
        size_shift({}, None)

"""Any other diffusers scheduler as a `Sampler`. Importing this module imports diffusers.

A scheduler wants the network's raw output where a solver deals in x0, so what was made of the output is undone at the
same step, which returns it exactly up to rounding. Its state may be scaled otherwise than what the network takes; what
is asked and returned is the latter, but for the last x of a whole schedule, which is the state.
"""

import copy
import difflib
import inspect
import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import diffusers
import numpy as np
import torch
from torch import Tensor

from genpipe.messages import one_line, quoted
from genpipe.sampling.guidance import PREDICTION_TYPES, output_from_x0
from genpipe.sampling.sampler import Sampler
from genpipe.sampling.schedule import CLEAN, Schedule, Step
from genpipe.sampling.settings import Settings, check_alphas, check_settings, refuse_zero_snr, size_shift
from genpipe.sampling.solvers import Evaluation, Noise, Solution


@dataclass(frozen=True)
class _SchedulerSchedule(Schedule):
    """A schedule that remembers the scheduler it came from; each run takes a copy of it, since stepping changes it."""

    scheduler: Any = None


def adapted_sampler(name: str, class_name: str, given: Settings) -> Sampler:
    """The sampler that runs `diffusers.<class_name>`, made with those of the `given` settings that it takes.

    Each evaluation of the network is a step of its own. Schedulers that draw noise draw it from `noise.generators`.

    Args:
        name: what the sampler is to be called.

    Raises:
        ValueError: diffusers has no such scheduler or will not make it, or as `refuse_zero_snr`.
    """
    scheduler_class = getattr(diffusers, class_name, None)
    if not isinstance(scheduler_class, type) or not class_name.endswith("Scheduler"):
        known = [known for known in dir(diffusers) if known.endswith("Scheduler")]
        near = difflib.get_close_matches(class_name, known, n=3)
        hint = f": did you mean {' or '.join(near)}?" if near else ""
        raise ValueError(f"diffusers {diffusers.__version__} has no scheduler {quoted(class_name, 60)}{hint}")
    taken = inspect.signature(scheduler_class.__init__).parameters
    settings = {key: value for key, value in given.items() if key in taken}
    check_settings(settings)
    with _as_by_default(class_name):
        scheduler: Any = scheduler_class(**settings)
    flow = class_name.startswith("FlowMatch")
    if not flow and not hasattr(scheduler, "alphas_cumprod"):
        raise ValueError(f"{class_name} is not made for networks trained at discrete timesteps: use another sampler")
    prediction_type = scheduler.config.get("prediction_type", "flow" if flow else "epsilon")
    prediction_type = "flow" if prediction_type == "flow_prediction" else prediction_type
    if prediction_type not in PREDICTION_TYPES:
        raise ValueError(
            f"unknown prediction_type {quoted(prediction_type, 60)}: it must be one of {', '.join(PREDICTION_TYPES)}"
        )
    zero_snr = given.get("rescale_betas_zero_snr") is True
    if zero_snr:
        refuse_zero_snr(class_name, prediction_type, able="rescale_betas_zero_snr" in taken)
    if not flow:
        check_alphas(scheduler.alphas_cumprod.tolist(), zero_snr=zero_snr)

    def make_schedule(steps: int, image_tokens: int | None) -> Schedule:
        timed = copy.deepcopy(scheduler)
        with _as_by_default(class_name):
            timed.set_timesteps(steps, **_size_shift(timed, steps, given, image_tokens))
            return _schedule(timed)

    return Sampler(
        name,
        prediction_type,
        scheduler.config.num_train_timesteps,
        make_schedule,
        partial(_solve, prediction_type=prediction_type),
        order=scheduler.order,
    )


def _size_shift(scheduler: Any, steps: int, given: Settings, image_tokens: int | None) -> dict[str, Any]:
    """What `set_timesteps` wants for a schedule that depends on the image's size, as diffusers' FLUX pipeline gives it."""
    if not scheduler.config.get("use_dynamic_shifting"):
        return {}
    taken = inspect.signature(scheduler.set_timesteps).parameters
    flow = type(scheduler).__name__.startswith("FlowMatch") and "sigmas" in taken
    sigmas = {"sigmas": np.linspace(1.0, 1 / steps, steps)} if flow else {}
    return {"mu": size_shift(given, image_tokens), **sigmas}


def _schedule(scheduler: Any) -> _SchedulerSchedule:
    steps = [_level(scheduler, index) for index in range(len(scheduler.timesteps))]
    if any(step.sigma <= 0 for step in steps):
        raise ValueError("it shows the network images without noise, as for no text-to-image model here: use another")
    initial_scale = float(getattr(scheduler, "init_noise_sigma", 1.0)) * _scale(_at(scheduler, 0), 0)
    return _SchedulerSchedule((*steps, CLEAN), initial_scale, scheduler=scheduler)


def _level(scheduler: Any, index: int) -> Step:
    """The noise level of an evaluation, in the scaling that the network takes: what noising an image there makes of it."""
    time = scheduler.timesteps[index : index + 1]
    probe = _at(scheduler, index)
    noise_as = getattr(probe, "scale_noise", None) or getattr(probe, "add_noise", None)
    # Between the ends of a step of two evaluations a scheduler noises as at one of its ends.
    if noise_as is None or index % scheduler.order:
        squares = getattr(scheduler, "alphas_cumprod", None)
        if squares is None:  # a flow
            sigma = float(time[0]) / scheduler.config.num_train_timesteps
            return Step(float(time[0]), 1 - sigma, sigma)
        square = float(np.interp(float(time[0]), np.arange(len(squares)), squares.numpy()))
        return Step(float(time[0]), math.sqrt(square), math.sqrt(1 - square))
    image, noise = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    noised = noise_as(image, time, noise) if hasattr(probe, "scale_noise") else noise_as(image, noise, time)
    alpha, sigma = (noised[0].double() * _scale(probe, index)).tolist()
    return Step(float(time[0]), alpha, sigma)


def _at(scheduler: Any, index: int) -> Any:
    """A copy of a scheduler whose first step is to be that of evaluation `index`. The copy shares its tables."""
    copied = copy.copy(scheduler)
    if hasattr(copied, "set_begin_index"):
        copied.set_begin_index(index)  # else schedulers look for it by its timestep, which two may share
    return copied


def _scale(scheduler: Any, index: int) -> float:
    """What the network is shown of a state, per unit of the state."""
    return float(_network_input(scheduler, torch.ones(1), scheduler.timesteps[index]))


def _solve(x: Tensor, schedule: Schedule, noise: Noise, *, prediction_type: str) -> Solution:
    assert isinstance(schedule, _SchedulerSchedule)
    scheduler = _at(copy.deepcopy(schedule.scheduler), schedule.before)
    class_name = type(scheduler).__name__
    extra = _step_arguments(scheduler, noise)
    with _as_by_default(class_name):
        state = x / _scale(_at(scheduler, schedule.before), schedule.before)
    times = scheduler.timesteps[schedule.before :]
    for done, step in enumerate(schedule.steps[:-1]):
        with _as_by_default(class_name):
            shown = _network_input(scheduler, state, times[done])
        x, x0 = yield Evaluation(shown, step, done)
        with _as_by_default(class_name):
            if x is not shown:
                state = x / _network_input(scheduler, torch.ones(1, device=x.device), times[done])
            output = output_from_x0(x0, x, step, prediction_type)
            state = scheduler.step(output, times[done], state, **extra).prev_sample
    if schedule.after:
        with _as_by_default(class_name):
            return _network_input(scheduler, state, times[len(schedule.steps) - 1])
    return state


def _step_arguments(scheduler: Any, noise: Noise) -> dict[str, Any]:
    """What `StableDiffusionPipeline` gives each step beside the output, the timestep and the state."""
    taken = inspect.signature(scheduler.step).parameters
    if hasattr(scheduler, "noise_sampler_seed") and scheduler.noise_sampler_seed is None:
        # DPMSolverSDEScheduler would take a seed for the whole batch from torch's global generator.
        scheduler.noise_sampler_seed = [generator.initial_seed() for generator in noise.generators]
    return {
        **({"generator": list(noise.generators)} if "generator" in taken else {}),
        **({"eta": 0.0} if "eta" in taken else {}),  # TCDScheduler's own default is 0.3
    }


def _network_input(scheduler: Any, state: Tensor, timestep: Tensor) -> Tensor:
    return scheduler.scale_model_input(state, timestep) if hasattr(scheduler, "scale_model_input") else state


@contextmanager
def _as_by_default(class_name: str) -> Iterator[None]:
    """Run diffusers' code as if nobody had changed torch's default dtype and device, which its tensors depend on.

    Raises:
        ValueError: instead of whatever else it raises, in one line that names the class.
    """
    dtype = torch.get_default_dtype()
    with ExitStack() as stack:
        if dtype != torch.float32:
            torch.set_default_dtype(torch.float32)
            stack.callback(torch.set_default_dtype, dtype)
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        try:
            yield
        except (
            ArithmeticError,
            AssertionError,
            AttributeError,
            ImportError,
            LookupError,
            NotImplementedError,
        ) as error:
            raise _refused(class_name, error) from error
        except (TypeError, ValueError) as error:
            raise _refused(class_name, error) from error


def _refused(class_name: str, error: Exception) -> ValueError:
    return ValueError(f"{class_name} refuses: {one_line(str(error), 250)}")

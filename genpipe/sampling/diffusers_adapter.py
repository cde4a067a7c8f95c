"""Any other diffusers scheduler, by its class name, as a `Sampler`. Importing this module imports diffusers.

A scheduler wants the network's raw output where a sampler deals in x0, so what `denoise` made of the output is undone at
the same step, which returns it exactly up to rounding. Its state may be scaled otherwise than what the network takes;
what is yielded is the latter, until the last.
"""

import copy
import difflib
import inspect
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import diffusers
import numpy as np
import torch
from torch import Tensor

from genpipe.sampling.guidance import PREDICTION_TYPES, output_from_x0
from genpipe.sampling.sampler import Sampler
from genpipe.sampling.schedule import Schedule, Step
from genpipe.sampling.settings import Settings, refuse_zero_snr
from genpipe.sampling.solvers import Denoise, Noise


@dataclass(frozen=True)
class _SchedulerSchedule(Schedule):
    """A schedule that remembers the scheduler it came from; each run takes a copy of it, since stepping changes it."""

    scheduler: Any = None


def adapted_sampler(class_name: str, given: Settings) -> Sampler:
    """The sampler that runs `diffusers.<class_name>`, made with those of the `given` settings that it takes.

    It yields once for each evaluation of the network. Schedulers that draw noise draw it from `noise.generators`.

    Raises ValueError if diffusers has no such scheduler or will not make it, or as `refuse_zero_snr`.
    """
    scheduler_class = getattr(diffusers, class_name, None)
    if not isinstance(scheduler_class, type) or not class_name.endswith("Scheduler"):
        known = [name for name in dir(diffusers) if name.endswith("Scheduler")]
        near = difflib.get_close_matches(class_name, known, n=3)
        hint = f": did you mean {' or '.join(near)}?" if near else ""
        raise ValueError(f"diffusers {diffusers.__version__} has no scheduler {class_name!r:.60}{hint}")
    taken = inspect.signature(scheduler_class.__init__).parameters
    with _one_line_errors(class_name):
        scheduler: Any = scheduler_class(**{key: value for key, value in given.items() if key in taken})
    flow = class_name.startswith("FlowMatch")
    if not flow and not hasattr(scheduler, "alphas_cumprod"):
        raise ValueError(f"{class_name} is not made for networks trained at discrete timesteps: use another sampler")
    prediction_type = scheduler.config.get("prediction_type", "flow" if flow else "epsilon")
    prediction_type = "flow" if prediction_type == "flow_prediction" else prediction_type
    if prediction_type not in PREDICTION_TYPES:
        raise ValueError(
            f"unknown prediction_type {prediction_type!r}: it must be one of {', '.join(PREDICTION_TYPES)}"
        )
    if given.get("rescale_betas_zero_snr"):
        refuse_zero_snr(class_name, prediction_type, able="rescale_betas_zero_snr" in taken)

    def make_schedule(steps: int) -> Schedule:
        timed = copy.deepcopy(scheduler)
        with _one_line_errors(class_name):
            timed.set_timesteps(steps)
        return _schedule(timed, prediction_type)

    def sample(denoise: Denoise, x: Tensor, schedule: Schedule, noise: Noise) -> Iterator[Tensor]:
        return _sample(denoise, x, schedule, noise, prediction_type)

    return Sampler(class_name, prediction_type, scheduler.config.num_train_timesteps, make_schedule, sample)


def _schedule(scheduler: Any, prediction_type: str) -> _SchedulerSchedule:
    train_steps = scheduler.config.num_train_timesteps
    times = [float(t) for t in scheduler.timesteps]
    if prediction_type == "flow":
        sigmas = [max(t, 1.0) / train_steps for t in times]
        steps = [Step(t, 1 - sigma, sigma) for t, sigma in zip(times, sigmas, strict=True)]
    else:
        squares = np.interp(times, np.arange(train_steps), scheduler.alphas_cumprod.numpy()).tolist()
        steps = [Step(t, math.sqrt(s), math.sqrt(1 - s)) for t, s in zip(times, squares, strict=True)]
    unit = torch.ones(1) * _start_scale(scheduler)
    initial_scale = float(_network_input(copy.deepcopy(scheduler), unit, scheduler.timesteps[0]))
    return _SchedulerSchedule((*steps, Step(0.0, 1.0, 0.0)), initial_scale, scheduler=scheduler)


def _sample(denoise: Denoise, x: Tensor, schedule: Schedule, noise: Noise, prediction_type: str) -> Iterator[Tensor]:
    assert isinstance(schedule, _SchedulerSchedule)
    scheduler = copy.deepcopy(schedule.scheduler)
    drawing = "generator" in inspect.signature(scheduler.step).parameters
    extra = {"generator": list(noise.generators)} if drawing else {}
    state = x * (_start_scale(scheduler) / schedule.initial_scale)
    for i, (t, step) in enumerate(zip(scheduler.timesteps, schedule.steps, strict=False)):
        x = _network_input(scheduler, state, t)
        if i > 0:
            yield x
        output = output_from_x0(denoise(x, step), x, step, prediction_type)
        with _one_line_errors(type(scheduler).__name__):
            state = scheduler.step(output, t, state, **extra).prev_sample
    yield state


def _start_scale(scheduler: Any) -> float:
    return float(getattr(scheduler, "init_noise_sigma", 1.0))


def _network_input(scheduler: Any, state: Tensor, timestep: Tensor) -> Tensor:
    return scheduler.scale_model_input(state, timestep) if hasattr(scheduler, "scale_model_input") else state


@contextmanager
def _one_line_errors(class_name: str) -> Iterator[None]:
    try:
        yield
    except (ImportError, NotImplementedError, ValueError) as error:
        raise ValueError(f"{class_name} refuses: {' '.join(str(error).split())}") from error

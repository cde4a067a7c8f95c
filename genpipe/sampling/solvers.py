"""Solvers: generators that carry x down a schedule and yield it after every step; the last one yielded is clean.

Each takes `denoise(x, step) -> x0`, the first x, a `Schedule` and `noise() -> Tensor`, unit normal noise shaped like x.
x is in the variance-preserving scaling that the network takes, x = alpha * x0 + sigma * eps, and should be float32
whatever the network runs in. Coefficients are Python floats, so no step waits for the device. Nothing is kept between
calls.

The solvers that diffusers runs on x / alpha (Euler, Heun) are written here for x itself; the algebra is the same.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor

from genpipe.sampling.guidance import output_from_x0, x0_from_output
from genpipe.sampling.schedule import Schedule, Step

Denoise = Callable[[Tensor, Step], Tensor]


class Noise(Protocol):
    """Where ancestral solvers draw from. `generators`, one a picture, is what diffusers' own schedulers draw from."""

    @property
    def generators(self) -> Sequence[torch.Generator]: ...

    def __call__(self) -> Tensor: ...


def _toward(x: Tensor, x0: Tensor, source: Step, target: Step) -> Tensor:
    """x at another level, holding x0 and the noise that x0 implies."""
    kept = target.sigma / source.sigma
    return kept * x + (target.alpha - kept * source.alpha) * x0


def ddim(denoise: Denoise, x: Tensor, schedule: Schedule, noise: Noise) -> Iterator[Tensor]:
    """DDIM with eta = 0 (arXiv 2010.02502, eq. 12)."""
    for step, (source, target) in zip(schedule.steps, schedule.moves, strict=False):
        x = _toward(x, denoise(x, step), source, target)
        yield x


def euler(denoise: Denoise, x: Tensor, schedule: Schedule, noise: Noise) -> Iterator[Tensor]:
    """Euler's method on the probability-flow ODE in sigma / alpha (arXiv 2206.00364), and on a rectified flow.

    Both are DDIM's step: it is exact wherever x0 stays put, in any scaling of x.
    """
    for step, following in pairwise(schedule.steps):
        x = _toward(x, denoise(x, step), step, following)
        yield x


def euler_a(denoise: Denoise, x: Tensor, schedule: Schedule, noise: Noise) -> Iterator[Tensor]:
    """Euler's method to below the next noise level, and fresh noise up to it (k-diffusion's euler_ancestral)."""
    for step, following in pairwise(schedule.steps):
        down = following.ratio**2 / step.ratio
        up = math.sqrt(max(following.ratio**2 - down**2, 0.0))
        x = _toward(x, denoise(x, step), step, Step(following.timestep, following.alpha, following.alpha * down))
        x = x + following.alpha * up * noise()
        yield x


def heun(denoise: Denoise, x: Tensor, schedule: Schedule, noise: Noise) -> Iterator[Tensor]:
    """Heun's second-order method (arXiv 2206.00364, algorithm 1): two evaluations a step, and one for the last."""
    for step, following in pairwise(schedule.steps):
        x0 = denoise(x, step)
        x = _toward(x, x0, step, following)
        if following.sigma > 0:
            # The mean of the slopes at both ends differs from the first slope by this multiple of how far x0 moved.
            gain = (step.ratio / following.ratio - 1) / 2
            x = x + following.alpha * gain * (denoise(x, following) - x0)
        yield x


# Oldest first, by the number of outputs there are.
_ADAMS_BASHFORTH = {2: (-1 / 2, 3 / 2), 3: (5 / 12, -16 / 12, 23 / 12), 4: (-9 / 24, 37 / 24, -59 / 24, 55 / 24)}


def pndm(
    denoise: Denoise, x: Tensor, schedule: Schedule, noise: Noise, *, prediction_type: str = "epsilon"
) -> Iterator[Tensor]:
    """Pseudo linear multistep, PLMS (arXiv 2202.09778): Adams-Bashforth over the network's outputs.

    The first step is taken, evaluated and taken again, so n steps make n + 1 evaluations (one step makes one).
    prediction_type: what the network puts out, which is what the formula mixes, as in diffusers. Of v_prediction that
        costs it its order: 1 where epsilon has 2.
    """

    def output(x: Tensor, step: Step) -> Tensor:
        return output_from_x0(denoise(x, step), x, step, prediction_type)

    def move(x: Tensor, output: Tensor, source: Step, target: Step) -> Tensor:
        return _toward(x, x0_from_output(output, x, source, prediction_type), source, target)

    steps, moves = schedule.steps[:-1], schedule.moves
    outputs = [output(x, steps[0])]
    ahead = move(x, outputs[0], *moves[0])
    if len(steps) > 1:
        ahead = move(x, (outputs[0] + output(ahead, steps[1])) / 2, *moves[1])
    yield ahead
    x = ahead
    for step, (source, target) in zip(steps[1:], moves[2:], strict=True):
        outputs = [*outputs[-3:], output(x, step)]
        weights = _ADAMS_BASHFORTH[len(outputs)]
        mixed = torch.stack([w * o for w, o in zip(weights, outputs, strict=True)]).sum(0)
        x = move(x, mixed, source, target)
        yield x


def dpmpp_2m(
    denoise: Denoise,
    x: Tensor,
    schedule: Schedule,
    noise: Noise,
    *,
    stochastic: bool = False,
    lower_order_final: bool = True,
    euler_at_final: bool = False,
) -> Iterator[Tensor]:
    """DPM-Solver++(2M) (arXiv 2211.01095, algorithm 2), midpoint; `stochastic`: SDE-DPM-Solver++(2M) (its section 5).

    lower_order_final: the last of fewer than 15 steps is first order. It always is where the schedule ends at sigma 0.
    euler_at_final: the last step is first order, however many there are.
    """
    steps, count = schedule.steps, len(schedule.steps) - 1
    first_order_end = euler_at_final or (lower_order_final and count < 15) or steps[-1].sigma == 0
    previous = h_previous = None
    for i, (step, following) in enumerate(pairwise(steps)):
        x0 = denoise(x, step)
        shrink = following.ratio / step.ratio  # exp(-h), h being the step in log(alpha / sigma)
        aim = x0
        if previous is not None and h_previous is not None and not (i == count - 1 and first_order_end):
            # The slope of x0 over the last step, carried to the middle of this one.
            aim = x0 + (-math.log(shrink) / h_previous / 2) * (x0 - previous)
        damping = shrink if stochastic else 1.0
        kept = following.sigma / step.sigma * damping
        x = kept * x + following.alpha * (1 - shrink * damping) * aim
        if stochastic:
            x = x + following.sigma * math.sqrt(max(1 - shrink**2, 0.0)) * noise()
        yield x
        previous, h_previous = x0, -math.log(shrink) if shrink > 0 else math.inf


def lcm(
    denoise: Denoise, x: Tensor, schedule: Schedule, noise: Noise, *, timestep_scaling: float = 10.0
) -> Iterator[Tensor]:
    """Multistep consistency sampling (arXiv 2310.04378, algorithm 3): a picture, fresh noise upon it, and again."""
    data_deviation = 0.5
    for i, (step, following) in enumerate(pairwise(schedule.steps)):
        time = step.timestep * timestep_scaling
        skip = data_deviation**2 / (time**2 + data_deviation**2)
        out = time / math.sqrt(time**2 + data_deviation**2)
        x = out * denoise(x, step) + skip * x
        if i < len(schedule.steps) - 2:
            x = following.alpha * x + following.sigma * noise()
        yield x

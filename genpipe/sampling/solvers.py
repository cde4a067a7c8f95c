"""Solvers: generators that carry x down a schedule, asking for each evaluation of the network that they need.

Each takes the first x, a `Schedule` and `noise() -> Tensor`, unit normal noise shaped like x. It yields an `Evaluation`
and wants (x, x0) sent back: the x that was evaluated, which is the one asked for unless whoever runs the solver put another
in its place, and the clean latents x0 that the network made of it. It returns the last x.

x is in the variance-preserving scaling that the network takes, x = alpha * x0 + sigma * eps, and should be float32
whatever the network runs in. Coefficients are Python floats, so no step waits for the device. Nothing is kept between
runs.

The solvers that diffusers runs on x / alpha (Euler, Heun) are written here for x itself; the algebra is the same.
"""

import math
from collections.abc import Generator, Sequence
from itertools import pairwise
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from genpipe.sampling.guidance import output_from_x0, x0_from_output
from genpipe.sampling.schedule import Schedule, Step


class Noise(Protocol):
    """Where stochastic solvers draw from. `generators`, one per image, is what diffusers' own schedulers draw from."""

    @property
    def generators(self) -> Sequence[torch.Generator]: ...

    def __call__(self) -> Tensor: ...


class Evaluation(NamedTuple):
    """What a solver asks of the network.

    Attributes:
        x: (B, C, H, W).
        step: the level that it is at.
        done: how many solver steps are finished; x is what the last of them made, except where a step takes two
            evaluations and this is the second.
    """

    x: Tensor
    step: Step
    done: int


Solution = Generator[Evaluation, tuple[Tensor, Tensor], Tensor]


def _toward(x: Tensor, x0: Tensor, source: Step, target: Step) -> Tensor:
    """x at another level, holding x0 and the noise that x0 implies."""
    kept = target.sigma / source.sigma
    return kept * x + (target.alpha - kept * source.alpha) * x0


def ddim(x: Tensor, schedule: Schedule, noise: Noise) -> Solution:
    """DDIM with eta = 0 (arXiv 2010.02502, eq. 12)."""
    for done, (step, (source, target)) in enumerate(zip(schedule.steps, schedule.moves, strict=False)):
        x, x0 = yield Evaluation(x, step, done)
        x = _toward(x, x0, source, target)
    return x


def euler(x: Tensor, schedule: Schedule, noise: Noise) -> Solution:
    """Euler's method on the probability-flow ODE in sigma / alpha (arXiv 2206.00364), and on a rectified flow.

    Both are DDIM's step: it is exact wherever x0 stays put, in any scaling of x.
    """
    for done, (step, following) in enumerate(pairwise(schedule.steps)):
        x, x0 = yield Evaluation(x, step, done)
        x = _toward(x, x0, step, following)
    return x


def euler_a(x: Tensor, schedule: Schedule, noise: Noise) -> Solution:
    """Euler's method to below the next noise level, and fresh noise up to it (k-diffusion's euler_ancestral)."""
    for done, (step, following) in enumerate(pairwise(schedule.steps)):
        down = following.ratio**2 / step.ratio
        up = math.sqrt(max(following.ratio**2 - down**2, 0.0))
        x, x0 = yield Evaluation(x, step, done)
        x = _toward(x, x0, step, Step(following.timestep, following.alpha, following.alpha * down))
        x = x + following.alpha * up * noise()
    return x


def heun(x: Tensor, schedule: Schedule, noise: Noise) -> Solution:
    """Heun's second-order method (arXiv 2206.00364, algorithm 1): two evaluations per step, and one for the last."""
    for done, (step, following) in enumerate(pairwise(schedule.steps)):
        x, x0 = yield Evaluation(x, step, done)
        x = _toward(x, x0, step, following)
        if following.sigma > 0:
            x, later = yield Evaluation(x, following, done)
            # The mean of the slopes at both ends differs from the first slope by this multiple of how far x0 moved.
            gain = (step.ratio / following.ratio - 1) / 2
            x = x + following.alpha * gain * (later - x0)
    return x


# Oldest first, by the number of outputs there are.
_ADAMS_BASHFORTH = {
    1: (1.0,),
    2: (-1 / 2, 3 / 2),
    3: (5 / 12, -16 / 12, 23 / 12),
    4: (-9 / 24, 37 / 24, -59 / 24, 55 / 24),
}


def pndm(x: Tensor, schedule: Schedule, noise: Noise, *, prediction_type: str = "epsilon") -> Solution:
    """Pseudo linear multistep, PLMS (arXiv 2202.09778): Adams-Bashforth over the network's outputs.

    The first step is taken, evaluated and taken again, so n steps make n + 1 evaluations (one step makes one).

    Args:
        prediction_type: what the network puts out, which is what the formula mixes, as in diffusers. Of v_prediction
            that costs it its order: 1 where epsilon has 2.
    """
    steps, evaluated = schedule.steps, schedule.evaluated
    again = len(evaluated) - (len(steps) - 1)  # whether the second evaluation belongs to the first step
    first, outputs = x, []
    for count, index in enumerate(evaluated):
        step = steps[index]
        x, x0 = yield Evaluation(x, step, max(0, count - again))
        output = output_from_x0(x0, x, step, prediction_type)
        if count == 1:
            x, mixed, (source, target) = first, (outputs[0] + output) / 2, schedule.retries[index]
        else:
            outputs = [*outputs[-3:], output]
            weights = _ADAMS_BASHFORTH[len(outputs)]
            mixed = torch.stack([w * o for w, o in zip(weights, outputs, strict=True)]).sum(0)
            source, target = schedule.moves[index]
        x = _toward(x, x0_from_output(mixed, x, source, prediction_type), source, target)
    return x


def dpmpp_2m(
    x: Tensor,
    schedule: Schedule,
    noise: Noise,
    *,
    stochastic: bool = False,
    lower_order_final: bool = True,
    euler_at_final: bool = False,
) -> Solution:
    """DPM-Solver++(2M) (arXiv 2211.01095, algorithm 2), midpoint; `stochastic`: SDE-DPM-Solver++(2M) (its section 5).

    Args:
        lower_order_final: the last of fewer than 15 steps is first order. It always is where the schedule ends at
            sigma 0.
        euler_at_final: the last step is first order, however many there are.
    """
    steps, whole = schedule.steps, schedule.whole
    first_order_end = euler_at_final or (lower_order_final and whole < 15) or steps[-1].sigma == 0
    previous = h_previous = None
    for done, (step, following) in enumerate(pairwise(steps)):
        x, x0 = yield Evaluation(x, step, done)
        shrink = following.ratio / step.ratio  # exp(-h), h being the step in log(alpha / sigma)
        aim = x0
        final = schedule.before + done == whole - 1
        if previous is not None and h_previous is not None and not (final and first_order_end):
            # The slope of x0 over the last step, carried to the middle of this one.
            aim = x0 + (-math.log(shrink) / h_previous / 2) * (x0 - previous)
        damping = shrink if stochastic else 1.0
        kept = following.sigma / step.sigma * damping
        x = kept * x + following.alpha * (1 - shrink * damping) * aim
        if stochastic:
            x = x + following.sigma * math.sqrt(max(1 - shrink**2, 0.0)) * noise()
        previous, h_previous = x0, -math.log(shrink) if shrink > 0 else math.inf
    return x


def lcm(x: Tensor, schedule: Schedule, noise: Noise, *, timestep_scaling: float = 10.0) -> Solution:
    """Multistep consistency sampling (arXiv 2310.04378, algorithm 3): an image, fresh noise upon it, and again."""
    data_deviation = 0.5
    for done, (step, following) in enumerate(pairwise(schedule.steps)):
        time = step.timestep * timestep_scaling
        skip = data_deviation**2 / (time**2 + data_deviation**2)
        out = time / math.sqrt(time**2 + data_deviation**2)
        x, x0 = yield Evaluation(x, step, done)
        x = out * x0 + skip * x
        if schedule.before + done < schedule.whole - 1:
            x = following.noised(x, noise())
    return x

"""Solvers against the closed form: data that is one Gaussian, for which the best denoiser and the ODE are known exactly."""

import math
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from genpipe.sampling import solvers
from genpipe.sampling.sampler import Sampler
from genpipe.sampling.schedule import Schedule, Step
from genpipe.sampling.solvers import Solution

MEAN, DEVIATION = 0.7, 0.4

Solver = Callable[..., Solution]


class _Noise:
    def __init__(self, size: int) -> None:
        self.generators = [torch.Generator().manual_seed(0)]
        self.size = size

    def __call__(self) -> Tensor:
        return torch.randn(self.size, generator=self.generators[0], dtype=torch.float64)


def _spread(step: Step) -> float:
    """The standard deviation of x at this level."""
    return math.hypot(step.alpha * DEVIATION, step.sigma)


def _expected_x0(x: Tensor, step: Step) -> Tensor:
    gain = step.alpha * DEVIATION**2 / _spread(step) ** 2
    return MEAN + gain * (x - step.alpha * MEAN)


def _levels(steps: int, end: float, flow: bool = False) -> Schedule:
    """Levels evenly spaced in angle (or, of a flow, in sigma) from nearly pure noise to `end`."""
    positions = [1.0 + (end - 1.0) * i / steps for i in range(steps + 1)]
    levels = [Step(p, 1 - p, p) if flow else Step(p, math.cos(1.5 * p), math.sin(1.5 * p)) for p in positions]
    return Schedule(tuple(levels))


def _last(solver: Solver, denoise: Any, schedule: Schedule, z: Tensor) -> Tensor:
    first = schedule.steps[0]
    x = first.alpha * MEAN + _spread(first) * z
    return list(_sampled(solver, denoise, x, schedule))[-1]


def _sampled(solver: Solver, denoise: Any, x: Tensor, schedule: Schedule) -> Iterator[Tensor]:
    sampler = Sampler("any", "epsilon", 1000, lambda steps, image_tokens: schedule, solver)
    return sampler.sample(denoise, x, schedule, _Noise(len(x)))


def _with_moves(solver: Solver, **more: Any) -> Solver:
    """The solver on a schedule whose moves lead from level to level."""

    def solve(x: Tensor, schedule: Schedule, noise: Any) -> Solution:
        moves = tuple(pairwise(schedule.steps))
        evaluations = (0, 1, *range(1, len(moves)))
        retries = (moves[0], *moves[:-1])
        if solver is solvers.ddim:
            evaluations = retries = ()
        return solver(x, Schedule(schedule.steps, moves=moves, retries=retries, evaluations=evaluations), noise, **more)

    return solve


DDIM, PNDM = _with_moves(solvers.ddim), _with_moves(solvers.pndm)


@pytest.mark.parametrize(
    ("solver", "flow", "order"),
    [
        (DDIM, False, 1),
        (solvers.euler, False, 1),
        (solvers.euler, True, 1),
        (solvers.heun, False, 2),
        (partial(solvers.dpmpp_2m, lower_order_final=False), False, 2),
        (PNDM, False, 2),
        # diffusers mixes v as it mixes eps, and v turns with the level: it costs PLMS its order. Parity keeps it.
        (_with_moves(solvers.pndm, prediction_type="v_prediction"), False, 1),
    ],
)
def test_ode_solvers_reach_the_exact_solution_at_their_order(solver: Solver, flow: bool, order: int) -> None:
    z = torch.linspace(-2, 2, 9, dtype=torch.float64)
    errors = []
    for steps in (40, 80, 160):
        schedule = _levels(steps, end=0.1, flow=flow)
        exact = schedule.steps[-1].alpha * MEAN + _spread(schedule.steps[-1]) * z
        errors.append((_last(solver, _expected_x0, schedule, z) - exact).abs().max().item())
    orders = [math.log2(coarse / fine) for coarse, fine in pairwise(errors)]
    assert errors[-1] < 0.02
    assert all(abs(measured - order) < 0.35 for measured in orders), f"errors {errors}, orders {orders}"


@pytest.mark.parametrize("solver", [solvers.euler_a, partial(solvers.dpmpp_2m, stochastic=True)])
def test_stochastic_solvers_end_on_the_data_distribution(solver: Solver) -> None:
    z = torch.randn(20_000, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    x = _last(solver, _expected_x0, _levels(600, end=0.0), z)
    assert x.mean().item() == pytest.approx(MEAN, abs=0.01)
    assert x.std().item() == pytest.approx(DEVIATION, rel=0.02)


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_lcm_with_a_perfect_consistency_model_ends_on_the_data_distribution(steps: int) -> None:
    def consistency(x: Tensor, step: Step) -> Tensor:  # the ODE's own end point
        return MEAN + DEVIATION * (x - step.alpha * MEAN) / _spread(step)

    z = torch.randn(40_000, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    x = _last(partial(solvers.lcm, timestep_scaling=1e4), consistency, _levels(steps, end=0.0), z)
    assert x.mean().item() == pytest.approx(MEAN, abs=0.01)
    assert x.std().item() == pytest.approx(DEVIATION, rel=0.02)


@pytest.mark.parametrize("solver", [DDIM, solvers.euler, solvers.heun, solvers.dpmpp_2m, PNDM])
def test_a_denoiser_that_is_sure_is_followed_to_the_end(solver: Solver) -> None:
    target = torch.linspace(-3, 3, 9, dtype=torch.float64)
    x = _last(solver, lambda x, step: target, _levels(6, end=0.0), torch.ones_like(target))
    torch.testing.assert_close(x, target, rtol=0, atol=1e-12)


@pytest.mark.parametrize("solver", [DDIM, solvers.euler, solvers.dpmpp_2m])
def test_a_start_at_alpha_zero_stays_finite(solver: Solver) -> None:
    levels = _levels(5, end=0.0)
    first = Step(1.0, 0.0 if solver is not solvers.dpmpp_2m else 2.0**-12, 1.0)
    schedule = Schedule((first, *levels.steps[1:]))
    x = _last(solver, _expected_x0, schedule, torch.ones(3, dtype=torch.float64))
    assert x.isfinite().all()


def test_a_run_can_be_stopped_and_solvers_keep_nothing_between_runs() -> None:
    schedule, z = _levels(8, end=0.0), torch.ones(3, dtype=torch.float64)
    whole = list(_sampled(solvers.dpmpp_2m, _expected_x0, z, schedule))
    stopped = _sampled(solvers.dpmpp_2m, _expected_x0, z, schedule)
    assert torch.equal(next(stopped), whole[0])
    stopped.close()  # type: ignore[attr-defined]
    again = list(_sampled(solvers.dpmpp_2m, _expected_x0, z, schedule))
    assert len(whole) == 8 and all(torch.equal(a, b) for a, b in zip(whole, again, strict=True))

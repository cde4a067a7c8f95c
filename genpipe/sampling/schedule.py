"""Schedules: the noise levels of one sampling run, in the form in which their solvers see noise."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor

from genpipe.sampling.levels import respaced_sigmas, sigma_table, timesteps_of_sigmas


@dataclass(frozen=True)
class Step:
    """One noise level: x = alpha * x0 + sigma * eps, and the timestep that tells the network of it."""

    timestep: float
    alpha: float
    sigma: float

    @property
    def ratio(self) -> float:
        """sigma / alpha: the noise per unit of signal. Infinite where alpha is 0."""
        return self.sigma / self.alpha if self.alpha else math.inf

    def noised(self, x0: Tensor, noise: Tensor) -> Tensor:
        """Clean latents (B, C, h, w) brought to this level by unit noise of the same shape."""
        return self.alpha * x0 + self.sigma * noise


CLEAN = Step(0.0, 1.0, 0.0)


@dataclass(frozen=True)
class Schedule:
    """The noise levels of one run, from the noisiest to the last. Its x is in the scaling that the network takes.

    Attributes:
        steps: one level for each solver step, and the one at which the last of them arrives: a run yields
            `len(steps) - 1` times.
        initial_scale: what unit noise is multiplied by to become the first x, for an image made from noise alone.
        moves: only for ddim and pndm: the (from, to) levels between which each step takes x. They count back a fixed
            number of training timesteps, which may miss the next step by a little.
        retries: only for pndm: the (from, to) levels of the step before, taken again.
        evaluations: for each evaluation of the network the index in `steps` of the level that it is made at; () where
            there is one for each solver step.
        before, after: how many solver steps of the whole schedule this part leaves out at either end.
    """

    steps: tuple[Step, ...]
    initial_scale: float = 1.0
    moves: tuple[tuple[Step, Step], ...] = ()
    retries: tuple[tuple[Step, Step], ...] = ()
    evaluations: tuple[int, ...] = ()
    before: int = 0
    after: int = 0

    @property
    def evaluated(self) -> Sequence[int]:
        """`evaluations`, spelled out."""
        return self.evaluations or range(len(self.steps) - 1)

    @property
    def whole(self) -> int:
        """How many solver steps the whole schedule has that this is a part of."""
        return self.before + len(self.steps) - 1 + self.after

    def part(self, start: int, stop: int) -> "Schedule":
        """The part from evaluation `start` to before evaluation `stop`; neither may divide a step of two evaluations.

        pndm's evaluations are cut as in diffusers' pipelines. Its second one repeats a step, so a run that begins later
        than at the second evaluation makes one more evaluation than it has noise to remove, as it does there.
        """
        evaluated = self.evaluated
        low = evaluated[start]
        high = evaluated[stop] if stop < len(evaluated) else len(self.steps) - 1
        return replace(
            self,
            steps=self.steps[low : high + 1],
            moves=self.moves[low:high],
            retries=self.retries[low:high],
            evaluations=tuple(index - low for index in evaluated[start:stop]),
            before=self.before + low,
            after=self.after + len(self.steps) - 1 - high,
        )


# --- Schedules, by the way their solvers see noise -------------------------------------------------------------------


def discrete_schedule(
    alphas_squared: Sequence[float], timesteps: Sequence[float], *, end_at_one: bool, plms: bool = False
) -> Schedule:
    """The schedule of ddim and pndm: whole timesteps, each step going back len(alphas_squared) // steps of them.

    Args:
        alphas_squared: at every training timestep.
        end_at_one: what lies before timestep 0 is a clean image; otherwise it is timestep 0 itself.
        plms: make the second evaluation of pndm, which takes the first step again.
    """
    final = 1.0 if end_at_one else alphas_squared[0]

    def at(timestep: float) -> Step:
        square = alphas_squared[int(timestep)] if timestep >= 0 else final
        return Step(timestep, square**0.5, (1 - square) ** 0.5)

    stride = len(alphas_squared) // len(timesteps)
    moves = tuple((at(t), at(t - stride)) for t in timesteps)
    steps = (*map(at, timesteps), moves[-1][1])
    if not plms or len(timesteps) == 1:
        return Schedule(steps, moves=moves)
    # Nothing comes before the first step that could be taken again.
    retries = (moves[0], *((at(t + stride), at(t)) for t in timesteps[1:]))
    return Schedule(steps, moves=moves, retries=retries, evaluations=(0, 1, *range(1, len(timesteps))))


def consistency_schedule(alphas_squared: Sequence[float], timesteps: Sequence[float]) -> Schedule:
    """The schedule of lcm: whole timesteps, then the clean image."""
    squares = [alphas_squared[int(t)] for t in timesteps]
    steps = [Step(t, square**0.5, (1 - square) ** 0.5) for t, square in zip(timesteps, squares, strict=True)]
    return Schedule((*steps, CLEAN))


def sigma_schedule(
    alphas_squared: Sequence[float],
    timesteps: Sequence[float],
    *,
    respacing: str | None = None,
    end_at_lowest: bool = False,
    unit_start: bool = False,
    pairs: bool = False,
) -> Schedule:
    """The schedule of euler, euler_a and heun, which think in sigma / alpha.

    Args:
        alphas_squared: at every training timestep.
        respacing: "karras" or "exponential" sigmas between those of the first and the last timestep.
        end_at_lowest: stop at the lowest training sigma, not at 0.
        unit_start: the first x has the variance of noise plus an image of variance 1, not of the noise alone.
        pairs: each step but the last evaluates the network at both its ends (heun).
    """
    table = sigma_table(alphas_squared)
    times = list(timesteps)
    sigmas = np.interp(times, np.arange(len(table)), table).tolist()
    if respacing is not None:
        sigmas = respaced_sigmas(respacing, sigmas[0], sigmas[-1], len(sigmas))
        times = timesteps_of_sigmas(sigmas, table)
    steps = [_level(t, s) for t, s in zip(_float32(times), _float32(sigmas), strict=True)]
    # These solvers hand their last x over unscaled, hence alpha = 1 even if some noise is left.
    end = Step(0.0, 1.0, float(table[0]) if end_at_lowest else 0.0)
    return Schedule(
        (*steps, end),
        initial_scale=1.0 if unit_start else steps[0].sigma,
        evaluations=(0, *(i for i in range(1, len(steps)) for _ in range(2))) if pairs else (),
    )


def dpm_schedule(
    alphas_squared: Sequence[float],
    timesteps: Sequence[float],
    *,
    respacing: str | None = None,
    end_at_lowest: bool = False,
    nearest: bool = True,
) -> Schedule:
    """The schedule of dpmpp_2m and dpmpp_2m_sde.

    Args:
        alphas_squared: at every training timestep.
        respacing: "karras" or "exponential" sigmas between the highest and the lowest of training.
        end_at_lowest: stop at the lowest training sigma, not at 0.
        nearest: round the timesteps of Karras sigmas to the nearest whole one; otherwise downwards, as those of
            exponential sigmas are.
    """
    table = sigma_table(alphas_squared)
    times = list(timesteps)
    sigmas = np.interp(times, np.arange(len(table)), table).tolist()
    if respacing is not None:
        sigmas = respaced_sigmas(respacing, float(table[-1]), float(table[0]), len(times))
        times = timesteps_of_sigmas(sigmas, table)
        whole = round if respacing == "karras" and nearest else int
        times = [float(whole(t)) for t in times]
    steps = [_level(t, s) for t, s in zip(times, _float32(sigmas), strict=True)]
    return Schedule((*steps, _level(0.0, float(table[0]) if end_at_lowest else 0.0)))


def flow_schedule(sigmas: Sequence[float], train_steps: int, *, respacing: str | None = None) -> Schedule:
    """The schedule of flow_euler: x = (1 - sigma) * x0 + sigma * eps, the timestep being sigma * train_steps."""
    if respacing is not None:
        sigmas = respaced_sigmas(respacing, sigmas[0], sigmas[-1], len(sigmas))
    steps = [Step(t, 1 - s, s) for s in _float32(sigmas) for t in _float32([s * train_steps])]
    return Schedule((*steps, CLEAN))


def _level(timestep: float, ratio: float) -> Step:
    """The variance-preserving level whose sigma / alpha is `ratio`."""
    alpha = (1 + ratio * ratio) ** -0.5
    return Step(timestep, alpha, ratio * alpha)


def _float32(values: Sequence[float]) -> list[float]:
    return np.asarray(values, dtype=np.float32).tolist()

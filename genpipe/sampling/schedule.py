"""Noise schedules: which timesteps a network is asked at, and how much noise there is at each.

Everything comes out as Python floats. The arithmetic keeps float32 where diffusers does (the product of the alphas, the
table of sigmas), because a timestep rounded the other way shows in the picture.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

# What stands in for a terminal alpha² of zero where a solver divides by alpha: the smallest fp16 subnormal, as in diffusers.
TINY_ALPHA_SQUARED = 2.0**-24


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


@dataclass(frozen=True)
class Schedule:
    """The noise levels of one sampling run, from the noisiest to the clean end.

    steps: one for each solver step, then the terminal one; a run yields `len(steps) - 1` times.
    initial_scale: what unit normal noise is multiplied by to become the first x.
    moves: only for ddim and pndm. The (from, to) levels between which each of their updates takes x. They count back a
        fixed number of training timesteps, which may miss the next step by a little.
    """

    steps: tuple[Step, ...]
    initial_scale: float = 1.0
    moves: tuple[tuple[Step, Step], ...] = ()


# --- Training noise levels -------------------------------------------------------------------------------------------


def cumulative_alphas(
    beta_schedule: str,
    beta_start: float,
    beta_end: float,
    train_steps: int,
    *,
    trained_betas: Sequence[float] | None = None,
    zero_terminal_snr: bool = False,
) -> list[float]:
    """alpha² at every training timestep, float32 values.

    beta_schedule: "linear" (DDPM), "scaled_linear" (linear in the square root; Stable Diffusion) or "squaredcos_cap_v2"
        (arXiv 2102.09672, eq. 17). `trained_betas`, if given, is used instead.
    zero_terminal_snr: rescale as arXiv 2305.08891, algorithm 1, so that the last alpha is exactly 0.

    Raises ValueError for an unknown schedule, or for `trained_betas` of another length than `train_steps`.
    """
    if trained_betas is not None:
        if len(trained_betas) != train_steps:
            raise ValueError(f"trained_betas holds {len(trained_betas)} values for {train_steps} training timesteps")
        betas = torch.tensor(trained_betas, dtype=torch.float32)
    elif beta_schedule == "linear":
        betas = torch.linspace(beta_start, beta_end, train_steps, dtype=torch.float32)
    elif beta_schedule == "scaled_linear":
        betas = torch.linspace(beta_start**0.5, beta_end**0.5, train_steps, dtype=torch.float32) ** 2
    elif beta_schedule == "squaredcos_cap_v2":
        squares = [math.cos((i / train_steps + 0.008) / 1.008 * math.pi / 2) ** 2 for i in range(train_steps + 1)]
        betas = torch.tensor([min(1 - squares[i + 1] / squares[i], 0.999) for i in range(train_steps)])
    else:
        raise ValueError(
            f"unknown beta_schedule {beta_schedule!r}: choose linear, scaled_linear or squaredcos_cap_v2, or give trained_betas"
        )
    if zero_terminal_snr:
        alphas = torch.cumprod(1.0 - betas, dim=0).sqrt()
        first, last = alphas[0].clone(), alphas[-1].clone()
        squares = ((alphas - last) * (first / (first - last))) ** 2
        # Back to betas and multiplied up again below: diffusers goes that way round, and the rounding shows.
        betas = 1 - torch.cat([squares[:1], squares[1:] / squares[:-1]])
    return torch.cumprod(1.0 - betas, dim=0).tolist()


def sigma_table(alphas_squared: Sequence[float]) -> np.ndarray:
    """sigma / alpha at every training timestep, (T,) float32, increasing."""
    squares = torch.tensor(alphas_squared)
    return (((1 - squares) / squares) ** 0.5).numpy()


# --- Which timesteps -------------------------------------------------------------------------------------------------


def spaced_timesteps(
    spacing: str, steps: int, train_steps: int, *, offset: int = 0, extra: int = 0, rounded: bool = True
) -> list[float]:
    """`steps` timesteps from high to low (arXiv 2305.08891, table 2).

    offset: added to each where the spacing is "leading".
    extra: how many more are counted out, and dropped from the low end; DPM-Solver counts its end point, 1.
    rounded: to whole timesteps. Otherwise "linspace" gives fractions (float32), as Euler and Heun take them.

    Raises ValueError for an unknown spacing, or for more steps than "leading" has room for.
    """
    if spacing == "linspace":
        times = np.linspace(0, train_steps - 1, steps + extra)
        times = times.round() if rounded else times.astype(np.float32)
        return times[::-1][:steps].tolist()
    if spacing == "leading":
        stride = train_steps // (steps + extra)
        times = [float(i * stride + offset) for i in range(steps + extra)][::-1][:steps]
        if stride == 0 or times[0] >= train_steps:
            raise ValueError(
                f"steps {steps} leave no room for timestep_spacing 'leading' and steps_offset {offset} among "
                f"{train_steps} training timesteps: use at most {train_steps - extra - offset}"
            )
        return times
    if spacing == "trailing":
        # The stride's rounding can make one value too many (of steps = 61, say), which would be timestep -1.
        return (np.arange(train_steps, 0, -train_steps / steps)[:steps].round() - 1).tolist()
    raise ValueError(f"unknown timestep_spacing {spacing!r}: choose linspace, leading or trailing")


def consistency_timesteps(steps: int, train_steps: int, original_steps: int) -> list[float]:
    """`steps` of the `original_steps` timesteps that a latent consistency model was distilled at (arXiv 2310.04378).

    Raises ValueError if there are not so many.
    """
    if steps > original_steps:
        raise ValueError(f"steps {steps} is more than the {original_steps} that this LCM was distilled at")
    stride = train_steps // original_steps
    distilled = [float(i * stride - 1) for i in range(original_steps, 0, -1)]
    return [distilled[i] for i in np.linspace(0, original_steps, steps, endpoint=False).astype(int)]


# --- Which sigmas ----------------------------------------------------------------------------------------------------


def karras_sigmas(highest: float, lowest: float, steps: int, rho: float = 7.0) -> list[float]:
    """`steps` sigmas from `highest` to `lowest`, evenly spaced in sigma^(1/rho) (arXiv 2206.00364, eq. 5)."""
    high, low = highest ** (1 / rho), lowest ** (1 / rho)
    return ((high + np.linspace(0, 1, steps) * (low - high)) ** rho).tolist()


def exponential_sigmas(highest: float, lowest: float, steps: int) -> list[float]:
    """`steps` sigmas from `highest` to `lowest`, evenly spaced in log sigma."""
    return np.exp(np.linspace(math.log(highest), math.log(lowest), steps)).tolist()


def respaced_sigmas(spacing: str, highest: float, lowest: float, steps: int) -> list[float]:
    """`karras_sigmas` or `exponential_sigmas`, by name."""
    return {"karras": karras_sigmas, "exponential": exponential_sigmas}[spacing](highest, lowest, steps)


def timesteps_of_sigmas(sigmas: Sequence[float], table: np.ndarray) -> list[float]:
    """The fractional timesteps at which `table` (`sigma_table`), interpolated in log sigma, has these sigmas."""
    logs, known = np.log(np.asarray(sigmas)), np.log(table)
    low = np.clip(np.searchsorted(known, logs, side="right") - 1, 0, len(known) - 2)
    weight = np.clip((known[low] - logs) / (known[low] - known[low + 1]), 0, 1)
    return ((1 - weight) * low + weight * (low + 1)).tolist()


def flow_sigmas(steps: int, train_steps: int, shift: float) -> list[float]:
    """Rectified-flow sigmas from 1 down, moved towards the noise by `shift` (arXiv 2403.03206, eq. 23).

    The lowest is shifted twice, as diffusers does and as checkpoints have come to expect.
    """
    lowest = np.float32(1 / train_steps)
    lowest = shift * lowest / (1 + (shift - 1) * lowest)
    sigmas = np.linspace(train_steps, float(lowest) * train_steps, steps) / train_steps
    return (shift * sigmas / (1 + (shift - 1) * sigmas)).tolist()


# --- Schedules, by the way their solvers see noise -------------------------------------------------------------------


def _level(timestep: float, ratio: float) -> Step:
    """The variance-preserving level whose sigma / alpha is `ratio`."""
    alpha = (1 + ratio * ratio) ** -0.5
    return Step(timestep, alpha, ratio * alpha)


def discrete_schedule(
    alphas_squared: Sequence[float], timesteps: Sequence[float], *, end_at_one: bool, plms: bool = False
) -> Schedule:
    """The schedule of ddim and pndm: whole timesteps, each update going back len(alphas_squared) // steps of them.

    end_at_one: what lies before timestep 0 is a clean picture; otherwise it is timestep 0 itself.
    plms: the second update of pndm is a second try at the first, towards the second timestep.
    """
    final = 1.0 if end_at_one else alphas_squared[0]

    def at(timestep: float) -> Step:
        square = alphas_squared[int(timestep)] if timestep >= 0 else final
        return Step(timestep, square**0.5, (1 - square) ** 0.5)

    stride = len(alphas_squared) // len(timesteps)
    moves = [(at(t), at(t - stride)) for t in timesteps]
    if plms and len(timesteps) > 1:
        moves.insert(1, (at(timesteps[1] + stride), at(timesteps[1])))
    return Schedule((*map(at, timesteps), moves[-1][1]), moves=tuple(moves))


def consistency_schedule(alphas_squared: Sequence[float], timesteps: Sequence[float]) -> Schedule:
    """The schedule of lcm: whole timesteps, then the clean picture."""
    squares = [alphas_squared[int(t)] for t in timesteps]
    steps = [Step(t, square**0.5, (1 - square) ** 0.5) for t, square in zip(timesteps, squares, strict=True)]
    return Schedule((*steps, Step(0.0, 1.0, 0.0)))


def sigma_schedule(
    alphas_squared: Sequence[float],
    timesteps: Sequence[float],
    *,
    respacing: str | None = None,
    end_at_lowest: bool = False,
    unit_start: bool = False,
) -> Schedule:
    """The schedule of euler, euler_a and heun, which think in sigma / alpha.

    respacing: "karras" or "exponential" sigmas between those of the first and the last timestep.
    end_at_lowest: stop at the lowest training sigma, not at 0.
    unit_start: the first x has the variance of noise plus a picture of variance 1, not of the noise alone.
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
    return Schedule((*steps, end), initial_scale=1.0 if unit_start else steps[0].sigma)


def dpm_schedule(
    alphas_squared: Sequence[float],
    timesteps: Sequence[float],
    *,
    respacing: str | None = None,
    end_at_lowest: bool = False,
    nearest: bool = True,
) -> Schedule:
    """The schedule of dpmpp_2m and dpmpp_2m_sde.

    respacing: "karras" or "exponential" sigmas between the highest and the lowest of training.
    end_at_lowest: stop at the lowest training sigma, not at 0.
    nearest: round the timesteps of Karras sigmas to the nearest whole one; if not, downwards, as those of exponential sigmas.
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
    return Schedule((*steps, Step(0.0, 1.0, 0.0)))


def _float32(values: Sequence[float]) -> list[float]:
    return np.asarray(values, dtype=np.float32).tolist()

"""Noise levels: those that a network was trained at, and which of them a run of so many steps uses.

Everything comes out as Python floats. The arithmetic keeps float32 where diffusers does (the product of the alphas, the
table of sigmas), because a timestep rounded the other way shows in the image.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch

from genpipe.messages import quoted

# What stands in for a terminal alpha² of zero where a solver divides by alpha: the smallest fp16 subnormal, as in diffusers.
TINY_ALPHA_SQUARED = 2.0**-24


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

    Args:
        beta_schedule: "linear" (DDPM), "scaled_linear" (linear in the square root; Stable Diffusion) or
            "squaredcos_cap_v2" (arXiv 2102.09672, eq. 17). `trained_betas`, if given, is used instead.
        zero_terminal_snr: rescale as arXiv 2305.08891, algorithm 1, so that the last alpha is exactly 0.

    Raises:
        ValueError: an unknown schedule, or `trained_betas` of another length than `train_steps`.
    """
    plain = {"dtype": torch.float32, "device": "cpu"}  # whatever the host program has made torch's defaults
    if trained_betas is not None:
        if len(trained_betas) != train_steps:
            raise ValueError(f"trained_betas holds {len(trained_betas)} values for {train_steps} training timesteps")
        betas = torch.tensor(trained_betas, **plain)
    elif beta_schedule == "linear":
        betas = torch.linspace(beta_start, beta_end, train_steps, **plain)
    elif beta_schedule == "scaled_linear":
        betas = torch.linspace(beta_start**0.5, beta_end**0.5, train_steps, **plain) ** 2
    elif beta_schedule == "squaredcos_cap_v2":
        squares = [math.cos((i / train_steps + 0.008) / 1.008 * math.pi / 2) ** 2 for i in range(train_steps + 1)]
        betas = torch.tensor([min(1 - squares[i + 1] / squares[i], 0.999) for i in range(train_steps)], **plain)
    else:
        raise ValueError(
            f"unknown beta_schedule {quoted(beta_schedule)}: choose linear, scaled_linear or squaredcos_cap_v2, or give trained_betas"
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
    squares = torch.tensor(alphas_squared, dtype=torch.float32, device="cpu")
    return (((1 - squares) / squares) ** 0.5).numpy()


# --- Which timesteps -------------------------------------------------------------------------------------------------


def spaced_timesteps(
    spacing: str, steps: int, train_steps: int, *, offset: int = 0, extra: int = 0, rounded: bool = True
) -> list[float]:
    """`steps` timesteps from high to low (arXiv 2305.08891, table 2).

    Args:
        offset: added to each where the spacing is "leading".
        extra: how many more are counted out and then dropped from the low end; DPM-Solver counts its end point, 1.
        rounded: round to whole timesteps. Otherwise "linspace" gives fractions (float32), as Euler and Heun take them.

    Raises:
        ValueError: an unknown spacing, or more steps than "leading" has room for.
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
    raise ValueError(f"unknown timestep_spacing {quoted(spacing)}: choose linspace, leading or trailing")


def consistency_timesteps(steps: int, train_steps: int, original_steps: int) -> list[float]:
    """`steps` of the `original_steps` timesteps that a latent consistency model was distilled at (arXiv 2310.04378).

    Raises:
        ValueError: there are not so many.
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


def shifted_flow_sigmas(steps: int, mu: float, *, linear: bool = False) -> list[float]:
    """Rectified-flow sigmas 1 … 1 / steps, moved towards the noise by an amount that grows with the image (FLUX).

    Args:
        mu: how far, see `settings.size_shift`.
        linear: the factor of the shift is mu itself; otherwise it is e^mu.
    """
    sigmas = np.linspace(1.0, 1 / steps, steps).astype(np.float32)
    factor = mu if linear else math.exp(mu)
    return (factor / (factor + (1 / sigmas - 1))).tolist()

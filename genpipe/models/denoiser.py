"""The denoiser of one batch: a network with everything computed that stays the same over the steps."""

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from genpipe.blocks import Network, ResidualBlock
from genpipe.models.attention import repeat_rows
from genpipe.models.conditioning import Conditioning
from genpipe.models.unet import UNet


class Denoiser(Protocol):
    """What a sampler's loop evaluates, made for one batch of images and the timesteps of one schedule."""

    def __call__(self, latents: Tensor, timestep: float | Sequence[float], *, last: bool = False) -> Tensor:
        """Evaluate the network once.

        Args:
            latents: (B, C, h, w), noisy, in the variance-preserving scaling.
            timestep: one for all images, or one per image; each is among those that the denoiser was made for.
            last: evaluate the last prompt of each image alone, as where guidance does not apply.

        Returns:
            (k · B, C, h, w) for a conditioning of k prompts per image, or (B, C, h, w) with `last`. What it means
            (noise, velocity or clean latents) is the schedule's to say.
        """
        ...


# Makes the denoiser of one batch from a network, the timesteps that it will be asked at, and the conditioning.
MakeDenoiser = Callable[[Network, Sequence[float], Conditioning], Denoiser]


class UNetDenoiser:
    """The `Denoiser` of a U-Net.

    Computed once are the keys and values of the prompts, and what each timestep adds in each residual block: a row per
    timestep, or a row per timestep and prompt where more than the timestep is embedded (SDXL's pooled text).

    Args:
        unet: plain or prepared.
        timesteps: those that it will be asked at.
        conditioning: k prompts per image; see `Conditioning`.
        refresh: compute the deep features at one of so many of the timesteps, and keep them for those that follow
            ("DeepCache: Accelerating Diffusion Models for Free", 2023).
    """

    def __init__(self, unet: UNet, timesteps: Sequence[float], conditioning: Conditioning, *, refresh: int = 1) -> None:
        distinct = list(dict.fromkeys(timesteps))
        self._unet = unet
        self._steps = {timestep: step for step, timestep in enumerate(distinct)}
        self._shifts = _shift_table(unet, distinct, conditioning)
        self._prompts = unet.keys_values(conditioning.context)
        self._extra = conditioning.extra_channels
        self._refresh = refresh
        self._kept: Tensor | None = None

    def __call__(self, latents: Tensor, timestep: float | Sequence[float], *, last: bool = False) -> Tensor:
        """As `Denoiser` says."""
        images, prompts, extra = len(latents), self._prompts, self._extra
        if last:
            prompts = {reader: (k[-images:], v[-images:]) for reader, (k, v) in prompts.items()}
            extra = None if extra is None else extra[-images:]
        rows = len(next(iter(prompts.values()))[0])
        steps = [self._steps[t] for t in ([timestep] if isinstance(timestep, int | float) else timestep)]
        shifts = {block: _of_steps(table, steps, rows) for block, table in self._shifts.items()}
        if extra is not None:
            latents = torch.cat([repeat_rows(latents, rows), extra], dim=1)
        elif len(next(iter(shifts.values()))) > images:
            latents = repeat_rows(latents, rows)  # from the first layer on, the prompts of an image share nothing

        kept = self._kept
        if any(step % self._refresh == 0 for step in steps):
            kept = None
        elif kept is not None and last:
            kept = kept[-images:]
        elif kept is not None and len(kept) != rows:
            kept = None  # they are those of the last prompts alone
        output, deep = self._unet.denoise(latents, shifts, prompts, kept)
        self._kept = deep if self._refresh > 1 else None
        return output


def _shift_table(unet: UNet, timesteps: Sequence[float], conditioning: Conditioning) -> dict[ResidualBlock, Tensor]:
    """What timesteps and prompts add in each residual block, (timesteps, 1 or prompts, C_out)."""
    times = torch.tensor(timesteps, dtype=torch.float32, device=conditioning.context.device)
    embedded = (conditioning.guidance_scale, conditioning.pooled, conditioning.time_ids)
    # Prompts that agree in all that is embedded share a row: layers then add it before they round (`AddingLayer`).
    same = all(tensor is None or bool((tensor == tensor[:1]).all()) for tensor in embedded)
    count = 1 if same else len(conditioning)

    def repeated(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else torch.cat([tensor[:count]] * len(timesteps))

    guidance, pooled, time_ids = (repeated(tensor) for tensor in embedded)
    embedding = unet.embed(times.repeat_interleave(count), guidance=guidance, pooled=pooled, time_ids=time_ids)
    return {block: shift.unflatten(0, (-1, count)) for block, shift in unet.shifts(embedding).items()}


def _of_steps(table: Tensor, steps: Sequence[int], rows: int) -> Tensor:
    """The rows of a table (timesteps, 1 or prompts, C_out) for `rows` prompts, (1 or rows, C_out).

    `steps` are one for all images or one per image; fewer rows than prompts are those of the last prompts.
    """
    if len(set(steps)) == 1:
        return table[steps[0], -rows:]
    by_row = list(steps) * (rows // len(steps))
    first = table.shape[1] - rows
    return table[by_row, [0] * rows if table.shape[1] == 1 else list(range(first, first + rows))]

"""The denoiser of one batch: a network with everything computed that stays the same over the steps."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from genpipe.blocks import Network, ResidualBlock
from genpipe.models.attention import KeysValues, repeat_rows
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


@dataclass(frozen=True, eq=False)
class Inputs:
    """Everything that one evaluation of a U-Net reads beside its weights.

    Attributes:
        latents: (B, C, h, w).
        shifts: what the timestep adds in all residual blocks, side by side, (1, B or rows; sum of C_out).
        widths: C_out of each block, in their order.
        prompts: keys and values of the `rows` prompts; at each step of a batch the same tensors.
        extra: (rows, C', h, w), channels that follow the latents' own; at each step of a batch the same tensor.
        deep: the deep features of an earlier evaluation of the same batch, in place of computing them.
        keeps: whether the deep features will be wanted.
    """

    latents: Tensor
    shifts: Tensor
    widths: Mapping[ResidualBlock, int]
    prompts: KeysValues
    extra: Tensor | None = None
    deep: Tensor | None = None
    keeps: bool = False

    @property
    def rows(self) -> int:
        """The number of prompts."""
        return len(next(iter(self.prompts.values()))[0])


def evaluate(unet: UNet, inputs: Inputs) -> tuple[Tensor, Tensor | None]:
    """Evaluate a U-Net: its output (rows, C, h, w), and the deep features where they are to be kept."""
    latents, rows = inputs.latents, inputs.rows
    if inputs.extra is not None:
        latents = torch.cat([repeat_rows(latents, rows), inputs.extra], dim=1)
    elif len(inputs.shifts) > len(latents):
        latents = repeat_rows(latents, rows)  # from the first layer on, the prompts of an image share nothing
    parts = inputs.shifts.split(list(inputs.widths.values()), dim=1)
    shifts = dict(zip(inputs.widths, parts, strict=True))
    output, deep = unet.denoise(latents, shifts, inputs.prompts, inputs.deep)
    return output, deep if inputs.keeps else None


# `evaluate`, or what computes the same: `genpipe.models.cuda.graphs.Graphs`.
Evaluate = Callable[[UNet, Inputs], tuple[Tensor, Tensor | None]]


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
        evaluate: evaluates the network.
    """

    def __init__(
        self,
        unet: UNet,
        timesteps: Sequence[float],
        conditioning: Conditioning,
        *,
        refresh: int = 1,
        evaluate: Evaluate = evaluate,
    ) -> None:
        distinct = list(dict.fromkeys(timesteps))
        self._unet, self._evaluate = unet, evaluate
        self._steps = {timestep: step for step, timestep in enumerate(distinct)}
        self._shifts, self._widths = _shift_table(unet, distinct, conditioning)
        self._prompts = unet.keys_values(conditioning.context)
        self._extra = conditioning.extra_channels
        told = (conditioning.guidance_scale, conditioning.pooled, conditioning.time_ids)
        self._by_time_alone = all(tensor is None for tensor in told)
        self._last: tuple[KeysValues, Tensor | None] | None = None
        self._refresh = refresh
        self._kept: Tensor | None = None

    def __call__(self, latents: Tensor, timestep: float | Sequence[float], *, last: bool = False) -> Tensor:
        """As `Denoiser` says."""
        images = len(latents)
        prompts, extra = self._last_alone(images) if last else (self._prompts, self._extra)
        rows = len(next(iter(prompts.values()))[0])
        steps = [self._steps[t] for t in ([timestep] if isinstance(timestep, int | float) else timestep)]
        kept = self._kept
        if any(step % self._refresh == 0 for step in steps):
            kept = None
        elif kept is not None and last:
            kept = kept[-images:]
        elif kept is not None and len(kept) != rows:
            kept = None  # they are those of the last prompts alone
        shifts = _of_steps(self._shifts, steps, rows)
        inputs = Inputs(latents, shifts, self._widths, prompts, extra, deep=kept, keeps=self._refresh > 1)
        output, self._kept = self._evaluate(self._unet, inputs)
        return output

    @property
    def tokens(self) -> int:
        """How many vectors the context of a prompt has."""
        keys, _ = next(iter(self._prompts.values()))
        return keys.shape[2]

    def _last_alone(self, images: int) -> tuple[KeysValues, Tensor | None]:
        """The keys, values and extra channels of each image's last prompt, the same tensors at every step."""
        if self._last is None:
            prompts = {reader: (k[-images:], v[-images:]) for reader, (k, v) in self._prompts.items()}
            self._last = prompts, None if self._extra is None else self._extra[-images:]
        return self._last


class JoinedDenoiser:
    """What evaluates a network for images that are each at a step of their own; nothing depends on how far another is.

    Args:
        parts: the denoisers of one image each, in the order of the images, all of one network. They agree in how many
            prompts an image has, how long the contexts are, and whether there are extra channels; none keeps deep features.
    """

    def __init__(self, parts: Sequence[UNetDenoiser]) -> None:
        first = parts[0]
        self._unet, self._evaluate, self._widths = first._unet, first._evaluate, first._widths
        self._prompts = {
            reader: (
                _interleaved([part._prompts[reader][0] for part in parts]),
                _interleaved([part._prompts[reader][1] for part in parts]),
            )
            for reader in first._prompts
        }
        extras = [part._extra for part in parts if part._extra is not None]
        self._extra = _interleaved(extras) if extras else None
        self._per_image = len(next(iter(first._prompts.values()))[0])
        columns = max(part._shifts.shape[1] for part in parts)
        self._table = torch.cat([part._shifts.expand(-1, columns, -1) for part in parts])
        self._by_time_alone = all(part._by_time_alone for part in parts)
        self._steps: list[dict[float, int]] = []
        before = 0
        for part in parts:
            self._steps.append({timestep: before + step for timestep, step in part._steps.items()})
            before += len(part._shifts)

    def __call__(self, latents: Tensor, timesteps: Sequence[float]) -> Tensor:
        """Evaluate the network once.

        Args:
            latents: (B, C, h, w), noisy, in the variance-preserving scaling.
            timesteps: one per image; each is among those that the image's denoiser was made for.

        Returns:
            (k · B, C, h, w) for k prompts per image; the first prompts of all images come first.
        """
        at = [steps[time] for steps, time in zip(self._steps, timesteps, strict=True)]
        if self._by_time_alone and len(set(timesteps)) == 1:
            shifts = self._table[at[0]]
        elif self._table.shape[1] == 1:
            shifts = self._table[at, 0]
        else:
            prompts = [prompt for prompt in range(self._per_image) for _ in at]
            shifts = self._table[at * self._per_image, prompts]
        output, _ = self._evaluate(self._unet, Inputs(latents, shifts, self._widths, self._prompts, self._extra))
        return output


def _interleaved(parts: Sequence[Tensor]) -> Tensor:
    """Join the rows of several images, (k, ...) each, to (k · images, ...): the first row of every image comes first."""
    return torch.stack(list(parts), dim=1).flatten(0, 1)


def _shift_table(
    unet: UNet, timesteps: Sequence[float], conditioning: Conditioning
) -> tuple[Tensor, dict[ResidualBlock, int]]:
    """What timesteps and prompts add in all residual blocks, (timesteps, 1 or prompts, sum of C_out), and each C_out."""
    times = torch.tensor(timesteps, dtype=torch.float32, device=conditioning.context.device)
    embedded = (conditioning.guidance_scale, conditioning.pooled, conditioning.time_ids)
    # Prompts that agree in all that is embedded share a row: layers then add it before they round (`AddingLayer`).
    same = all(tensor is None or bool((tensor == tensor[:1]).all()) for tensor in embedded)
    count = 1 if same else len(conditioning)

    def repeated(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else torch.cat([tensor[:count]] * len(timesteps))

    guidance, pooled, time_ids = (repeated(tensor) for tensor in embedded)
    embedding = unet.embed(times.repeat_interleave(count), guidance=guidance, pooled=pooled, time_ids=time_ids)
    shifts = unet.shifts(embedding)
    table = torch.cat(list(shifts.values()), dim=1).unflatten(0, (-1, count))
    return table, {block: shift.shape[1] for block, shift in shifts.items()}


def _of_steps(table: Tensor, steps: Sequence[int], rows: int) -> Tensor:
    """The rows of a table (timesteps, 1 or prompts, C_out) for `rows` prompts, (1 or rows, C_out).

    `steps` are one for all images or one per image; fewer rows than prompts are those of the last prompts.
    """
    if len(set(steps)) == 1:
        return table[steps[0], -rows:]
    by_row = list(steps) * (rows // len(steps))
    first = table.shape[1] - rows
    return table[by_row, [0] * rows if table.shape[1] == 1 else list(range(first, first + rows))]

"""The denoiser of one batch: a network with everything computed that stays the same over the steps."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from genpipe.blocks import Network, ResidualBlock
from genpipe.models.attention import KeysValues, repeat_rows
from genpipe.models.conditioning import Conditioning
from genpipe.models.ip_adapter import IPAdapter
from genpipe.models.shifts import ShiftTable, by_block
from genpipe.models.tiles import over_tiles
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
        residuals: what ControlNets add to each skip, and last to what the bottom gives, each of B or `rows` rows.
        maps: what T2I-Adapters add to each level on the way down, B rows each.
    """

    latents: Tensor
    shifts: Tensor
    widths: Mapping[ResidualBlock, int]
    prompts: KeysValues
    extra: Tensor | None = None
    deep: Tensor | None = None
    keeps: bool = False
    residuals: tuple[Tensor, ...] | None = None
    maps: tuple[Tensor, ...] | None = None

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
    shifts = by_block(inputs.shifts, inputs.widths)
    output, deep = unet.denoise(latents, shifts, inputs.prompts, inputs.deep, inputs.residuals, inputs.maps)
    return output, deep if inputs.keeps else None


# `evaluate`, or what computes the same: `genpipe.models.cuda.graphs.Graphs`.
Evaluate = Callable[[UNet, Inputs], tuple[Tensor, Tensor | None]]


@dataclass(frozen=True, eq=False)
class Added:
    """What control networks add to one evaluation of a U-Net, as `Inputs` has it; None for nothing."""

    residuals: tuple[Tensor, ...] | None = None
    maps: tuple[Tensor, ...] | None = None


class Control(Protocol):
    """Control networks that look at the images of a batch."""

    def __call__(self, latents: Tensor, timestep: float | Sequence[float], *, last: bool = False) -> Added:
        """Give what they add to an evaluation of the U-Net; arguments as of a `Denoiser`."""
        ...


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
        control: gives what control networks add, as `genpipe.models.control.Controls` does; while deep features are kept,
            so is that.
        references: makes keys and values of the conditioning's image tokens, where it has some.
        like: another denoiser: what it has computed of the same timesteps, or of the same prompts, is not computed again.
    """

    def __init__(
        self,
        unet: UNet,
        timesteps: Sequence[float],
        conditioning: Conditioning,
        *,
        refresh: int = 1,
        evaluate: Evaluate = evaluate,
        control: Control | None = None,
        references: IPAdapter | None = None,
        like: "UNetDenoiser | None" = None,
    ) -> None:
        self._unet, self._evaluate, self._control = unet, evaluate, control
        self._extra = conditioning.extra_channels
        told = (conditioning.guidance_scale, conditioning.pooled, conditioning.time_ids)
        self._by_time_alone = all(tensor is None for tensor in told)
        self._context = None if references is not None else conditioning.context
        like = like if like is not None and like._unet is unet else None
        if like is not None and like._by_time_alone and self._by_time_alone and like._shifts.is_of(timesteps):
            self._shifts = like._shifts
        else:
            self._shifts = ShiftTable(unet, timesteps, conditioning)
        if like is not None and _same(like._context, self._context):
            self._prompts = like._prompts
        else:
            self._prompts = _read(unet, conditioning, references)
        self._last: tuple[KeysValues, Tensor | None] | None = None
        self._refresh = refresh
        self._kept: Tensor | None = None
        self._added = Added()

    def __call__(self, latents: Tensor, timestep: float | Sequence[float], *, last: bool = False) -> Tensor:
        """As `Denoiser` says."""
        images = len(latents)
        prompts, extra = self._last_alone(images) if last else (self._prompts, self._extra)
        rows = len(next(iter(prompts.values()))[0])
        kept = self._kept_for(timestep, images, last=last)
        residuals = self._add(latents, timestep, last=last, fresh=kept is None).residuals
        inputs = Inputs(
            latents,
            self._shifts.at(timestep, rows),
            self._shifts.widths,
            prompts,
            extra,
            deep=kept,
            keeps=self._refresh > 1,
            residuals=None if residuals is None else tuple(each[-rows:] for each in residuals),
            maps=self._added.maps,
        )
        output, self._kept = self._evaluate(self._unet, inputs)
        return output

    def form(self, timestep: float, *, last: bool) -> Hashable:
        """What denoisers of one image have to agree in to be joined for an evaluation: the network, and what it reads."""
        prompts, _ = self._last_alone(1) if last else (self._prompts, None)
        read = tuple((len(each), each.shape[2]) for each in next(iter(prompts.values())))
        fresh = self._kept_for(timestep, 1, last=last) is None
        return id(self._unet), self._control is not None, read, fresh

    def _kept_for(self, timestep: float | Sequence[float], images: int, *, last: bool) -> Tensor | None:
        """The deep features that stand in an evaluation's place; None where they are computed."""
        kept = self._kept
        if kept is None or any(step % self._refresh == 0 for step in self._shifts.numbers(timestep)):
            return None
        if last:
            return kept[-images:]
        rows = len(next(iter(self._prompts.values()))[0])
        return kept if len(kept) == rows else None  # else they are those of the last prompts alone

    def _add(self, latents: Tensor, timestep: float | Sequence[float], *, last: bool, fresh: bool) -> Added:
        """What control networks add: while deep features are kept, what they added when those were computed."""
        if self._control is not None and fresh:
            self._added = self._control(latents, timestep, last=last)
        return self._added

    def _last_alone(self, images: int) -> tuple[KeysValues, Tensor | None]:
        """The keys, values and extra channels of each image's last prompt, the same tensors at every step."""
        if self._last is None:
            prompts = {reader: tuple(each[-images:] for each in read) for reader, read in self._prompts.items()}
            self._last = prompts, None if self._extra is None else self._extra[-images:]
        return self._last


def _same(one: Tensor | None, other: Tensor | None) -> bool:
    return one is not None and other is not None and one.shape == other.shape and bool(torch.equal(one, other))


def _read(unet: UNet, conditioning: Conditioning, references: IPAdapter | None) -> KeysValues:
    """The keys and values of the prompts, and of the images that are referred to beside them."""
    prompts = unet.keys_values(conditioning.context)
    tokens, scales = conditioning.image_tokens, conditioning.image_scales
    if references is None or tokens is None or scales is None:
        return prompts
    images = references.keys_values(tokens, scales, unet.readers())
    return {reader: (*read, *(each.to(read[0].dtype) for each in images[reader])) for reader, read in prompts.items()}


class TiledDenoiser:
    """A `Denoiser` of latents of any size: overlapping squares are evaluated apart, and blended at every step.

    "MultiDiffusion: Fusing Diffusion Paths for Controlled Image Generation", arXiv 2302.08113, eq. 5.

    Args:
        make: makes the denoiser of the squares.
        network, timesteps, conditioning: as `make` takes them; there are no extra channels.
        tile: side of a square in latent pixels.

    Attributes:
        of_squares: the denoiser of one square.
        tile: as above.
    """

    def __init__(
        self,
        make: MakeDenoiser[Network],
        network: Network,
        timesteps: Sequence[float],
        conditioning: Conditioning,
        *,
        tile: int,
    ) -> None:
        self.of_squares, self.tile = make(network, timesteps, conditioning), tile

    def __call__(self, latents: Tensor, timestep: float | Sequence[float], *, last: bool = False) -> Tensor:
        """As `Denoiser` says."""
        return over_tiles(partial(self.of_squares, timestep=timestep, last=last), latents, tile=self.tile, factor=1)


class JoinedDenoiser:
    """What evaluates a network for images that are each at a step of their own; nothing depends on how far another is.

    Control networks look at each image by itself.

    Args:
        parts: the denoisers of one image each, in the order of the images, and of which the last prompt alone is evaluated.
            They agree in their `form` at each evaluation, and in whether there are extra channels.
    """

    def __init__(self, parts: Sequence[tuple[UNetDenoiser, bool]]) -> None:
        self._parts = parts
        first = parts[0][0]
        self._unet, self._evaluate, self._widths = first._unet, first._evaluate, first._shifts.widths
        read = [part._last_alone(1) if last else (part._prompts, part._extra) for part, last in parts]
        self._prompts = {
            reader: tuple(map(_interleaved, zip(*(prompts[reader] for prompts, _ in read), strict=True)))
            for reader in first._prompts
        }
        extras = [extra for _, extra in read if extra is not None]
        self._extra = _interleaved(extras) if extras else None
        self._per_image = len(next(iter(self._prompts.values()))[0]) // len(parts)
        tables = [part._shifts.table for part, _ in parts]
        columns = max(table.shape[1] for table in tables)
        self._table = torch.cat([table.expand(-1, columns, -1) for table in tables])
        self._by_time_alone = all(part._by_time_alone for part, _ in parts)
        self._steps: list[dict[float, int]] = []
        before = 0
        for part, _ in parts:
            self._steps.append({timestep: before + step for timestep, step in part._shifts.steps.items()})
            before += len(part._shifts.table)

    def __call__(self, latents: Tensor, timesteps: Sequence[float]) -> Tensor:
        """Evaluate the network once.

        Args:
            latents: (B, C, h, w), noisy, in the variance-preserving scaling.
            timesteps: one per image; each is among those that the image's denoiser was made for.

        Returns:
            (k · B, C, h, w) for k prompts per image; the first prompts of all images come first.
        """
        at = [steps[time] for steps, time in zip(self._steps, timesteps, strict=True)]
        columns = self._table.shape[1]
        if self._by_time_alone and len(set(timesteps)) == 1:
            shifts = self._table[at[0]]
        elif columns == 1:
            shifts = self._table[at, 0]
        else:  # one prompt of each is its last
            prompts = [prompt for prompt in range(columns - self._per_image, columns) for _ in at]
            shifts = self._table[at * self._per_image, prompts]
        parts = [(part, time, last) for (part, last), time in zip(self._parts, timesteps, strict=True)]
        kept = [each for part, time, last in parts if (each := part._kept_for(time, 1, last=last)) is not None]
        added = [
            part._add(latents[index : index + 1], time, last=last, fresh=not kept)
            for index, (part, time, last) in enumerate(parts)
        ]
        residuals = [each.residuals and tuple(layer[-self._per_image :] for layer in each.residuals) for each in added]
        inputs = Inputs(
            latents,
            shifts,
            self._widths,
            self._prompts,
            self._extra,
            deep=_interleaved(kept) if kept else None,
            keeps=any(part._refresh > 1 for part, _, _ in parts),
            residuals=_together(residuals, self._per_image),
            maps=_together([each.maps for each in added], 1),
        )
        output, deep = self._evaluate(self._unet, inputs)
        for index, (part, _, _) in enumerate(parts):
            part._kept = deep[index :: len(parts)] if deep is not None and part._refresh > 1 else None
        return output


def _together(parts: Sequence[tuple[Tensor, ...] | None], rows: int) -> tuple[Tensor, ...] | None:
    """Join what is added for each of several images, of `rows` rows or of one that all share; nothing is zeros beside others."""
    like = next((part for part in parts if part is not None), None)
    if like is None:
        return None
    whole = [[torch.zeros_like(each) for each in like] if part is None else part for part in parts]
    return tuple(_interleaved([repeat_rows(each, rows) for each in layer]) for layer in zip(*whole, strict=True))


def _interleaved(parts: Sequence[Tensor]) -> Tensor:
    """Join the rows of several images, (k, ...) each, to (k · images, ...): the first row of every image comes first."""
    return torch.cat([part[row : row + 1] for row in range(len(parts[0])) for part in parts])

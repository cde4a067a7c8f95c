"""What control networks make of their images for one batch, step by step."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor, nn

from genpipe.models.attention import KeysValues, add_rows, repeat_rows
from genpipe.models.conditioning import Conditioning
from genpipe.models.controlnet import ControlNet, guess_scales
from genpipe.models.denoiser import Added
from genpipe.models.shifts import ShiftTable, by_block
from genpipe.models.t2i_adapter import T2IAdapter
from genpipe.models.unet import UNet

ControlNetwork = ControlNet | T2IAdapter


@dataclass(frozen=True, eq=False)
class Shown:
    """What one control network is shown in a batch.

    Attributes:
        images: (B, 3, H, W) in [0, 1]; (B, 1, H, W) for a T2I-Adapter of grey images.
        scales: how strongly it acts on each image.
        timesteps: those at which it acts.
    """

    images: Tensor
    scales: Sequence[float]
    timesteps: Collection[float]

    def at(self, timestep: float | Sequence[float]) -> list[float]:
        """How strongly it acts on each image at timesteps, one for all images or one per image; 0 where it does not."""
        times = [timestep] * len(self.scales) if isinstance(timestep, int | float) else timestep
        return [scale if time in self.timesteps else 0.0 for scale, time in zip(self.scales, times, strict=True)]


class Controlled(nn.Module):
    """A U-Net with its control networks, so that all of them can be copied as one."""

    def __init__(self, unet: UNet, networks: Sequence[ControlNetwork]) -> None:
        super().__init__()
        self.unet, self._networks = unet, nn.ModuleList(networks)

    @property
    def networks(self) -> list[ControlNetwork]:
        """The control networks."""
        return [cast(ControlNetwork, network) for network in self._networks]


class Controls:
    """The control networks of a batch, as `genpipe.models.denoiser.Control` says; where none acts, none is evaluated.

    Args:
        networks: plain or prepared.
        shown: what each of them is shown.
        timesteps: those that they will be asked at.
        conditioning: the U-Net's, of k prompts per image.
        guess: show ControlNets no negative prompt, and add less the finer the layer.
    """

    def __init__(
        self,
        networks: Sequence[ControlNetwork],
        shown: Sequence[Shown],
        timesteps: Sequence[float],
        conditioning: Conditioning,
        *,
        guess: bool = False,
    ) -> None:
        parts = list(zip(networks, shown, strict=True))
        self._adapters = [_Maps(network, each) for network, each in parts if isinstance(network, T2IAdapter)]
        self._controlnets = [
            _Residuals(network, each, timesteps, conditioning, guess)
            for network, each in parts
            if isinstance(network, ControlNet)
        ]

    def __call__(self, latents: Tensor, timestep: float | Sequence[float], *, last: bool = False) -> Added:
        """As `Control` says."""
        residuals = (each(latents, timestep, last=last) for each in self._controlnets)
        return Added(_sum(residuals), _sum(each(timestep) for each in self._adapters))


class _Maps:
    """One T2I-Adapter of a batch: it is evaluated once."""

    def __init__(self, network: T2IAdapter, shown: Shown) -> None:
        self._network, self._shown = network, shown
        self._maps: list[Tensor] | None = None

    def __call__(self, timestep: float | Sequence[float]) -> tuple[Tensor, ...] | None:
        scales = self._shown.at(timestep)
        if not any(scales):
            return None
        maps = self._maps = self._network(self._shown.images) if self._maps is None else self._maps
        return tuple(_scaled(each, scales) for each in maps)


class _Residuals:
    """One ControlNet of a batch, with everything computed that stays the same over the steps."""

    def __init__(
        self,
        network: ControlNet,
        shown: Shown,
        timesteps: Sequence[float],
        conditioning: Conditioning,
        guess: bool,
    ) -> None:
        images, rows = len(shown.images), len(conditioning)
        # One that is pooled sees no negative prompt either, as in the authors' own program.
        self._unseen = images if (guess or network.pooled) and rows > images else 0  # rows of negative prompts
        seen = replace(conditioning.rows(slice(self._unseen, None)), guidance_scale=None, extra_channels=None)
        self._network, self._shown, self._rows = network, shown, len(seen)
        self._image = network.embed_image(shown.images)
        self._table = ShiftTable(network, timesteps, seen)
        self._prompts = network.keys_values(seen.context)
        count = len(network.skip_channels) + 1
        self._parts = guess_scales(count) if guess and not network.pooled else [1.0] * count

    def __call__(self, latents: Tensor, timestep: float | Sequence[float], *, last: bool) -> tuple[Tensor, ...] | None:
        scales = self._shown.at(timestep)
        if not any(scales):
            return None
        rows = len(latents) if last else self._rows
        shifts = self._table.at(timestep, rows)
        seen = repeat_rows(latents, rows) if len(shifts) > len(latents) else latents
        prompts: KeysValues = {reader: tuple(each[-rows:] for each in read) for reader, read in self._prompts.items()}
        found = self._network.residuals(seen, self._image, by_block(shifts, self._table.widths), prompts)
        unseen = 0 if last else self._unseen
        return tuple(
            self._whole(_scaled(each, scales, part), unseen) for each, part in zip(found, self._parts, strict=True)
        )

    def _whole(self, residual: Tensor, unseen: int) -> Tensor:
        """With zeros for the rows of negative prompts that it was not shown."""
        if not unseen:
            return residual
        return torch.cat([residual.new_zeros(unseen, *residual.shape[1:]), repeat_rows(residual, self._rows)])


def _scaled(x: Tensor, scales: Sequence[float], part: float = 1.0) -> Tensor:
    """Multiply x, a row per image or k · B rows, by what each image's counts, and by `part`."""
    if len(set(scales)) == 1:
        return x * (scales[0] * part)
    by_image = torch.tensor(scales, dtype=x.dtype, device=x.device)[:, None, None, None] * part
    return x * by_image.repeat(len(x) // len(scales), 1, 1, 1)


def _sum(parts: Iterable[tuple[Tensor, ...] | None]) -> tuple[Tensor, ...] | None:
    """The sum of what several add; None where none adds anything."""
    total: tuple[Tensor, ...] | None = None
    for added in parts:
        if added is not None:
            total = added if total is None else tuple(map(add_rows, total, added))
    return total

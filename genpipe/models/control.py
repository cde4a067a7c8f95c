"""What control networks make of their images for one batch, step by step."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor, nn

from genpipe.models.attention import KeysValues, add_rows, repeat_rows
from genpipe.models.conditioning import Conditioning
from genpipe.models.controlnet import ControlNet, guess_scales
from genpipe.models.shifts import ShiftTable, by_block
from genpipe.models.unet import UNet


@dataclass(frozen=True, eq=False)
class Shown:
    """What one ControlNet is shown in a batch.

    Attributes:
        images: (B, 3, H, W) in [0, 1].
        scales: how strongly it acts on each image.
        timesteps: those at which it acts.
    """

    images: Tensor
    scales: Sequence[float]
    timesteps: Collection[float]


class Controlled(nn.Module):
    """A U-Net with its control networks, so that all of them can be copied as one."""

    def __init__(self, unet: UNet, networks: Sequence[ControlNet]) -> None:
        super().__init__()
        self.unet, self._networks = unet, nn.ModuleList(networks)

    @property
    def networks(self) -> list[ControlNet]:
        """The control networks."""
        return [cast(ControlNet, network) for network in self._networks]


class Controls:
    """The ControlNets of a batch, as `genpipe.models.denoiser.Control` says; where none acts, none is evaluated.

    Args:
        networks: plain or prepared.
        shown: what each of them is shown.
        timesteps: those that they will be asked at.
        conditioning: the U-Net's, of k prompts per image.
        guess: show them no negative prompt, and add less the finer the layer.
    """

    def __init__(
        self,
        networks: Sequence[ControlNet],
        shown: Sequence[Shown],
        timesteps: Sequence[float],
        conditioning: Conditioning,
        *,
        guess: bool = False,
    ) -> None:
        parts = zip(networks, shown, strict=True)
        self._controls = [_OfBatch(network, each, timesteps, conditioning, guess) for network, each in parts]

    def __call__(
        self, latents: Tensor, timestep: float | Sequence[float], *, last: bool = False
    ) -> tuple[Tensor, ...] | None:
        """As `Control` says."""
        total: tuple[Tensor, ...] | None = None
        for control in self._controls:
            added = control(latents, timestep, last=last)
            if added is not None and total is not None:
                total = tuple(map(add_rows, total, added))
            elif added is not None:
                total = added
        return total


class _OfBatch:
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
        times = [timestep] * len(latents) if isinstance(timestep, int | float) else timestep
        pairs = zip(self._shown.scales, times, strict=True)
        scales = [scale if time in self._shown.timesteps else 0.0 for scale, time in pairs]
        if not any(scales):
            return None
        rows = len(latents) if last else self._rows
        shifts = self._table.at(timestep, rows)
        seen = repeat_rows(latents, rows) if len(shifts) > len(latents) else latents
        prompts: KeysValues = {reader: (k[-rows:], v[-rows:]) for reader, (k, v) in self._prompts.items()}
        found = self._network.residuals(seen, self._image, by_block(shifts, self._table.widths), prompts)
        return tuple(self._scaled(each, scales, part, last) for each, part in zip(found, self._parts, strict=True))

    def _scaled(self, residual: Tensor, scales: Sequence[float], part: float, last: bool) -> Tensor:
        if len(set(scales)) == 1:
            scaled = residual * (scales[0] * part)
        else:
            by_image = torch.tensor(scales, dtype=residual.dtype, device=residual.device)[:, None, None, None] * part
            scaled = residual * by_image.repeat(len(residual) // len(scales), 1, 1, 1)
        if not self._unseen or last:
            return scaled
        return torch.cat([scaled.new_zeros(self._unseen, *scaled.shape[1:]), repeat_rows(scaled, self._rows)])

"""The denoiser: the U-Net of Stable Diffusion ("High-Resolution Image Synthesis with Latent Diffusion Models", 2022).

The forward pass reads like the paper: push residuals going down, pop them going up. A level of either direction is the
same class; the widths of the way up are derived from what the way down pushes.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from genpipe.blocks import Upsample, conv3x3, silu
from genpipe.models.attention import Attention, KeysValues, SpatialTransformer, add_rows, repeat_rows
from genpipe.models.contracting import ContractingPath, Level, Shifts
from genpipe.models.unet_config import UNetConfig


class UNet(ContractingPath):
    """The denoiser: noisy latents, a timestep and a prompt's context to the model output (noise, velocity or sample)."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__(config)
        last, width, skips = len(config.channels) - 1, config.channels[-1], [*self.skip_channels]
        self.up = nn.ModuleList()
        for level in range(last, -1, -1):
            widths = []
            for _ in range(config.layers[level] + 1):
                widths.append(width + skips.pop())
                width = config.channels[level]
            resample = None if level == 0 else Upsample(width)
            self.up.append(Level(config, level, widths, resample, up=True))

        self.norm_out = nn.GroupNorm(config.norm_groups, config.channels[0], eps=config.norm_eps)
        self.conv_out = conv3x3(config.channels[0], config.out_channels)

    def forward(
        self,
        latents: Tensor,
        timestep: Tensor,
        context: Tensor,
        *,
        guidance: Tensor | None = None,
        pooled: Tensor | None = None,
        time_ids: Tensor | None = None,
    ) -> Tensor:
        """One evaluation of the network.

        Args:
            latents: (B, C_in, H, W), noisy, in the variance-preserving scaling.
            timestep: (B,), 0 … 999.
            context: (B, T, D), one vector per token of the prompt.
            guidance: (B,), the guidance scale, where the config has `guidance_channels`; taken as 1 if None.
            pooled, time_ids: (B, P) and (B, K), SDXL's pooled prompt and sizes, where the config has `added_channels`;
                the first alone, an image's vector, where it has `class_channels`.

        Returns:
            (B, C_out, H, W); what it means (epsilon, v, sample) is the schedule's to say.
        """
        embedding = self.embed(timestep, guidance=guidance, pooled=pooled, time_ids=time_ids)
        output, _ = self.denoise(latents, self.shifts(embedding), self.keys_values(context))
        return output

    def readers(self) -> Iterator[Attention]:
        """Yield the attentions that read the prompt: those of the way down, of the way up, and of the bottom."""
        for part in (self.down, self.up, self.middle):
            for module in () if part is None else part.modules():
                if isinstance(module, SpatialTransformer):
                    yield from module.cross_attentions()

    def denoise(
        self,
        latents: Tensor,
        shifts: Shifts,
        prompts: KeysValues,
        deep: Tensor | None = None,
        residuals: Sequence[Tensor] | None = None,
        maps: Sequence[Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Evaluate the network, given what does not depend on the latents; see `genpipe.models.denoiser`.

        Args:
            latents: (B, C_in, H, W).
            shifts: what the timestep adds, as `shifts` gives it: one row for all, a row per image, or a row per prompt.
            prompts: the keys and values of k · B prompts, as `keys_values` gives them; the B rows of all images' first
                prompts come first. What comes before the network first reads a prompt is computed once per image.
            deep: the deep features of an earlier evaluation of the same batch, in place of computing them.
            residuals: what a ControlNet adds to each skip, and last to what the bottom gives: each of B or k · B rows.
            maps: what a T2I-Adapter adds to each level on the way down, of B rows each.

        Returns:
            The output (k · B, C_out, H, W), and the deep features: the input of the last layer, before the first skip is
            joined to it.
        """
        first = self.conv_in(latents.to(self._dtype))
        if deep is None:
            deep = self._deep(first, shifts, prompts, residuals, maps)
        if residuals is not None:
            first = add_rows(first, residuals[0])
        level = cast(Level, self.up[-1])
        joined = torch.cat([deep, repeat_rows(first, len(deep))], dim=1)
        h = level.layer(len(level) - 1, joined, shifts, prompts)
        h = h.to(self.norm_out.weight.dtype)  # the last layers may run in a wider dtype than the rest
        return self.conv_out(silu(self.norm_out(h))), deep

    def _deep(
        self,
        first: Tensor,
        shifts: Shifts,
        prompts: KeysValues,
        residuals: Sequence[Tensor] | None,
        maps: Sequence[Tensor] | None,
    ) -> Tensor:
        """Run all but the first and the last layer: down, the bottom, and up to where the first skip is joined."""
        h, skips = self.contract(first, shifts, prompts, maps or ())
        if residuals is not None:
            *of_skips, of_bottom = residuals
            h, skips = add_rows(h, of_bottom), [add_rows(*pair) for pair in zip(skips, of_skips, strict=True)]
        for level in cast(Iterable[Level], self.up):
            for index in range(len(level) - (level.resample is None)):
                h = level.layer(index, torch.cat([h, repeat_rows(skips.pop(), len(h))], dim=1), shifts, prompts)
            if level.resample is not None:
                h = level.resample(h, size=skips[-1].shape[-2:])
        return h

"""Distillation of guidance: a denoiser that takes the guidance scale as an input, so that a step needs one evaluation, not two.

The first stage of "On Distillation of Guided Diffusion Models" (2023), with the scale embedded as in "Latent Consistency
Models" (2023), whose layout the checkpoint has.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from genpipe.models.tokenizer import Tokenizer
from genpipe.models.unet import UNet
from genpipe.sampling.guidance import guided
from genpipe.training.diffusion import LatentPool, TextToImage, diffusion_loss
from genpipe.training.loop import Randomness, StagedLoss, quick_attention

CHANNELS = 64  # of the embedded guidance scale
HIGHEST = 6.0  # of the scales that are learned; the lowest is 0, no prompt at all


def distilled(unet: UNet) -> UNet:
    """Return a denoiser with the weights of `unet` that takes a guidance scale, which it does not heed yet.

    Raises:
        ValueError: `unet` takes one already.
    """
    if unet.config.guidance_channels is not None:
        raise ValueError(
            "the denoiser takes the guidance scale already: give the checkpoint that it was distilled from"
        )
    made = UNet(replace(unet.config, guidance_channels=CHANNELS))
    projection = made.time_embedding.guidance
    assert projection is not None
    nn.init.zeros_(projection.weight)
    made.load_state_dict({**made.state_dict(), **unet.state_dict()})
    return made


def guidance_loss(
    pool: LatentPool,
    tokenizer: Tokenizer,
    alphas_cumprod: list[float],
    teacher: UNet,
    *,
    batch: int = 128,
) -> StagedLoss[Any]:
    """Return the loss of a distilled denoiser: mean squared distance of its velocity from the teacher's guided one.

    Scales are drawn evenly from 0 to HIGHEST. Noise levels and their weights are those of `diffusion_loss`.

    Args:
        teacher: the denoiser without a scale as input, on the device that trains.
    """
    plain = diffusion_loss(pool, tokenizer, alphas_cumprod, batch=batch, caption_dropout=0.0)
    nothing = torch.tensor(tokenizer([""]).ids)

    def admit(prepared: Any, step: int, randomness: Randomness) -> tuple[Tensor, ...]:
        given = plain.admit(prepared, step, randomness)
        return *given, HIGHEST * torch.rand(batch, generator=randomness.noise), nothing

    def value(model: nn.Module, *given: Tensor) -> Tensor:
        assert isinstance(model, TextToImage)
        latents, noise, alpha, sigma, weight, timestep, ids, scale, empty = given
        noisy = alpha[:, None, None, None] * latents + sigma[:, None, None, None] * noise
        with quick_attention(latents.device, latents.shape[-2] * latents.shape[-1]):
            with torch.no_grad():
                context = model.text_encoder(ids).context
                without = model.text_encoder(empty).context.expand_as(context)
                uncond, cond = (teacher(noisy, timestep, each).float() for each in (without, context))
                target = guided(uncond, cond, scale[:, None, None, None])
            output = model.unet(noisy, timestep, context, guidance=scale).float()
        return (weight * (output - target).square().mean(dim=(1, 2, 3))).mean()

    return StagedLoss(plain.prepare, admit, value)

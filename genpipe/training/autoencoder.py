"""Training the autoencoder: pixels to latents and back."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genpipe.blocks import ResidualBlock, Upsample, zero_init
from genpipe.models.vae import VAE, Level
from genpipe.training.loop import Randomness

# Standard deviation of the noise on latents in training. The denoiser leaves errors of about this size, so the decoder
# learns to draw a clean image from them, and the latents cannot hide detail in their last digits.
LATENT_NOISE = 0.1


def gradient_loss(pixels: Tensor, target: Tensor) -> Tensor:
    """Return the mean absolute difference of the horizontal and vertical differences of two images.

    It rewards sharp edges.
    """
    horizontal = (pixels.diff(dim=-1) - target.diff(dim=-1)).abs().mean()
    return horizontal + (pixels.diff(dim=-2) - target.diff(dim=-2)).abs().mean()


def autoencoder_loss(
    images: Callable[[Randomness], Tensor], *, decoder_only: bool = False
) -> Callable[[nn.Module, int, Randomness], Tensor]:
    """Return the loss of the autoencoder: L1 plus `gradient_loss`, with noise on the latents and a weak pull of their mean
    square towards zero.

    The pull against the noise of fixed size is the KL term of a VAE whose posterior has variance LATENT_NOISE².

    Args:
        images: draws a batch of pixels (B, 3, H, W) in [-1, 1].
        decoder_only: keep the encoder as it is, so that a denoiser trained on its latents stays valid.
    """

    def loss(model: nn.Module, step: int, randomness: Randomness) -> Tensor:
        assert isinstance(model, VAE)
        pixels = images(randomness)
        with torch.set_grad_enabled(not decoder_only):
            mean, _ = model.encode(pixels)
        noise = torch.randn(mean.shape, generator=randomness.noise).to(mean.device)
        unit = model.scale(mean.float())
        decoded = model.decode(unit + LATENT_NOISE * noise).float()
        reconstruction = (decoded - pixels).abs().mean() + 0.5 * gradient_loss(decoded, pixels)
        return reconstruction if decoder_only else reconstruction + 1e-3 * unit.square().mean()

    return loss


@torch.no_grad()
def grown(vae: VAE) -> VAE:
    """Return an autoencoder with one more level at its finest end, for images of twice the size from the same latents.

    A denoiser trained on the latents stays valid. The new levels begin as the identity, so that the decoder begins near
    what `vae` draws, enlarged; the rest is for training with `growing_loss`.
    """
    config = vae.config
    made = VAE(replace(config, channels=(config.channels[0], *config.channels), sample_size=2 * config.sample_size))
    made = made.to(next(vae.parameters()).device)
    for part, own in ((made.encoder.down, vae.encoder.down), (made.decoder.up, vae.decoder.up)):
        first = len(part) - len(own) if part is made.encoder.down else 0  # the finest level: first down, last up
        for level, old in enumerate(own):
            part[first + level].load_state_dict(old.state_dict(), strict=False)  # the new resampling alone is missing
    for name in ("conv_in", "middle", "norm_out", "conv_out"):
        for side, own in ((made.encoder, vae.encoder), (made.decoder, vae.decoder)):
            getattr(side, name).load_state_dict(getattr(own, name).state_dict())
    made.to_moments, made.from_latents = deepcopy(vae.to_moments), deepcopy(vae.from_latents)
    for level in (made.encoder.down[0], made.decoder.up[-1]):
        assert isinstance(level, Level)
        for block in level.residuals:
            assert isinstance(block, ResidualBlock)
            zero_init(block.conv2)
    last = made.decoder.up[-2]
    assert isinstance(last, Level) and isinstance(last.resample, Upsample)
    nn.init.dirac_(last.resample.conv.weight)
    nn.init.zeros_(last.resample.conv.bias)  # pyright: ignore[reportArgumentType]
    return made


def growing_loss(images: Callable[[Randomness], Tensor], before: VAE) -> Callable[[nn.Module, int, Randomness], Tensor]:
    """Return the loss of an autoencoder that `grown` made of `before`, which stays as it is.

    The decoder learns to draw images from the latents that `before` gives of them at half the size: L1 plus
    `gradient_loss`, with noise on the latents. The encoder learns to give those latents: mean squared error, over a
    quarter of the batch, as it learns faster.

    Args:
        images: draws a batch of pixels (B, 3, H, W) in [-1, 1], twice as large as those that `before` was trained on.
    """

    def loss(model: nn.Module, step: int, randomness: Randomness) -> Tensor:
        assert isinstance(model, VAE)
        pixels = images(randomness)
        with torch.no_grad():
            latents = before.scale(before.encode(F.avg_pool2d(pixels, 2))[0].float())
        noise = torch.randn(latents.shape, generator=randomness.noise).to(latents.device)
        decoded = model.decode(latents + LATENT_NOISE * noise).float()
        few = max(1, len(pixels) // 4)
        encoded = model.scale(model.encode(pixels[:few])[0].float())
        drawing = (decoded - pixels).abs().mean() + 0.5 * gradient_loss(decoded, pixels)
        return drawing + F.mse_loss(encoded, latents[:few])

    return loss


@torch.no_grad()
def standardise_latents(vae: VAE, pixels: Tensor) -> None:
    """Fold the mean and the standard deviation of each latent channel into the 1×1 convolutions beside the latents.

    Afterwards latents of images like `pixels` (B, 3, H, W) have mean 0 and variance 1 in every channel, which one
    scaling factor for all channels, as in the checkpoint's layout, could not give. What is decoded does not change.
    """
    before, after = vae.to_moments, vae.from_latents
    if not isinstance(before, nn.Conv2d) or not isinstance(after, nn.Conv2d):
        raise ValueError("this autoencoder has no 1x1 convolutions beside its latents to fold the scale into")
    assert before.bias is not None and after.bias is not None
    latents = vae.scale(vae.encode(pixels)[0].float())
    mean, std = latents.mean(dim=(0, 2, 3)), latents.std(dim=(0, 2, 3)).clamp(min=1e-4)
    config = vae.config
    # decode computes W (z / scaling + shift) + b; with z = std z' + mean that is (W std) z' / scaling + …
    weight = after.weight[:, :, 0, 0].clone()
    after.bias.add_(weight @ (mean / config.scaling_factor + (1 - std) * config.shift_factor))
    after.weight.mul_(std[None, :, None, None])
    # encode gives e; scale(e) = (e - shift) scaling must become (scale(e) - mean) / std
    channels = config.latent_channels
    offset = config.shift_factor - config.shift_factor / std - mean / (config.scaling_factor * std)
    before.weight[:channels].div_(std[:, None, None, None])
    before.bias[:channels].div_(std).add_(offset)
    # The half that holds the log-variance was never trained: state the variance that training used.
    before.weight[channels:].zero_()
    before.bias[channels:] = 2 * torch.log(LATENT_NOISE / std / config.scaling_factor)


@torch.no_grad()
def psnr(vae: VAE, pixels: Tensor) -> float:
    """Return the peak signal-to-noise ratio, in dB, of reconstructions of pixels (B, 3, H, W) in [-1, 1]: mean over the images."""
    decoded = vae.decode(vae.scale(vae.encode(pixels)[0].float())).float().clamp(-1, 1)
    mse = ((decoded - pixels) / 2).square().mean(dim=(1, 2, 3))
    return float((-10 * mse.clamp(min=1e-10).log10()).mean())

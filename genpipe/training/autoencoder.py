"""Training the autoencoder: pixels to latents and back."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.profiler import record_function

from genpipe.blocks import ResidualBlock, Upsample, zero_init
from genpipe.models.vae import VAE, Level, VAEConfig
from genpipe.training.loop import Randomness, StagedLoss

# Standard deviation of the noise on latents in training. The denoiser leaves errors of about this size, so the decoder
# learns to draw a clean image from them, and the latents cannot hide detail in their last digits.
LATENT_NOISE = 0.1
# Of a grown autoencoder: weights of the latents' distance from those of before, and of squared errors of the pixels.
NEAR, SQUARES = 0.03, 2.0


def gradient_loss(pixels: Tensor, target: Tensor) -> Tensor:
    """Return the mean absolute difference of the horizontal and vertical differences of two images.

    It rewards sharp edges.
    """
    horizontal = (pixels.diff(dim=-1) - target.diff(dim=-1)).abs().mean()
    return horizontal + (pixels.diff(dim=-2) - target.diff(dim=-2)).abs().mean()


def autoencoder_loss(
    images: Callable[[Randomness], Tensor], config: VAEConfig, *, decoder_only: bool = False
) -> StagedLoss[np.ndarray]:
    """Return the loss of the autoencoder: L1 plus `gradient_loss`, with noise on the latents and a weak pull of their mean
    square towards zero.

    The pull against the noise of fixed size is the KL term of a VAE whose posterior has variance LATENT_NOISE².

    Args:
        images: draws a batch of pixels (B, 3, H, W) in [-1, 1], on the CPU.
        config: of the autoencoder.
        decoder_only: keep the encoder as it is, so that a denoiser trained on its latents stays valid.
    """

    def value(model: nn.Module, pixels: Tensor, noise: Tensor) -> Tensor:
        assert isinstance(model, VAE)
        with torch.set_grad_enabled(not decoder_only):
            mean, _ = model.encode(pixels)
        unit = model.scale(mean.float())
        decoded = model.decode(unit + LATENT_NOISE * noise).float()
        reconstruction = (decoded - pixels).abs().mean() + 0.5 * gradient_loss(decoded, pixels)
        return reconstruction if decoder_only else reconstruction + 1e-3 * unit.square().mean()

    return _staged(images, config, value)


def grown_config(config: VAEConfig) -> VAEConfig:
    """Return the shape of an autoencoder with one more level at its finest end."""
    return replace(config, channels=(config.channels[0], *config.channels), sample_size=2 * config.sample_size)


@torch.no_grad()
def grown(vae: VAE) -> VAE:
    """Return an autoencoder with one more level at its finest end, for images of twice the size from the same latents.

    A denoiser trained on the latents stays valid. The new levels begin as the identity, so that the decoder begins near
    what `vae` draws, enlarged; the rest is for training with `growing_loss`.
    """
    made = VAE(grown_config(vae.config))
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


def growing_loss(images: Callable[[Randomness], Tensor], before: VAE) -> StagedLoss[np.ndarray]:
    """Return the loss of an autoencoder that `grown` made of `before`, which stays as it is.

    The decoder learns to draw images from the latents that `before` gives of them at half the size, and half of them from
    the new encoder's: L1 plus `gradient_loss`, with noise on the latents. The encoder learns to give what the decoder
    draws the image from, squared errors included, not far from the latents of `before` (mean squared error, times NEAR): it
    sees detail that those could not know of.

    Args:
        images: draws a batch of pixels (B, 3, H, W) in [-1, 1], twice as large as those that `before` was trained on, on
            the CPU.
    """

    def value(model: nn.Module, pixels: Tensor, noise: Tensor) -> Tensor:
        assert isinstance(model, VAE)
        with torch.no_grad():
            latents = before.scale(before.encode(F.avg_pool2d(pixels, 2))[0].float())
        few = max(1, len(pixels) // 2)
        encoded = model.scale(model.encode(pixels[:few])[0].float())
        decoded = model.decode(torch.cat([encoded, latents[few:]]) + LATENT_NOISE * noise).float()
        drawing = (decoded - pixels).abs().mean() + 0.5 * gradient_loss(decoded, pixels)
        squares = F.mse_loss(decoded[:few], pixels[:few])
        return drawing + SQUARES * squares + NEAR * F.mse_loss(encoded, latents[:few])

    return _staged(images, grown_config(before.config), value)


def _staged(
    images: Callable[[Randomness], Tensor], config: VAEConfig, value: Callable[[nn.Module, Tensor, Tensor], Tensor]
) -> StagedLoss[np.ndarray]:
    """A loss of pixels and of noise in the shape of their latents."""

    def prepare(step: int, randomness: Randomness) -> np.ndarray:
        with record_function("training/draw"):
            return images(randomness).numpy()

    def admit(prepared: np.ndarray, step: int, randomness: Randomness) -> tuple[Tensor, ...]:
        pixels = torch.from_numpy(prepared)
        count, _, *sides = pixels.shape
        shape = (count, config.latent_channels, *(side // config.factor for side in sides))
        return pixels, torch.randn(shape, generator=randomness.noise)

    return StagedLoss(prepare, admit, value)


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

"""Training the autoencoder: pixels to latents and back."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from genpipe.models.vae import VAE
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

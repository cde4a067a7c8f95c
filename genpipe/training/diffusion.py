"""Training the text encoder and the denoiser together, on latents of the trained autoencoder."""

import random
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from genpipe.blocks import ResidualBlock, zero_init
from genpipe.models.attention import SpatialTransformer
from genpipe.models.text_encoder import TextEncoder
from genpipe.models.tokenizer import Tokenizer
from genpipe.models.unet import UNet
from genpipe.training.loop import Randomness, quick_attention


class TextToImage(nn.Module):
    """The two networks that are trained together."""

    def __init__(self, text_encoder: TextEncoder, unet: UNet) -> None:
        super().__init__()
        self.text_encoder = text_encoder
        self.unet = unet

    def initialise(self) -> "TextToImage":
        """Draw fresh weights: residual branches of the denoiser begin at zero, embeddings are small as in CLIP."""
        for module in self.unet.modules():
            if isinstance(module, ResidualBlock):
                zero_init(module.conv2)
            elif isinstance(module, SpatialTransformer):
                zero_init(module.project_out)
        zero_init(self.unet.conv_out)
        nn.init.normal_(self.text_encoder.token_embedding.weight, std=0.02)
        nn.init.normal_(self.text_encoder.position_embedding.weight, std=0.01)
        return self

    def forward(self, latents: Tensor, timestep: Tensor, ids: Tensor) -> Tensor:
        """Return the model output (B, C, h, w) for latents (B, C, h, w), timesteps (B,) and token ids (B, T)."""
        return self.unet(latents, timestep, self.text_encoder(ids).context)


# Words one of the captions of an image; in which words is up to chance.
Wording = Callable[[random.Random], str]


class LatentPool:
    """A moving window over an endless, seeded sequence of captioned images, held as latents.

    Drawing and encoding an image costs a third of a training step, so each is used several times, with fresh noise and
    a freshly worded caption. The window is a function of the step alone: a resumed run refills it with what it held.

    Args:
        source: images start … stop - 1 of the sequence, as latents (n, C, h, w) and their captions.
        initial: images in the window at step 0.
        fresh: images that join at each step; the oldest leave once there are `capacity`.
        period: after so many images the sequence begins again; None if it never does.
    """

    def __init__(
        self,
        source: Callable[[int, int], tuple[Tensor, Sequence[Wording]]],
        *,
        initial: int = 2048,
        fresh: int = 8,
        capacity: int = 32768,
        period: int | None = None,
    ) -> None:
        # A window that can hold the whole period stops moving once it does: each image is then encoded only once.
        self._end = period if period is not None and period <= capacity else None
        capacity = self._end or capacity
        self._source, self._initial, self._fresh, self._capacity = source, initial, fresh, capacity
        self._latents: Tensor | None = None  # ring buffer: image i lies at i mod capacity
        self._captions: list[Wording | None] = [None] * capacity
        self._stop = 0

    def draw(self, step: int, batch: int, rng: random.Random) -> tuple[Tensor, list[str]]:
        """Return `batch` latents and captions, uniformly from the window at `step`."""
        stop = self._initial + self._fresh * step
        stop = stop if self._end is None else min(stop, self._end)
        start = max(0, stop - self._capacity)
        position = max(self._stop, start)
        while position < stop:
            until = min(position + 64, stop)
            self._put(position, *self._source(position, until))
            position = until
        self._stop = stop
        assert self._latents is not None
        chosen = [rng.randrange(start, stop) % self._capacity for _ in range(batch)]
        captions = [caption(rng) for index in chosen if (caption := self._captions[index]) is not None]
        return self._latents[chosen].float(), captions

    def _put(self, start: int, latents: Tensor, captions: Sequence[Wording]) -> None:
        if self._latents is None:
            self._latents = latents.new_empty(self._capacity, *latents.shape[1:], dtype=torch.float16)
        slots = [(start + i) % self._capacity for i in range(len(latents))]
        self._latents[slots] = latents.half()
        for slot, caption in zip(slots, captions, strict=True):
            self._captions[slot] = caption


def diffusion_loss(
    pool: LatentPool,
    tokenizer: Tokenizer,
    alphas_cumprod: Sequence[float],
    *,
    batch: int = 128,
    caption_dropout: float = 0.1,
    gamma: float = 5.0,
) -> Callable[[nn.Module, int, Randomness], Tensor]:
    """Return the loss of the denoiser: mean squared error of the velocity, with less weight on latents of little noise.

    v-prediction is "Progressive Distillation for Fast Sampling of Diffusion Models" (2022); the weights
    min(1, gamma / (SNR + 1)) are those of "Efficient Diffusion Training via Min-SNR Weighting Strategy" (2023) at low
    noise. At high noise, where the prompt alone tells what to draw, they stay 1: there a small network learns its words.

    Args:
        alphas_cumprod: the schedule's squared alphas, one per timestep.
        caption_dropout: share of captions replaced by the empty one, which guidance needs.
    """
    squared = torch.tensor(alphas_cumprod, dtype=torch.float32)
    snr = squared / (1 - squared)
    weights = (gamma / (snr + 1)).clamp(max=1.0)

    def loss(model: nn.Module, step: int, randomness: Randomness) -> Tensor:
        latents, captions = pool.draw(step, batch, randomness.choices)
        captions = ["" if randomness.choices.random() < caption_dropout else caption for caption in captions]
        device = latents.device
        ids = torch.tensor(tokenizer(captions).ids, device=device)
        # One timestep in each of `batch` equal stretches: the loss says less by chance.
        stretch = torch.arange(batch) + torch.rand(batch, generator=randomness.noise)
        timestep = (stretch * (len(squared) / batch)).long().clamp(max=len(squared) - 1)
        noise = torch.randn(latents.shape, generator=randomness.noise).to(device)
        alpha = squared[timestep].sqrt().to(device)[:, None, None, None]
        sigma = (1 - squared[timestep]).sqrt().to(device)[:, None, None, None]
        noisy = alpha * latents + sigma * noise
        velocity = alpha * noise - sigma * latents
        with quick_attention(device, latents.shape[-2] * latents.shape[-1]):
            output = model(noisy, timestep.to(device), ids).float()
        error = (output - velocity).square().mean(dim=(1, 2, 3))
        return (weights[timestep].to(device) * error).mean()

    return loss

"""Training the text encoder and the denoiser together, on latents of the trained autoencoder."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.profiler import record_function

from genpipe.blocks import ResidualBlock, zero_init
from genpipe.models.attention import SpatialTransformer
from genpipe.models.text_encoder import TextEncoder
from genpipe.models.tokenizer import Tokenizer
from genpipe.models.unet import UNet
from genpipe.training.ahead import ahead, sent
from genpipe.training.loop import Randomness, StagedLoss, quick_attention


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


class CaptionedSequence(Protocol):
    """An endless sequence of captioned images, always the same; any process can make any part of it."""

    def pixels(self, start: int, stop: int) -> Tensor:
        """Return images start … stop - 1: (n, 3, H, W) in [-1, 1], on the CPU."""
        ...

    def wording(self, index: int) -> Wording:
        """Return what words the captions of an image."""
        ...


@dataclass(frozen=True)
class Chosen:
    """What a step takes from a `LatentPool`, as far as it can be made without the latents.

    Attributes:
        pixels: of the images that the pool wants from this step on (n, 3, H, W); None if it wants no more.
        slots: of the images that are used (B,), in the pool's buffer.
        captions: theirs.
    """

    pixels: np.ndarray | None
    slots: np.ndarray
    captions: list[str]


class LatentPool:
    """A moving window over an endless, seeded sequence of captioned images, held as latents.

    Drawing and encoding an image costs a third of a training step, so each is used several times, with fresh noise and
    a freshly worded caption. The window is a function of the step alone: a resumed run refills it with what it held.

    Args:
        images: the sequence.
        encode: pixels (n, 3, H, W) to latents (n, C, h, w), on the device that trains.
        initial: images in the window at step 0.
        fresh: images that join at each step; the oldest leave once there are `capacity`.
        period: after so many images the sequence begins again; None if it never does.
        block: images that are drawn and encoded together, some of them before they join: one by one they take longer.
        workers: processes that draw what the window holds at the first step.
    """

    def __init__(
        self,
        images: CaptionedSequence,
        encode: Callable[[Tensor], Tensor],
        *,
        initial: int = 2048,
        fresh: int = 8,
        capacity: int = 32768,
        period: int | None = None,
        block: int = 64,
        workers: int = 0,
    ) -> None:
        # A window that can hold the whole period stops moving once it does: each image is then encoded only once.
        self._end = period if period is not None and period <= capacity else None
        capacity = self._end or capacity
        self._images, self._encode, self._block, self._workers = images, encode, block, workers
        self._initial, self._fresh, self._capacity = initial, fresh, capacity
        self._latents: Tensor | None = None  # ring buffer: image i lies at i mod its length
        self._slots = capacity if self._end else capacity + block
        self._held = 0

    def draw(self, step: int, batch: int, rng: random.Random) -> tuple[Tensor, list[str]]:
        """Return `batch` latents and captions, uniformly from the window at `step`."""
        chosen = self.choose(step, batch, rng)
        return self.latents(step, chosen), chosen.captions

    def choose(self, step: int, batch: int, rng: random.Random) -> Chosen:
        """Choose what `draw` returns, and draw the images that are wanted from `step` on; another process may do it."""
        stop, wanted, held = self._stop(step), self._wanted(step), self._wanted(step - 1)
        with record_function("training/draw"):
            # At its first step the pool is filled by `latents`.
            pixels = self._images.pixels(held, wanted).numpy() if step and held < wanted else None
        with record_function("training/captions"):
            indices = [rng.randrange(max(0, stop - self._capacity), stop) for _ in range(batch)]
            captions = [self._images.wording(index)(rng) for index in indices]
        return Chosen(pixels, np.array(indices) % self._slots, captions)

    def latents(self, step: int, chosen: Chosen) -> Tensor:
        """Return the latents (B, C, h, w) of what was chosen at `step`; encodes what is wanted from then on."""
        wanted = self._wanted(step)
        before = wanted if chosen.pixels is None else wanted - len(chosen.pixels)
        missing = range(max(self._held, self._stop(step) - self._capacity, 0), before, self._block)

        def pixels(start: int) -> np.ndarray:
            return self._images.pixels(start, min(start + self._block, before)).numpy()

        parts = ahead(pixels, missing, workers=self._workers if len(missing) > 1 else 0)
        for start, part in zip(missing, parts, strict=True):
            self._put(start, part)
        if chosen.pixels is not None and self._held < wanted:
            self._put(before, chosen.pixels)
        self._held = wanted
        assert self._latents is not None
        return self._latents[sent(torch.from_numpy(chosen.slots), self._latents.device)].float()

    def _stop(self, step: int) -> int:
        """Where the window ends at a step."""
        stop = self._initial + self._fresh * step
        return stop if self._end is None else min(stop, self._end)

    def _wanted(self, step: int) -> int:
        """Up to where images are held at a step: to the end of the window's last block."""
        wanted = -(-self._stop(step) // self._block) * self._block
        return wanted if self._end is None else min(wanted, self._end)

    def _put(self, start: int, pixels: np.ndarray) -> None:
        with record_function("training/encode"):
            latents = self._encode(torch.from_numpy(pixels))
            if self._latents is None:
                self._latents = latents.new_empty(self._slots, *latents.shape[1:], dtype=torch.float16)
            slots = torch.arange(start, start + len(latents)) % self._slots
            self._latents[sent(slots, latents.device)] = latents.half()


def diffusion_loss(
    pool: LatentPool,
    tokenizer: Tokenizer,
    alphas_cumprod: Sequence[float],
    *,
    batch: int = 128,
    caption_dropout: float = 0.1,
    gamma: float = 5.0,
) -> StagedLoss[tuple[Chosen, np.ndarray]]:
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

    def prepare(step: int, randomness: Randomness) -> tuple[Chosen, np.ndarray]:
        chosen = pool.choose(step, batch, randomness.choices)
        with record_function("training/captions"):
            dropped = ["" if randomness.choices.random() < caption_dropout else caption for caption in chosen.captions]
            return chosen, np.array(tokenizer(dropped).ids)

    def admit(prepared: tuple[Chosen, np.ndarray], step: int, randomness: Randomness) -> tuple[Tensor, ...]:
        chosen, ids = prepared
        latents = pool.latents(step, chosen)
        # One timestep in each of `batch` equal stretches: the loss says less by chance.
        stretch = torch.arange(batch) + torch.rand(batch, generator=randomness.noise)
        timestep = (stretch * (len(squared) / batch)).long().clamp(max=len(squared) - 1)
        noise = torch.randn(latents.shape, generator=randomness.noise)
        alpha, weight = squared[timestep].sqrt(), weights[timestep]
        sigma = (1 - squared[timestep]).sqrt()
        return latents, noise, alpha, sigma, weight, timestep, torch.from_numpy(ids)

    def value(model: nn.Module, *given: Tensor) -> Tensor:
        latents, noise, alpha, sigma, weight, timestep, ids = given
        alpha, sigma = alpha[:, None, None, None], sigma[:, None, None, None]
        velocity = alpha * noise - sigma * latents
        with quick_attention(latents.device, latents.shape[-2] * latents.shape[-1]):
            output = model(alpha * latents + sigma * noise, timestep, ids).float()
        return (weight * (output - velocity).square().mean(dim=(1, 2, 3))).mean()

    return StagedLoss(prepare, admit, value)

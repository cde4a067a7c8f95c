"""Training a segmentation on scenes, where it is known whose every pixel is."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from genpipe.scenes.compose import Composer, Truth
from genpipe.scenes.concepts import names
from genpipe.scenes.world import sample
from genpipe.training.loop import Randomness

Batches = Callable[[Randomness], tuple[Tensor, Tensor]]


def segmentation_loss(batches: Batches) -> Callable[[nn.Module, int, Randomness], Tensor]:
    """Return the cross-entropy of every pixel, for `genpipe.training.loop.fit`.

    Args:
        batches: draws pixels (B, 3, H, W), preprocessed, and classes (B, H, W) int64; a negative class does not count.
    """

    def loss(model: nn.Module, step: int, randomness: Randomness) -> Tensor:
        pixels, labels = batches(randomness)
        device = next(model.parameters()).device
        logits = model(pixels.to(device)).float()  # (B, K, H, W)
        # One pixel per row: with many classes far faster than along the second axis.
        rows = logits.permute(0, 2, 3, 1).reshape(-1, logits.shape[1])
        return F.cross_entropy(rows, labels.to(device).flatten().clamp(min=-1), ignore_index=-1)

    return loss


def scene_segmentations(composer: Composer, concepts: Sequence[str], batch: int) -> Batches:
    """Return batches of random training scenes of these concepts: pixels in [-1, 1], and labels as in `label_map`."""

    def draw_batch(randomness: Randomness) -> tuple[Tensor, Tensor]:
        pixels, truths = composer.truth([sample(randomness.choices, concepts) for _ in range(batch)])
        return pixels, torch.stack([label_map(truth, concepts) for truth in truths])

    return draw_batch


def label_map(truth: Truth, concepts: Sequence[str]) -> Tensor:
    """Return whose each pixel is: (size, size) int64, 0 for the setting and 1 + i for `concepts[i]`."""
    labels = torch.zeros(truth.masks.shape[-2:], dtype=torch.long, device=truth.masks.device)
    for concept, mask in zip(truth.concepts.tolist(), truth.masks, strict=True):
        labels[mask] = 1 + concepts.index(names()[concept])
    return labels

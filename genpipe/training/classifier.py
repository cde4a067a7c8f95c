"""Training a classifier on batches of images, wherever they come from."""

from collections.abc import Callable
from pathlib import Path

from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn import functional as F

from genpipe.training.loop import Budget, Randomness, fit


def classification_loss(
    batches: Callable[[Randomness], tuple[Tensor, Tensor]], *, smoothing: float = 0.1
) -> Callable[[nn.Module, int, Randomness], Tensor]:
    """Return cross-entropy with label smoothing ("Rethinking the Inception Architecture for Computer Vision", 2015).

    Args:
        batches: draws pixels (B, C, H, W), preprocessed, and class indices (B,) int64.
        smoothing: the share of a label that is spread over all classes; 0 takes labels at their word.

    Raises:
        ValueError: a smoothing outside 0 … 1.
    """
    if not 0 <= smoothing < 1:
        raise ValueError(f"a label smoothing of {smoothing} is out of range: use 0 or more, below 1")

    def loss(model: nn.Module, step: int, randomness: Randomness) -> Tensor:
        pixels, labels = batches(randomness)
        device = next(model.parameters()).device
        logits = model(pixels.to(device)).float()
        return F.cross_entropy(logits, labels.to(device), label_smoothing=smoothing)

    return loss


def train_classifier(
    model: nn.Module,
    batches: Callable[[Randomness], tuple[Tensor, Tensor]],
    *,
    directory: Path,
    budget: Budget,
    accelerator: Accelerator,
    peak_rate: float = 1e-3,
    smoothing: float = 0.1,
    average: float = 0.999,
    seed: int = 0,
    on_checkpoint: Callable[[nn.Module], None] | None = None,
) -> nn.Module:
    """Train `model` on what `batches` draws, and return the moving average of its weights, in evaluation mode.

    Layers that `genpipe.vision.transfer.freeze` froze stay as they are. The same seed, model and batches give the same
    weights, also when the run was killed and continued in between.

    Args:
        model: pixels to logits; trained in place.
        batches: see `classification_loss`; all of its randomness has to come from the draw.
        directory, budget, accelerator, peak_rate, average, seed, on_checkpoint: see `genpipe.training.loop.fit`.
        smoothing: of the labels.

    Raises:
        ValueError: a smoothing outside 0 … 1.
        FloatingPointError: the loss is not finite.
    """
    return fit(
        model.train(),
        classification_loss(batches, smoothing=smoothing),
        directory=directory,
        budget=budget,
        peak_rate=peak_rate,
        accelerator=accelerator,
        muon=False,  # a small batch of small images costs less than making wide layers' steps orthogonal
        average=average,
        seed=seed,
        on_checkpoint=on_checkpoint,
    )

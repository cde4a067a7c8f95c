"""How good classifiers, segmentations and detections are."""

from collections.abc import Sequence

import torch
from torch import Tensor


def top_k_error(logits: Tensor, labels: Tensor, k: int = 1) -> float:
    """Return the share of images whose label is not among the `k` likeliest; the order of equal logits is torch's.

    Args:
        logits: (N, K) or anything that orders the classes alike.
        labels: (N,) int64.

    Raises:
        ValueError: no images, shapes that do not belong together, or `k` out of 1 … K.
    """
    if logits.ndim != 2 or labels.shape != logits.shape[:1] or not len(labels):
        raise ValueError(f"logits {tuple(logits.shape)} and labels {tuple(labels.shape)} are not (N, K) and (N,)")
    if not 1 <= k <= logits.shape[1]:
        raise ValueError(f"k {k} is out of range: use 1 to {logits.shape[1]}, the number of classes")
    found = (logits.topk(k, dim=1).indices == labels[:, None]).any(dim=1)
    return 1 - found.double().mean().item()


def confusion_matrix(predicted: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Count how often each class (row) was taken for each (column): (classes, classes) int64.

    Matrices of batches add up. Of segmentations every pixel counts.

    Args:
        predicted: class indices, int64, of any shape.
        labels: of the same shape; where it is negative nothing is counted.

    Raises:
        ValueError: other shapes, or an index of `classes` or more.
    """
    if predicted.shape != labels.shape:
        raise ValueError(f"predictions {tuple(predicted.shape)} and labels {tuple(labels.shape)} differ in shape")
    counted = labels >= 0
    predicted, labels = predicted[counted], labels[counted]
    for name, indices in (("predicted", predicted), ("labelled", labels)):
        if indices.numel() and not 0 <= indices.min() <= indices.max() < classes:
            raise ValueError(f"a {name} class is out of range: use 0 to {classes - 1}")
    return torch.bincount(labels * classes + predicted, minlength=classes**2).reshape(classes, classes)


def per_class_accuracy(confusion: Tensor) -> Tensor:
    """Return the share of each class that was recognised: (K,) float64, NaN for a class without images."""
    return confusion.diagonal().double() / confusion.sum(dim=1)


def mean_iou(confusion: Tensor) -> float:
    """Return the mean intersection over union of the classes, of the pixels counted by `confusion_matrix`.

    Classes that are neither there nor predicted are left out; NaN if all are.
    """
    intersection = confusion.diagonal().double()
    union = confusion.sum(dim=0) + confusion.sum(dim=1) - intersection
    return (intersection / union)[union > 0].mean().item()


def box_iou(first: Tensor, second: Tensor) -> Tensor:
    """Return the intersection over union of boxes (N, 4) and (M, 4), left, top, right, bottom: (N, M); 0 for two empty boxes."""
    corner = torch.maximum(first[:, None, :2], second[None, :, :2])  # (N, M, 2)
    size = (torch.minimum(first[:, None, 2:], second[None, :, 2:]) - corner).clamp(min=0)
    intersection = size.prod(dim=2)
    areas = [(boxes[:, 2:] - boxes[:, :2]).clamp(min=0).prod(dim=1) for boxes in (first, second)]
    union = areas[0][:, None] + areas[1][None] - intersection
    return torch.where(union > 0, intersection / union, 0.0)


def average_precision(
    boxes: Sequence[Tensor], scores: Sequence[Tensor], truths: Sequence[Tensor], *, threshold: float = 0.5
) -> float:
    """Return the average precision of the detections of one class over a set of images, as Pascal VOC computes it since 2010.

    From the highest score down, a detection is right if the true box of its image that it overlaps most does so by
    `threshold` (intersection over union) and was not found before. The result is the area under precision over recall,
    after precision was raised to the highest at any greater recall.

    Args:
        boxes: for each image (D, 4), left, top, right, bottom.
        scores: for each image (D,).
        truths: for each image (T, 4); D and T may be 0.

    Returns:
        0 … 1; NaN if no image has a true box.

    Raises:
        ValueError: lists of different lengths, or an image with boxes and scores of different numbers.
    """
    if not len(boxes) == len(scores) == len(truths):
        raise ValueError(
            f"{len(boxes)} boxes, {len(scores)} scores and {len(truths)} truths are not of the same images"
        )
    ranked: list[tuple[float, int, int]] = []  # score, image, detection
    for image, (found, values) in enumerate(zip(boxes, scores, strict=True)):
        if len(found) != len(values):
            raise ValueError(f"image {image} has {len(found)} boxes and {len(values)} scores: give one for each")
        ranked += ((value, image, index) for index, value in enumerate(values.tolist()))
    total = sum(len(boxes) for boxes in truths)
    if not total:
        return float("nan")
    overlaps = [box_iou(found, true) for found, true in zip(boxes, truths, strict=True)]
    taken = [set[int]() for _ in truths]
    right: list[float] = []
    for _, image, index in sorted(ranked, key=lambda item: -item[0]):
        overlap = overlaps[image][index]
        best = int(overlap.argmax()) if len(overlap) else -1
        hit = best >= 0 and overlap[best].item() >= threshold and best not in taken[image]
        if hit:
            taken[image].add(best)
        right.append(float(hit))
    hits = torch.tensor(right, dtype=torch.float64)
    precision = hits.cumsum(0) / torch.arange(1, len(hits) + 1)
    raised = precision.flip(0).cummax(0).values.flip(0) if len(hits) else precision
    return ((raised * hits).sum() / total).item()  # each hit is a step of 1/total in recall


def mean_average_precision(
    boxes: Sequence[Tensor],
    scores: Sequence[Tensor],
    labels: Sequence[Tensor],
    truths: Sequence[Tensor],
    true_labels: Sequence[Tensor],
    *,
    threshold: float = 0.5,
) -> float:
    """Return the mean of `average_precision` over the classes that have a true box.

    Args:
        boxes, scores, truths, threshold: see `average_precision`, of all classes together.
        labels: for each image (D,), the classes of its boxes.
        true_labels: for each image (T,), those of its true boxes.

    Returns:
        0 … 1; NaN if no image has a true box.
    """
    present = sorted({label for each in true_labels for label in each.tolist()})
    values = []
    for label in present:
        mine = [each == label for each in labels]
        values.append(
            average_precision(
                [found[kept] for found, kept in zip(boxes, mine, strict=True)],
                [found[kept] for found, kept in zip(scores, mine, strict=True)],
                [true[each == label] for true, each in zip(truths, true_labels, strict=True)],
                threshold=threshold,
            )
        )
    return sum(values) / len(values) if values else float("nan")

"""Training a detector on scenes, whose every box is known."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from genpipe.scenes.compose import Composer, Truth
from genpipe.scenes.concepts import names
from genpipe.scenes.world import sample
from genpipe.training.loop import Randomness
from genpipe.vision.detection import STRIDE, Maps, around, places

RADIUS = 1.5  # how many places from the middle of a box still learn it, along either axis


@dataclass(frozen=True)
class LabelledBoxes:
    """The true objects of one image; K may be 0."""

    boxes: Tensor  # (K, 4) float32: left, top, right, bottom in pixels
    labels: Tensor  # (K,) int64


Batches = Callable[[Randomness], tuple[Tensor, Sequence[LabelledBoxes]]]


def detection_loss(batches: Batches) -> Callable[[nn.Module, int, Randomness], Tensor]:
    """Return the loss of FCOS, for `genpipe.training.loop.fit` and a `genpipe.vision.detection.Detector`.

    Args:
        batches: draws pixels (B, 3, H, W), preprocessed, and what is in each image.
    """

    def loss(model: nn.Module, step: int, randomness: Randomness) -> Tensor:
        pixels, objects = batches(randomness)
        return fcos_loss(model(pixels.to(next(model.parameters()).device)), objects)

    return loss


def fcos_loss(maps: Maps, objects: Sequence[LabelledBoxes]) -> Tensor:
    """Return the loss of FCOS for one batch, a scalar.

    It is the focal loss of the classes everywhere, and at the places that have a box also that of centreness (binary
    cross-entropy) and of the box (1 - generalised IoU, weighted by the true centreness). Each is a sum over the batch
    divided by the number of places that have a box, or by the sum of their weights.
    """
    device = maps.classes.device
    points = places(maps.classes.shape[-2], maps.classes.shape[-1], device)
    assigned = [assign(points, each.boxes.to(device), each.labels.to(device)) for each in objects]
    labels = torch.cat([labels for labels, _ in assigned])  # (B·P,)
    sides = torch.cat([sides for _, sides in assigned])  # (B·P, 4)
    classes, centreness, distances = (part.float().flatten(2).transpose(1, 2).flatten(0, 1) for part in maps)

    has_box = labels >= 0
    target = torch.zeros_like(classes)
    target[has_box, labels[has_box]] = 1
    count = has_box.sum().clamp(min=1)
    loss = focal_loss(classes, target).sum() / count
    sides, middle = sides[has_box], centreness[has_box, 0]
    weights = true_centreness(sides)
    loss = loss + F.binary_cross_entropy_with_logits(middle, weights, reduction="sum") / count
    start = torch.zeros_like(sides[:, :2])
    overlap = generalised_iou(around(start, distances[has_box]), around(start, sides))
    return loss + (weights * (1 - overlap)).sum() / weights.sum().clamp(min=1e-6)


def assign(points: Tensor, boxes: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Find the box that each place (P, 2) has to find, if any: the smallest that it is inside of and near the middle of.

    Returns:
        (P,) int64, the box's label, -1 where there is none, and (P, 4), the distances to its sides.
    """
    if not len(boxes):
        return labels.new_full((len(points),), -1), points.new_zeros(len(points), 4)
    sides = torch.cat([points[:, None] - boxes[None, :, :2], boxes[None, :, 2:] - points[:, None]], dim=2)  # (P, K, 4)
    middles = (boxes[:, :2] + boxes[:, 2:]) / 2
    near = (points[:, None] - middles).abs().amax(dim=2) <= RADIUS * STRIDE  # (P, K)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(dim=1).expand(near.shape)
    smallest, index = areas.where(near & (sides.amin(dim=2) > 0), torch.inf).min(dim=1)
    return labels[index].where(smallest < torch.inf, -1), sides[torch.arange(len(points), device=points.device), index]


def true_centreness(sides: Tensor) -> Tensor:
    """Return FCOS's equation 3: 1 in the middle of a box and 0 at its sides, of distances (N, 4): (N,)."""
    across, down = sides[:, 0::2], sides[:, 1::2]
    return (across.amin(1) / across.amax(1) * down.amin(1) / down.amax(1)).sqrt()


def focal_loss(logits: Tensor, target: Tensor, *, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """Return binary cross-entropy in which what is right already counts little, elementwise.

    "Focal Loss for Dense Object Detection" (Lin et al., 2017), equation 5.
    """
    entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    probability = logits.sigmoid()
    wrong = probability + target - 2 * probability * target  # 1 - p where the target is 1, else p
    return (alpha * target + (1 - alpha) * (1 - target)) * wrong**gamma * entropy


def generalised_iou(first: Tensor, second: Tensor) -> Tensor:
    """Return the generalised intersection over union of boxes (N, 4), pair by pair: (N,), -1 … 1.

    That is the IoU less the share of the smallest box around both that neither covers (Rezatofighi et al., 2019).
    """
    inner = (first[:, 2:].minimum(second[:, 2:]) - first[:, :2].maximum(second[:, :2])).clamp(min=0).prod(dim=1)
    outer = (first[:, 2:].maximum(second[:, 2:]) - first[:, :2].minimum(second[:, :2])).prod(dim=1)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(dim=1) for boxes in (first, second)]
    union = areas[0] + areas[1] - inner
    return inner / union.clamp(min=1e-6) - (outer - union) / outer.clamp(min=1e-6)


def scene_objects(composer: Composer, concepts: Sequence[str], batch: int) -> Batches:
    """Return batches of random training scenes of these concepts: pixels in [-1, 1], and objects as in `objects_of`."""

    def draw_batch(randomness: Randomness) -> tuple[Tensor, Sequence[LabelledBoxes]]:
        pixels, truths = composer.truth([sample(randomness.choices, concepts) for _ in range(batch)])
        return pixels, [objects_of(truth, concepts) for truth in truths]

    return draw_batch


def objects_of(truth: Truth, concepts: Sequence[str]) -> LabelledBoxes:
    """Return what can be seen in a scene, label i for `concepts[i]`."""
    seen = (truth.boxes[:, 2] > truth.boxes[:, 0]).cpu()
    labels = [concepts.index(names()[concept]) for concept in truth.concepts[seen].tolist()]
    return LabelledBoxes(truth.boxes[seen.to(truth.boxes.device)], torch.tensor(labels, dtype=torch.long))

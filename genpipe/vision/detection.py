"""Where things are, and what they are: an anchor-free detector on the features of a ResNet.

The head of "FCOS: Fully Convolutional One-Stage Object Detection" (Tian, Shen, Chen and He, 2019) on one level: at every
place of a map at an eighth of the image's size it says which class is there, how far the sides of its box are, and how
near the middle of the box the place is.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from genpipe.blocks import conv1x1, conv3x3, conv_unit
from genpipe.vision.metrics import box_iou
from genpipe.vision.resnet import ResNetEncoder

STRIDE = 8  # pixels from one place of the map to the next
PRIOR = 0.01  # what every class's probability is before training, so that the many empty places start out right


@dataclass(frozen=True)
class DetectorConfig:
    """What a `Detector` is made of.

    Args:
        classes: of objects, 1 or more; there is none for the background.
        depth: of the ResNet: 18, 34, 50, 101 or 152.
        width: channels of the ResNet's first stage, 64 in its paper.
        channels: of the head.
        convolutions: of each of the head's two towers.

    Raises:
        ValueError: classes, width, channels or convolutions out of range.
    """

    classes: int
    depth: int = 18
    width: int = 64
    channels: int = 128
    convolutions: int = 2

    def __post_init__(self) -> None:
        for name, least in (("classes", 1), ("width", 1), ("channels", 1), ("convolutions", 0)):
            if (value := getattr(self, name)) < least:
                raise ValueError(f"{name} {value} of a detector is too small: use {least} or more")


class Maps(NamedTuple):
    """What a `Detector` says at every place of its map of h×w; see `places` for where they are."""

    classes: Tensor  # (B, K, h, w), logits
    centreness: Tensor  # (B, 1, h, w), logits: 1 in the middle of a box, 0 at its sides
    distances: Tensor  # (B, 4, h, w), pixels from the place to the left, top, right and bottom of its box


@dataclass(frozen=True)
class Detections:
    """The objects found in one image, the surest first."""

    boxes: Tensor  # (D, 4): left, top, right, bottom in pixels
    scores: Tensor  # (D,), 0 … 1
    labels: Tensor  # (D,) int64


class Detector(nn.Module):
    """A ResNet whose last three stages are added up, coarse to fine, at an eighth of the size, and a head of two towers."""

    def __init__(self, config: DetectorConfig) -> None:
        super().__init__()
        self.config = config
        channels, convolutions = config.channels, config.convolutions
        self.backbone = ResNetEncoder(config.depth, width=config.width)
        self.laterals = nn.ModuleList(conv1x1(stage, channels) for stage in self.backbone.channels[2:])
        self.neck = conv_unit(channels, channels)
        self.class_tower = nn.Sequential(*(conv_unit(channels, channels) for _ in range(convolutions)))
        self.box_tower = nn.Sequential(*(conv_unit(channels, channels) for _ in range(convolutions)))
        self.classes = _output(channels, config.classes, bias=-math.log((1 - PRIOR) / PRIOR))
        self.centreness = _output(channels, 1)
        self.distances = _output(channels, 4)

    def forward(self, pixels: Tensor) -> Maps:
        """(B, 3, H, W) of any size -> maps of ⌈H/8⌉×⌈W/8⌉ places."""
        maps = self.backbone(pixels)[2:]  # at 1/8, 1/16 and 1/32
        merged = self.laterals[2](maps[2])
        for lateral, fine in zip((self.laterals[1], self.laterals[0]), (maps[1], maps[0]), strict=True):
            merged = lateral(fine) + F.interpolate(merged, size=fine.shape[-2:], mode="nearest")
        merged = self.neck(merged)
        boxes = self.box_tower(merged)
        return Maps(
            classes=self.classes(self.class_tower(merged)),
            centreness=self.centreness(boxes),
            distances=self.distances(boxes).float().exp() * STRIDE,
        )

    @torch.no_grad()
    def detect(
        self, pixels: Tensor, *, threshold: float = 0.05, overlap: float = 0.5, limit: int = 100
    ) -> list[Detections]:
        """Find the objects in each image of (B, 3, H, W). Arguments as in `decode`; call it in evaluation mode."""
        size = pixels.shape[-2], pixels.shape[-1]
        return decode(self(pixels), size, threshold=threshold, overlap=overlap, limit=limit)


def _output(channels: int, outputs: int, *, bias: float = 0.0) -> nn.Conv2d:
    """A last layer that says `bias` of everything until it has learned better."""
    conv = conv3x3(channels, outputs)
    assert conv.bias is not None
    nn.init.normal_(conv.weight, std=0.01)
    nn.init.constant_(conv.bias, bias)
    return conv


def places(height: int, width: int, device: torch.device | str = "cpu") -> Tensor:
    """Return where the places of a map of height×width are in the image: (height·width, 2), x and y in pixels, row by row."""
    y, x = torch.meshgrid(torch.arange(height, device=device), torch.arange(width, device=device), indexing="ij")
    return (torch.stack([x, y], dim=-1).reshape(-1, 2) + 0.5) * STRIDE


def decode(
    maps: Maps, size: tuple[int, int], *, threshold: float = 0.05, overlap: float = 0.5, limit: int = 100
) -> list[Detections]:
    """Find the objects that maps speak of.

    An object's score is the geometric mean of its class's probability and its centreness. Of boxes of the same class
    that overlap, the surest stays.

    Args:
        size: height and width of the images, in pixels; boxes are cut to it.
        threshold: the least score that is kept; low for measuring average precision, near 0.5 to tell what is there.
        overlap: intersection over union beyond which two boxes of one class are the same object.
        limit: the most boxes of an image that are looked at.

    Raises:
        ValueError: a threshold or overlap outside 0 … 1, or a limit below 1.
    """
    for name, share in (("threshold", threshold), ("overlap", overlap)):
        if not 0 <= share <= 1:
            raise ValueError(f"{name} {share} is out of range: use 0 to 1")
    if limit < 1:
        raise ValueError(f"limit {limit} is out of range: use 1 or more boxes")
    classes, centreness, distances = (part.float().flatten(2) for part in maps)  # (B, …, P)
    scores = (classes.sigmoid() * centreness.sigmoid()).sqrt()  # (B, K, P)
    points = places(maps.classes.shape[-2], maps.classes.shape[-1], scores.device)
    edges = scores.new_tensor([size[1], size[0], size[1], size[0]])
    found = []
    for chances, sides in zip(scores, distances, strict=True):
        best, index = chances.flatten().topk(min(limit, chances.numel()))
        best, index = best[best >= threshold], index[best >= threshold]
        labels, place = index // chances.shape[1], index % chances.shape[1]
        boxes = around(points[place], sides[:, place].T).clamp(min=0).minimum(edges)
        kept = suppress(boxes, best, labels, overlap)
        found.append(Detections(boxes[kept], best[kept], labels[kept]))
    return found


def around(points: Tensor, distances: Tensor) -> Tensor:
    """Return the boxes (P, 4) whose sides are at these distances (P, 4) from points (P, 2)."""
    return torch.cat([points - distances[:, :2], points + distances[:, 2:]], dim=1)


def suppress(boxes: Tensor, scores: Tensor, labels: Tensor, overlap: float = 0.5) -> Tensor:
    """Choose the boxes that stay (non-maximum suppression), the surest first.

    From the highest score down, a box stays unless it overlaps one of its class that stayed by more than `overlap`
    (intersection over union).

    Args:
        boxes: (D, 4), left, top, right, bottom.
        scores: (D,).
        labels: (D,) int64.

    Returns:
        (kept,) int64 indices.
    """
    order = scores.argsort(descending=True, stable=True)
    same = labels[order, None] == labels[None, order]
    clashes = same & (box_iou(boxes[order], boxes[order]) > overlap)  # (D, D)
    kept: list[int] = []
    out = torch.zeros(len(order), dtype=torch.bool, device=boxes.device)
    for place in range(len(order)):
        if not out[place]:
            kept.append(place)
            out |= clashes[place]
    return order[torch.tensor(kept, dtype=torch.long, device=boxes.device)]

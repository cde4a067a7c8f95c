"""How often images show the scenes that they were made for, as a judge sees them: drawn scenes or generated images."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from PIL import Image
from torch import Tensor

from genpipe.judge.scene_judge import Judge, Observation
from genpipe.judge.scores import Score
from genpipe.scenes.parse import WantedObject, WantedScene
from genpipe.scenes.world import Scene
from genpipe.vision.metrics import average_precision
from genpipe.vision.scene_model import INPUT_SIDE


@dataclass
class Tally:
    """How many of how many are right."""

    right: int = 0
    total: int = 0

    def add(self, right: bool) -> None:
        """Count one more."""
        self.right, self.total = self.right + right, self.total + 1

    @property
    def share(self) -> float:
        """The share that is right; NaN where there are none."""
        return self.right / self.total if self.total else float("nan")


@dataclass
class Measured:
    """What a judge says of many images.

    Attributes:
        tallies: object_top1 and object_top5 (images of one thing), pair (both things right), setting, colour, count,
            relation, and satisfied (all of these that a scene has).
        concepts: images of one thing, by the concept: those that were recognised.
        features: (N, CHANNELS), for `frechet_distance`.
        satisfied: of each image.
    """

    features: Tensor
    tallies: dict[str, Tally] = field(default_factory=lambda: defaultdict(Tally))
    concepts: dict[str, Tally] = field(default_factory=lambda: defaultdict(Tally))
    satisfied: list[bool] = field(default_factory=list)

    def worst(self, n: int = 10) -> list[tuple[str, float, int]]:
        """Return the concepts that are recognised least: name, share of their images, and how many those are."""
        rows = [(name, tally.share, tally.total) for name, tally in self.concepts.items()]
        return sorted(rows, key=lambda row: (row[1], -row[2], row[0]))[:n]


def wanted_scene(scene: Scene) -> WantedScene:
    """Return what an image of the scene has to show: its things with their colours, how they stand, and where.

    Things of which captions do not say where they are may be anywhere.
    """
    things = [WantedObject(placed.concept, placed.colour, scene.size) for placed in scene.objects]
    if scene.kind == "count":
        things = [WantedObject(scene.objects[0].concept, count=len(scene.objects))]
    return WantedScene(tuple(things), None if scene.anywhere else scene.setting, scene.relation)


def measure(judge: Judge, images: Sequence[Image.Image], scenes: Sequence[Scene]) -> Measured:
    """Judge one image for each scene.

    Raises:
        ValueError: no images, or not one for each scene.
    """
    if not images or len(images) != len(scenes):
        raise ValueError(f"{len(images)} images for {len(scenes)} scenes cannot be measured: give one for each")
    observed = judge.observe(images)
    measured = Measured(features=torch.stack([observation.features for observation in observed]).cpu())
    for observation, scene in zip(observed, scenes, strict=True):
        _tally(measured, judge, scene, observation, judge.compare(observation, scene.kind, wanted_scene(scene)))
    return measured


def _tally(measured: Measured, judge: Judge, scene: Scene, observation: Observation, score: Score) -> None:
    distinct = {placed.concept for placed in scene.objects}
    if len(distinct) == 1:
        name = scene.objects[0].concept
        ranked = [
            judge.concepts[i]
            for i in observation.objects.concepts[0].topk(min(5, len(judge.concepts))).indices.tolist()
        ]
        measured.tallies["object_top1"].add(ranked[0] == name)
        measured.tallies["object_top5"].add(name in ranked)
        measured.concepts[name].add(ranked[0] == name)
    elif len(distinct) == 2:
        measured.tallies["pair"].add(all(check.right for check in score.checks if check.part == "object"))
    for check in score.checks:
        if check.part != "object":
            measured.tallies[check.part].add(check.right)
    measured.satisfied.append(bool(score.satisfied))
    measured.tallies["satisfied"].add(bool(score.satisfied))


def average_precision_50(observed: Sequence[Observation], boxes: Sequence[Tensor], size: int) -> float:
    """Return the average precision, at an overlap of 0.5, of finding things whatever they are.

    Args:
        boxes: the true ones of each image (K, 4), in pixels of images of `size`.
    """
    truths = [true * (INPUT_SIDE / size) for true in boxes]
    found = [observation.objects for observation in observed]
    return average_precision([o.boxes for o in found], [o.scores for o in found], truths)


def mean_distance(features: Tensor) -> float:
    """Return the mean distance of every two of some images' features (N, C).

    Raises:
        ValueError: fewer than two images.
    """
    if len(features) < 2:
        raise ValueError(f"{len(features)} images have no distance: give two or more")
    return float(torch.pdist(features.double()).mean())


def frechet_distance(first: Tensor, second: Tensor) -> float:
    """Return the Fréchet distance of the Gaussians fitted to two sets of features (N, C) and (M, C).

    It is the FID of "GANs Trained by a Two Time-Scale Update Rule …" (Heusel et al., 2017, eq. 6), with this judge's
    features in place of Inception's.

    Raises:
        ValueError: fewer than two images in a set, or features of different widths.
    """
    if min(len(first), len(second)) < 2 or first.shape[1:] != second.shape[1:]:
        raise ValueError(
            f"features {tuple(first.shape)} and {tuple(second.shape)} cannot be compared: give (N, C), N > 1"
        )
    first, second = first.double(), second.double()
    a, b = first.T.cov(), second.T.cov()
    # The trace of (ab)^½ is the sum of the roots of ab's eigenvalues, which are those of a^½ b a^½: real, not negative.
    values, vectors = torch.linalg.eigh(a)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    overlap = torch.linalg.eigvalsh(root @ b @ root).clamp(min=0).sqrt().sum()
    distance = (first.mean(0) - second.mean(0)).square().sum() + a.trace() + b.trace() - 2 * overlap
    return max(0.0, float(distance))


def summary(measured: Measured) -> dict[str, float]:
    """Return every tally as a share, the objects' as errors."""
    shares = {name: tally.share for name, tally in measured.tallies.items()}
    for name in ("object_top1", "object_top5"):
        if name in shares:
            shares[f"{name}_error"] = 1 - shares.pop(name)
    return shares

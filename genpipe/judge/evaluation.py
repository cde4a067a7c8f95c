"""How often pictures show the scenes that they were made for, as a judge sees them: drawn scenes or generated pictures."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from PIL import Image
from torch import Tensor

from genpipe.judge.scene_judge import Judge, Sight
from genpipe.judge.scores import Score
from genpipe.scenes.parse import Wanted, Wish
from genpipe.scenes.world import Scene
from genpipe.vision.metrics import average_precision
from genpipe.vision.scene_model import SIDE


@dataclass
class Tally:
    """So many of so many right."""

    right: int = 0
    total: int = 0

    def add(self, right: bool) -> None:
        self.right, self.total = self.right + right, self.total + 1

    @property
    def share(self) -> float:
        """NaN where there were none."""
        return self.right / self.total if self.total else float("nan")


@dataclass
class Measured:
    """What a judge says of many pictures.

    Attributes:
        tallies: object_top1 and object_top5 (pictures of one thing), pair (both things right), setting, colour, count,
            relation, and satisfied (all of these that a scene has).
        concepts: pictures of one thing, by the concept: those that were recognised.
        features: (N, CHANNELS), for `frechet_distance`.
        satisfied: of each picture.
    """

    features: Tensor
    tallies: dict[str, Tally] = field(default_factory=lambda: defaultdict(Tally))
    concepts: dict[str, Tally] = field(default_factory=lambda: defaultdict(Tally))
    satisfied: list[bool] = field(default_factory=list)

    def worst(self, n: int = 10) -> list[tuple[str, float, int]]:
        """The concepts that are recognised least: name, share of their pictures, and how many those are."""
        rows = [(name, tally.share, tally.total) for name, tally in self.concepts.items()]
        return sorted(rows, key=lambda row: (row[1], -row[2], row[0]))[:n]


def wish_of(scene: Scene) -> Wish:
    """What a picture of the scene has to show: its things with their colours, how they stand, and where."""
    things = [Wanted(placed.concept, placed.colour, scene.size) for placed in scene.objects]
    if scene.kind == "count":
        things = [Wanted(scene.objects[0].concept, count=len(scene.objects))]
    return Wish(tuple(things), scene.setting, scene.relation)


def measure(judge: Judge, images: Sequence[Image.Image], scenes: Sequence[Scene]) -> Measured:
    """Look at one picture for each scene.

    Raises:
        ValueError: no pictures, or not one for each scene.
    """
    if not images or len(images) != len(scenes):
        raise ValueError(f"{len(images)} pictures for {len(scenes)} scenes cannot be measured: give one for each")
    sights = judge.look(images)
    measured = Measured(features=torch.stack([sight.features for sight in sights]).cpu())
    for sight, scene in zip(sights, scenes, strict=True):
        _tally(measured, judge, scene, sight, judge.compare(sight, scene.kind, wish_of(scene)))
    return measured


def _tally(measured: Measured, judge: Judge, scene: Scene, sight: Sight, score: Score) -> None:
    distinct = {placed.concept for placed in scene.objects}
    if len(distinct) == 1:
        name = scene.objects[0].concept
        ranked = [
            judge.concepts[i] for i in sight.objects.concepts[0].topk(min(5, len(judge.concepts))).indices.tolist()
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


def average_precision_50(sights: Sequence[Sight], boxes: Sequence[Tensor], size: int) -> float:
    """AP at an overlap of 0.5 of finding things, whatever they are.

    Args:
        boxes: the true ones of each picture (K, 4), in pixels of pictures of `size`.
    """
    truths = [true * (SIDE / size) for true in boxes]
    found = [sight.objects for sight in sights]
    return average_precision([o.boxes for o in found], [o.scores for o in found], truths)


def frechet_distance(first: Tensor, second: Tensor) -> float:
    """The Fréchet distance of the Gaussians fitted to two sets of features (N, C) and (M, C), as in "GANs Trained by a
    Two Time-Scale Update Rule …" (Heusel et al., 2017), with this judge's features in place of Inception's.

    Raises:
        ValueError: fewer than two pictures in a set, or features of different widths.
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
    """Every tally as a share; the objects' as errors."""
    shares = {name: tally.share for name, tally in measured.tallies.items()}
    for name in ("object_top1", "object_top5"):
        if name in shares:
            shares[f"{name}_error"] = 1 - shares.pop(name)
    return shares

"""Training the scene models, which judge images, on scenes alone: what to draw, how to soften it, what to learn."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from genpipe.judge.scene_segmentation import CATEGORIES
from genpipe.scenes import COLOURS, SETTINGS, Placed, Scene, concepts, names, sample
from genpipe.scenes.atlas import variants
from genpipe.scenes.compose import Composer, Truth
from genpipe.scenes.places import LOOK
from genpipe.scenes.world import ROWS
from genpipe.training.loop import Randomness
from genpipe.vision.scene_model import INPUT_SIDE, STRIDE, SceneModel, SceneOutput, centres, shrink

MOST = 4  # objects per image
HELD_SHARE = 0.15  # of what is drawn, of combinations that no generator is trained on: a judge has to know them too
CROWD_SHARE = 0.3
REACH = 1.0  # an object belongs to the cells whose middle is less than this many cells from its own: two by two


def draw_scene(rng: random.Random, coloured: float = 0.0) -> Scene:
    """Draw a scene for a judge to learn from: as `sample` draws them, canonical ones less often, and crowds.

    Half of them depart further from the canonical layout, since what is to be judged may do so.

    Args:
        coloured: this share of them surely shows a thing in another colour, which is the hardest to know.
    """
    if coloured and rng.random() < coloured:
        scene = sample(rng, held=rng.random() < 2 * HELD_SHARE, kind="colour")
    elif rng.random() < CROWD_SHARE:
        return _crowd(rng)
    else:
        scene = sample(rng, held=rng.random() < HELD_SHARE)
        while scene.kind == "bare" and rng.random() < 0.6:
            scene = sample(rng)
    if rng.random() < 0.5:
        moved = (
            replace(
                o,
                x=o.x + rng.uniform(-0.07, 0.07),
                y=o.y + rng.uniform(-0.07, 0.07),
                scale=o.scale * rng.uniform(0.8, 1.1),
            )
            for o in scene.objects
        )
        scene = replace(scene, objects=tuple(moved))
    return scene


def _crowd(rng: random.Random) -> Scene:
    """Two to four different things in any setting, each in its own or in another colour: many labels per image."""
    spots = ROWS[rng.randint(2, MOST)]
    objects = tuple(
        Placed(
            concept,
            rng.choice(variants(concept)),
            x=x + rng.uniform(-0.05, 0.05),
            y=y + rng.uniform(-0.05, 0.05),
            scale=rng.uniform(0.36, 0.5),
            colour=rng.choice(list(COLOURS)) if rng.random() < 0.35 else None,
        )
        for concept, (x, y) in zip(rng.sample(names(), len(spots)), spots, strict=True)
    )
    return Scene("crowd", rng.choice(SETTINGS), tuple(rng.random() for _ in range(LOOK)), objects)


@dataclass(frozen=True)
class Labelled:
    """Images and the truth about them. Of an object that is missing, or cannot be seen, the concept is -1."""

    pixels: Tensor  # (N, 3, INPUT_SIDE, INPUT_SIDE) uint8, as the models take them
    settings: Tensor  # (N,) int64
    concepts: Tensor  # (N, MOST) int64
    colours: Tensor  # (N, MOST) int64; len(COLOURS) where natural
    boxes: Tensor  # (N, MOST, 4) float32, in pixels of INPUT_SIDE
    masks: Tensor  # (N, S, S) bool: whether a thing is there, at the size that the scene is drawn in

    def at(self, index: Tensor) -> "Labelled":
        """Return the images of these numbers."""
        return Labelled(*(getattr(self, field.name)[index] for field in fields(self)))


def label(composer: Composer, scenes: list[Scene]) -> Labelled:
    """Draw scenes with all that is to be learned of them."""
    images, truths = composer.truth(scenes)
    smaller = INPUT_SIDE / composer.size
    n = len(scenes)
    kinds, tints = torch.full((n, MOST), -1), torch.full((n, MOST), len(COLOURS))
    boxes = torch.zeros(n, MOST, 4)
    for i, truth in enumerate(truths):
        visible = truth.masks.sum((1, 2)) >= 0.004 * composer.size**2
        k = len(truth.concepts)
        kinds[i, :k] = torch.where(visible, truth.concepts, -1)
        tints[i, :k] = torch.where(truth.colours >= 0, truth.colours, len(COLOURS))
        boxes[i, :k] = truth.boxes * smaller
    return Labelled(
        pixels=((shrink(images) + 1) * 127.5).round().to(torch.uint8),
        settings=torch.tensor([truth.setting for truth in truths]),
        concepts=kinds,
        colours=tints,
        boxes=boxes,
        masks=category_maps(truths, composer.size) > 0,
    )


def category_maps(truths: Sequence[Truth], size: int) -> Tensor:
    """Return which of CATEGORIES each pixel belongs to: (N, size, size) uint8."""
    table = [CATEGORIES.index(concept.category) for concept in concepts().values()]
    maps = torch.zeros(len(truths), size, size, dtype=torch.uint8)
    for one, truth in zip(maps, truths, strict=True):
        for mask, concept in zip(truth.masks, truth.concepts.tolist(), strict=True):
            one[mask] = table[concept]
    return maps


class ScenePool:
    """A moving window over an endless, seeded sequence of scenes, so that each drawing serves several steps.

    The window is a function of the step alone: a resumed run refills it with what it held.

    Args:
        seed: of the sequence.
        initial: images in the window at step 0.
        fresh: images that join at each step; the oldest leave once there are `capacity`.
        coloured: see `draw_scene`.
    """

    def __init__(
        self, seed: int, *, initial: int = 8192, fresh: int = 12, capacity: int = 32768, coloured: float = 0.0
    ) -> None:
        self._seed, self._initial, self._fresh, self._capacity = seed, initial, fresh, capacity
        self._composer, self._coloured = Composer("cpu"), coloured
        self._window: Labelled | None = None  # ring buffer: image i lies at i mod capacity
        self._stop = 0

    def draw(self, step: int, batch: int, rng: random.Random) -> Labelled:
        """Return `batch` images, uniformly from the window at `step`."""
        stop = self._initial + self._fresh * step
        start = max(0, stop - self._capacity)
        position = max(self._stop, start)
        while position < stop:
            until = min(position + 64, stop)
            scenes = [draw_scene(random.Random(f"{self._seed}/{i}"), self._coloured) for i in range(position, until)]
            self._put(position, label(self._composer, scenes))
            position = until
        self._stop = stop
        assert self._window is not None
        return self._window.at(torch.tensor([rng.randrange(start, stop) % self._capacity for _ in range(batch)]))

    def _put(self, start: int, drawn: Labelled) -> None:
        if self._window is None:
            self._window = Labelled(
                *(t.new_empty(self._capacity, *t.shape[1:]) for t in (getattr(drawn, f.name) for f in fields(drawn)))
            )
        slots = (start + torch.arange(len(drawn.pixels))) % self._capacity
        for field in fields(drawn):
            getattr(self._window, field.name)[slots] = getattr(drawn, field.name)


def soften(pixels: Tensor, noise: torch.Generator) -> Tensor:
    """Return images (B, 3, S, S) in [-1, 1] as an autoencoder may leave them: blurred, noisy, lighter or paler.

    A third stay sharp, the others are blurred by one or two passes of a 3×3 box.
    """
    chance = torch.rand(len(pixels), generator=noise)
    pieces = []
    for passes in range(3):
        piece = pixels[(3 * chance).long() == passes]
        for _ in range(passes):
            piece = F.avg_pool2d(F.pad(piece, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
        pieces.append(piece)
    order = torch.cat([((3 * chance).long() == passes).nonzero()[:, 0] for passes in range(3)])
    softened = torch.cat(pieces)[order.argsort()]
    strength, contrast, light = (torch.rand(len(pixels), 1, 1, 1, generator=noise) for _ in range(3))
    few = torch.randn(-(-len(pixels) // 4), *pixels.shape[1:], generator=noise)  # drawing it all takes long
    grain = few.repeat(4, 1, 1, 1)[: len(pixels)] * (0.08 * strength)
    return (softened * (0.88 + 0.2 * contrast) + 0.16 * (light - 0.5) + grain).clamp(-1, 1)


def judge_loss(
    pool: ScenePool, *, batch: int = 64, smoothing: float = 0.1
) -> Callable[[nn.Module, int, Randomness], Tensor]:
    """Return the loss of a judge: of places, boxes, concepts, colours and the setting, summed.

    Args:
        smoothing: of the concepts' labels; half of it for colours and settings.
    """

    def loss(model: nn.Module, step: int, randomness: Randomness) -> Tensor:
        assert isinstance(model, SceneModel)
        shown = pool.draw(step, batch, randomness.choices)
        pixels = soften(shown.pixels.float() / 127.5 - 1, randomness.noise)
        device = next(model.parameters()).device
        seen = model(pixels.to(device, memory_format=torch.channels_last))
        return scene_loss(model, seen, Labelled(*(getattr(shown, f.name).to(device) for f in fields(shown))), smoothing)

    return loss


def scene_loss(model: SceneModel, seen: SceneOutput, shown: Labelled, smoothing: float) -> Tensor:
    """Return the loss of `judge_loss` for what the model has put out."""
    owner = owners(shown, *seen.objectness.shape[1:])  # (B, h, w)
    own = owner >= 0
    image, row, column = own.nonzero(as_tuple=True)
    thing = owner[own]
    cells, count = seen.cells[own], max(1, len(thing))
    boxes, true = seen.boxes[image, row, column], shown.boxes[image, thing]
    objectness = F.binary_cross_entropy_with_logits(seen.objectness, own.float(), reduction="sum") / count
    distance = F.smooth_l1_loss(boxes / STRIDE, true / STRIDE, reduction="sum", beta=0.2) / (4 * count)
    setting = F.cross_entropy(seen.settings.float(), shown.settings, label_smoothing=smoothing / 2)
    total = objectness + 0.5 * setting + distance
    if len(thing):
        concept = model.concepts(cells).float()
        colour = model.colours(cells).float()
        total = total + F.cross_entropy(concept, shown.concepts[image, thing], label_smoothing=smoothing)
        total = total + 0.5 * F.cross_entropy(colour, shown.colours[image, thing], label_smoothing=smoothing / 2)
    return total


def segmentation_loss(
    pool: ScenePool, *, batch: int = 64, points: int = 1024
) -> Callable[[nn.Module, int, Randomness], Tensor]:
    """Return the loss of a mask head: binary cross-entropy at random pixels, as good as at all and cheap ("PointRend",
    Kirillov et al., 2020)."""

    def loss(model: nn.Module, step: int, randomness: Randomness) -> Tensor:
        shown = pool.draw(step, batch, randomness.choices)
        pixels = soften(shown.pixels.float() / 127.5 - 1, randomness.noise)
        device = next(model.parameters()).device
        logits = model(pixels.to(device, memory_format=torch.channels_last)).float()  # (B, 1, h, w)
        size = shown.masks.shape[-1]
        at = torch.randint(size * size, (batch, points), generator=randomness.noise)
        true = shown.masks.flatten(1).gather(1, at).float().to(device)
        where = (torch.stack([at % size, at // size], dim=-1) + 0.5) * (2 / size) - 1  # (B, points, 2)
        sampled = F.grid_sample(logits, where[:, None].to(device), padding_mode="border", align_corners=False)
        return F.binary_cross_entropy_with_logits(sampled[:, 0, 0], true)

    return loss


def owners(shown: Labelled, height: int, width: int) -> Tensor:
    """Return which object each cell belongs to, the foremost where there are several: (B, h, w) int64, -1 for none."""
    middle = centres(height, width, shown.boxes.device)  # (h, w, 2)
    owner = torch.full((len(shown.boxes), height, width), -1, device=shown.boxes.device)
    for k in range(shown.boxes.shape[1]):
        at = (shown.boxes[:, k, :2] + shown.boxes[:, k, 2:]) / 2  # (B, 2)
        near = ((middle - at[:, None, None]).abs() < REACH * STRIDE).all(dim=-1)
        owner[near & (shown.concepts[:, k] >= 0)[:, None, None]] = k
    return owner

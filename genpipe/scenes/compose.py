"""Scenes to pixels, in batches, on any device: settings by formula, sprites by `grid_sample`, tints by luminance."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from genpipe.scenes import atlas, settings
from genpipe.scenes.colours import COLOURS
from genpipe.scenes.concepts import names
from genpipe.scenes.places import LIGHTS, SETTINGS
from genpipe.scenes.world import Placed, Scene

K = TypeVar("K", bound=Hashable)
STRETCH = 1.25  # by how much a version of a sprite is enlarged at most before the next larger one is taken
SHADINGS = ((1.0, 0.0), (0.78, 0.0), (0.84, 0.16))  # of each shade: what colours are multiplied by, and the white added
NUMBERS = 10  # of an object, see _numbers_of
LUMINANCE = (0.299, 0.587, 0.114)


@dataclass(frozen=True)
class Truth:
    """The truth about an image. Objects are numbered as in the scene, the hindmost first."""

    setting: int  # in SETTINGS
    concepts: Tensor  # (K,) int64, in names()
    colours: Tensor  # (K,) int64, in COLOURS; -1 where the object has its natural colours
    boxes: Tensor  # (K, 4) float32: left, top, right, bottom in pixels; zeros where nothing of it can be seen
    masks: Tensor  # (K, size, size) bool: where at least half of the pixel is the object's


class Composer:
    """A drawer of scenes, as square images of `size` pixels.

    Sprites are held premultiplied and in halved sizes, so that a small object is an average of its pixels and edges
    blend without a fringe.
    """

    def __init__(self, device: torch.device | str = "cpu", size: int = 128) -> None:
        if size < 8:
            raise ValueError(f"size {size} is too small for a scene: use 8 or more pixels")
        self.device, self.size = torch.device(device), size
        largest = atlas.SMALLEST
        while largest < atlas.SPRITE_SIDE and largest * STRETCH < size:
            largest *= 2
        self.levels = [level.to(self.device) for level in atlas.pyramid(largest)]
        small = atlas.pyramid(largest)[max(0, len(self.levels) - 2)].to(self.device).float() / 255
        weight = small.new_tensor(LUMINANCE)[:, None, None]
        brightness = (small[:, :3] * weight).sum((1, 2, 3)) / small[:, 3].sum((1, 2)).clamp(min=1e-3)
        self.brightness = brightness.clamp(0.25, 0.85)  # (N,)

    @torch.no_grad()
    def render(self, scenes: Sequence[Scene], cover: Tensor | None = None) -> Tensor:
        """Draw scenes: (B, 3, size, size) float32 in [-1, 1] on the composer's device.

        `cover`, zeros of (B, K, size, size), is filled with the share of each pixel that object k of a scene has in
        the end, after all that lies before it.
        """
        image = torch.empty((len(scenes), 3, self.size, self.size), device=self.device)
        looks = torch.tensor([scene.look for scene in scenes], device=self.device)
        choices = [(LIGHTS.index(scene.light), scene.far) for scene in scenes]
        lights, distant = torch.tensor(choices, device=self.device).reshape(-1, 2).T
        places = self._grouped([scene.setting for scene in scenes])
        for setting, index in places:
            image[index] = settings.paint(setting, looks[index], self.size, lights[index], distant[index])
        layers = [(k, i) for i, scene in enumerate(scenes) for k in range(len(scene.objects))]
        things = [scenes[i].objects[k] for k, i in layers]
        sprites, owners = torch.tensor([(o.sprite, i) for o, (_, i) in zip(things, layers, strict=True)],
                                       dtype=torch.long, device=self.device).reshape(-1, 2).T  # fmt: skip
        numbers = torch.tensor([_numbers_of(o) for o in things], device=self.device).reshape(-1, NUMBERS)
        keys = [(k, self.level_for(o), _finish(o)) for o, (k, _) in zip(things, layers, strict=True)]
        for (k, level, finish), rows in sorted(self._grouped(keys), key=lambda group: group[0]):
            index = owners[rows]
            layer = self._objects(sprites[rows], numbers[rows], level, finish)
            clear = 1 - layer[:, 3:]
            image[index] = image[index] * clear + layer[:, :3]
            if cover is not None:
                cover[index] *= clear
                cover[index, k] = layer[:, 3]
        for setting, index in places:
            front = settings.front(setting, looks[index], self.size, lights[index])
            if front is not None:
                colour, mask = front
                image[index] = image[index].lerp(colour, mask)
                if cover is not None:
                    cover[index] *= 1 - mask
        return image.mul_(2).sub_(1).clamp_(-1, 1)

    def _grouped(self, keys: Sequence[K]) -> list[tuple[K, Tensor]]:
        """Return where each key stands: the places go to the device all at once, for it to wait but once."""
        groups = _groups(keys)
        places = torch.tensor([i for rows in groups.values() for i in rows], dtype=torch.long, device=self.device)
        return list(zip(groups, places.split([len(rows) for rows in groups.values()]), strict=True)) if groups else []

    def truth(self, scenes: Sequence[Scene]) -> tuple[Tensor, list[Truth]]:
        """Draw scenes, and return the images and what is to be seen in each."""
        most = max((len(scene.objects) for scene in scenes), default=0)
        cover = torch.zeros((len(scenes), most, self.size, self.size), device=self.device)
        images = self.render(scenes, cover)
        return images, [
            Truth(
                setting=SETTINGS.index(scene.setting),
                concepts=torch.tensor([_number(names(), o.concept) for o in scene.objects], dtype=torch.long),
                colours=torch.tensor([_number(tuple(COLOURS), o.colour) for o in scene.objects], dtype=torch.long),
                boxes=_boxes(cover[i, : len(scene.objects)] >= 0.5),
                masks=cover[i, : len(scene.objects)] >= 0.5,
            )
            for i, scene in enumerate(scenes)
        ]

    def level_for(self, placed: Placed) -> int:
        """Return which of `levels` is the smallest that is not stretched by more than STRETCH."""
        level = 0
        while level < len(self.levels) - 1 and self.levels[level + 1].shape[-1] * STRETCH >= placed.scale * self.size:
            level += 1
        return level

    def _objects(self, index: Tensor, numbers: Tensor, level: int, finish: str) -> Tensor:
        """One object per image, on nothing: premultiplied (B, 4, size, size). `numbers` are those of _numbers_of."""
        sprites = self.levels[level][index].float().div_(255)
        x, y, scale, mirror, angle, gain, lift = numbers[:, :7].unbind(1)
        if finish == "tint":
            sprites = tint(sprites, numbers[:, 7:], self.brightness[index])
        elif finish == "shade":
            gain, lift = gain[:, None, None, None], lift[:, None, None, None]
            sprites[:, :3] = sprites[:, :3] * gain + sprites[:, 3:] * lift
        cos, sin = torch.cos(torch.deg2rad(angle)) / scale, torch.sin(torch.deg2rad(angle)) / scale
        cx, cy = 2 * x - 1, 2 * y - 1
        across = torch.stack([cos, sin, -(cos * cx + sin * cy)], 1) * mirror[:, None]
        down = torch.stack([-sin, cos, sin * cx - cos * cy], 1)
        grid = F.affine_grid(torch.stack([across, down], 1), [len(index), 4, self.size, self.size], False)
        return F.grid_sample(sprites, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def _numbers_of(o: Placed) -> tuple[float, ...]:
    """Where an object is: centre, scale, 1 or -1 where mirrored, angle; then its shading and its colour."""
    colour = COLOURS[o.colour] if o.colour is not None else (0.0, 0.0, 0.0)
    return (o.x, o.y, o.scale, -1.0 if o.flip else 1.0, o.rotation, *SHADINGS[o.shade], *colour)


def _finish(o: Placed) -> str:
    return "tint" if o.colour is not None else "shade" if o.shade else "natural"


def tint(sprites: Tensor, colours: Tensor, brightness: Tensor) -> Tensor:
    """Recolour premultiplied sprites (B, 4, H, W) to `colours` (B, 3), keeping light and shade.

    What is as bright as the sprite on average (`brightness`, (B,)) takes the colour itself; darker parts go towards
    black in proportion and lighter ones a part of the way to white.
    """
    alpha = sprites[:, 3:]
    mean, colour = brightness[:, None, None, None], colours[:, :, None, None]
    luminance = (sprites[:, :3] * sprites.new_tensor(LUMINANCE)[:, None, None]).sum(1, keepdim=True)
    shade = torch.minimum(luminance / mean, alpha)
    light = (luminance - mean * alpha).clamp(min=0) / (1 - mean)
    return torch.cat([colour * shade + 0.45 * (1 - colour) * light, alpha], 1)


def _groups(keys: Sequence[K]) -> dict[K, list[int]]:
    """The places at which each key stands."""
    groups: dict[K, list[int]] = {}
    for i, key in enumerate(keys):
        groups.setdefault(key, []).append(i)
    return groups


@cache
def _numbers(options: tuple[str, ...]) -> dict[str, int]:
    return {option: i for i, option in enumerate(options)}


def _number(options: tuple[str, ...], option: str | None) -> int:
    return -1 if option is None else _numbers(options)[option]


def _boxes(masks: Tensor) -> Tensor:
    """The smallest boxes around masks (K, H, W): (K, 4) float32."""
    boxes = torch.zeros((len(masks), 4), device=masks.device)
    for box, mask in zip(boxes, masks, strict=True):
        rows, columns = mask.any(1).nonzero(), mask.any(0).nonzero()
        if len(rows):
            box[:] = torch.stack([columns[0, 0], rows[0, 0], columns[-1, 0] + 1, rows[-1, 0] + 1])
    return boxes

"""Scenes to pixels, in batches, on any device: settings by formula, sprites by `grid_sample`, tints by luminance."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from genpipe.scenes import atlas, settings
from genpipe.scenes.colours import COLOURS
from genpipe.scenes.world import Placed, Scene

LEVELS = 4  # sprites at 128, 64, 32 and 16 pixels
LUMINANCE = (0.299, 0.587, 0.114)


class Composer:
    """Draws scenes as square pictures of `size` pixels.

    Sprites are held premultiplied and in halved sizes, so that a small object is an average of its pixels and edges
    blend without a fringe.
    """

    def __init__(self, device: torch.device | str = "cpu", size: int = 128) -> None:
        if size < 8:
            raise ValueError(f"size {size} is too small for a scene: use 8 or more pixels")
        self.device, self.size = torch.device(device), size
        full = atlas.sprites().to(self.device)
        self.levels = [full]
        for _ in range(LEVELS - 1):
            halves = [F.avg_pool2d(part.float(), 2).round().to(torch.uint8) for part in self.levels[-1].split(64)]
            self.levels.append(torch.cat(halves))
        small = self.levels[-2].float() / 255
        weight = small.new_tensor(LUMINANCE)[:, None, None]
        brightness = (small[:, :3] * weight).sum((1, 2, 3)) / small[:, 3].sum((1, 2)).clamp(min=1e-3)
        self.brightness = brightness.clamp(0.25, 0.85)  # (N,)

    def render(self, scenes: Sequence[Scene]) -> Tensor:
        """The pictures: (B, 3, size, size) float32 in [-1, 1] on the composer's device."""
        return self.layers(scenes)[0]

    @torch.no_grad()
    def layers(self, scenes: Sequence[Scene]) -> tuple[Tensor, Tensor]:
        """The pictures as `render` gives them, and how much of each pixel each object covers in the end:
        (B, K, size, size) in [0, 1], K the most objects in one scene, empty planes where a scene has fewer."""
        most = max((len(scene.objects) for scene in scenes), default=0)
        picture = torch.empty((len(scenes), 3, self.size, self.size), device=self.device)
        cover = picture.new_zeros((len(scenes), most, self.size, self.size))
        places: dict[str, list[int]] = {}
        for i, scene in enumerate(scenes):
            places.setdefault(scene.setting, []).append(i)
        looks = torch.tensor([scene.look for scene in scenes], device=self.device)
        for setting, rows in places.items():
            index = torch.tensor(rows, device=self.device)
            picture[index] = settings.paint(setting, looks[index], self.size)
        for k in range(most):
            rows = [i for i, scene in enumerate(scenes) if len(scene.objects) > k]
            by_level: dict[int, list[int]] = {}
            for i in rows:
                by_level.setdefault(self._level(scenes[i].objects[k]), []).append(i)
            for level, members in by_level.items():
                index = torch.tensor(members, device=self.device)
                layer = self._objects([scenes[i].objects[k] for i in members], level)
                clear = 1 - layer[:, 3:]
                picture[index] = picture[index] * clear + layer[:, :3]
                if k:
                    cover[index, :k] = cover[index, :k] * clear
                cover[index, k] = layer[:, 3]
        for setting, rows in places.items():
            index = torch.tensor(rows, device=self.device)
            hiding = settings.front(setting, looks[index], self.size)
            if hiding is not None:
                colour, mask = hiding
                picture[index] = picture[index].lerp(colour, mask)
                cover[index] = cover[index] * (1 - mask)
        return picture.mul_(2).sub_(1).clamp_(-1, 1), cover

    def _level(self, placed: Placed) -> int:
        """The smallest version of the sprite that is not stretched by more than a quarter."""
        level = 0
        while level < LEVELS - 1 and atlas.SIDE / 2 ** (level + 1) * 1.25 >= placed.scale * self.size:
            level += 1
        return level

    def _objects(self, objects: list[Placed], level: int) -> Tensor:
        """One object a picture, on nothing: premultiplied (B, 4, size, size)."""
        index = torch.tensor([o.sprite for o in objects], device=self.device)
        sprites = self.levels[level][index].float().div_(255)
        tinted = [i for i, o in enumerate(objects) if o.colour is not None]
        if tinted:
            rows = torch.tensor(tinted, device=self.device)
            colours = torch.tensor([COLOURS[objects[i].colour or ""] for i in tinted], device=self.device)
            sprites[rows] = tint(sprites[rows], colours, self.brightness[index[rows]])
        place = torch.tensor([(o.x, o.y, o.scale, -1.0 if o.flip else 1.0, o.rotation) for o in objects],
                             device=self.device)  # fmt: skip
        x, y, scale, mirror, angle = place.unbind(1)
        cos, sin = torch.cos(torch.deg2rad(angle)) / scale, torch.sin(torch.deg2rad(angle)) / scale
        cx, cy = 2 * x - 1, 2 * y - 1
        across = torch.stack([cos, sin, -(cos * cx + sin * cy)], 1) * mirror[:, None]
        down = torch.stack([-sin, cos, sin * cx - cos * cy], 1)
        grid = F.affine_grid(torch.stack([across, down], 1), [len(objects), 4, self.size, self.size], False)
        return F.grid_sample(sprites, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


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

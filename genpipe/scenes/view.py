"""What painters draw with: coordinates of the pixels, shapes over them, and the light of the day."""

import math
from dataclasses import dataclass, replace
from functools import cache

import torch
from torch import Tensor

from genpipe.scenes.places import LIGHTS

Rgb = tuple[float, float, float]
CLEAR = ("day", "sunny")  # lights in which the sky has its setting's own colours
SKIES: dict[str, tuple[Rgb, Rgb]] = {  # at the top and at the horizon
    "morning": ((0.60, 0.78, 0.96), (1.0, 0.88, 0.78)),
    "evening": ((0.46, 0.30, 0.62), (1.0, 0.66, 0.42)),
    "night": ((0.02, 0.04, 0.16), (0.13, 0.20, 0.42)),
    "grey": ((0.58, 0.63, 0.69), (0.82, 0.85, 0.88)),
}
TONES: dict[str, Rgb] = {  # by which all colours but the sky's are multiplied
    "day": (1.0, 1.0, 1.0),
    "sunny": (1.0, 1.0, 1.0),
    "morning": (1.0, 0.95, 0.90),
    "evening": (0.94, 0.74, 0.66),
    "night": (0.30, 0.37, 0.58),
    "grey": (0.78, 0.82, 0.86),
}
SUN, MOON, STAR = (1.0, 0.87, 0.30), (1.0, 0.96, 0.78), (0.95, 0.95, 0.82)


@dataclass(frozen=True)
class View:
    """Pixel coordinates of a batch, `x` (1, 1, 1, W) and `y` (1, 1, H, 1) in [0, 1], and what varies in it.

    Attributes:
        pixel: its width.
        look: (B, LOOK).
        light: (B,) int64, numbers of LIGHTS; None indoors and wherever else the day cannot be seen.
        tone: (B, 3, 1, 1), by which it multiplies colours; None as well.
        far: (B,) int64, which of its far things a setting shows; 0 for none.
    """

    x: Tensor
    y: Tensor
    pixel: float
    look: Tensor
    light: Tensor | None
    tone: Tensor | None
    far: Tensor

    def u(self, i: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        """Return number `i` of the look, spread over [low, high].  # (B, 1, 1, 1)"""
        return (low + (high - low) * self.look[:, i])[:, None, None, None]

    def below(self, line: Tensor | float) -> Tensor:
        """Return 1 where a pixel lies under the curve y = line, antialiased."""
        return ((self.y - line) / self.pixel + 0.5).clamp(0, 1)

    def disc(self, cx: Tensor | float, cy: Tensor | float, radius: Tensor | float, flat: float = 1.0) -> Tensor:
        distance = ((self.x - cx).square() + ((self.y - cy) / flat).square()).sqrt()
        return ((radius - distance) / self.pixel + 0.5).clamp(0, 1)

    def box(self, x0: Tensor | float, y0: Tensor | float, x1: Tensor | float, y1: Tensor | float) -> Tensor:
        across = torch.minimum(self.x - x0, x1 - self.x)
        down = torch.minimum(self.y - y0, y1 - self.y)
        return (across / self.pixel + 0.5).clamp(0, 1) * (down / self.pixel + 0.5).clamp(0, 1)

    def wave(self, waves: float, phase: Tensor | float, height: float) -> Tensor:
        return height * torch.sin(2 * math.pi * (waves * self.x + phase))

    def colour(self, rgb: Rgb) -> Tensor:
        """Return a colour as it is in this light.  # (B or 1, 3, 1, 1)"""
        plain = _colours((rgb,), self.y.device)[:, :, None, None]
        return plain if self.tone is None else plain * self.tone

    def fade(self, top: Rgb, bottom: Rgb, start: float = 0.0, end: float = 1.0) -> Tensor:
        """Return a vertical gradient.  # (B, 3, H, W)"""
        return self._gradient(self.colour(top), self.colour(bottom), start, end)

    def _gradient(self, top: Tensor, bottom: Tensor, start: float, end: float) -> Tensor:
        t = ((self.y - start) / (end - start)).clamp(0, 1)
        return (top * (1 - t) + bottom * t).expand(len(self.look), -1, -1, self.x.shape[-1]).contiguous()

    def sky(self, top: Rgb, bottom: Rgb, start: float = 0.0, end: float = 1.0) -> Tensor:
        """Return the sky of this light, `top` to `bottom` on a clear day, with its sun or its moon and stars."""
        if self.light is None:
            return self.fade(top, bottom, start, end)
        device = self.y.device
        skies = _skies(device)[:, self.light]  # (2, B, 3)
        clear = _numbers(CLEAR, device)[self.light][:, None]  # (B, 1)
        ends = [
            torch.where(clear, _colours((rgb,), device), sky) for rgb, sky in zip((top, bottom), skies, strict=True)
        ]
        image = self._gradient(ends[0][:, :, None, None], ends[1][:, :, None, None], start, end)
        sunny, night = (
            _numbers((name,), device)[self.light][:, None, None, None].float() for name in ("sunny", "night")
        )
        upper = self.part(0.0, 0.5)
        x, shown = self.u(5, 0.14, 0.86), image[:, :, : upper.y.shape[2]]
        stars = upper.dots(8, 0.010, torch.zeros((1, 1, 1, 1), device=device), share=0.6, seed=3)
        round_one = upper.disc(x, 0.16, 0.085)
        moon = round_one * (1 - upper.disc(x - 0.04, 0.135, 0.075)) * night
        for rgb, mask in ((STAR, stars * night), (MOON, moon), (SUN, round_one * sunny)):
            shown.lerp_(_colours((rgb,), device)[:, :, None, None], mask)
        return image

    def part(self, top: float, bottom: float) -> "View":
        """Return the view of a strip of the image, from `top` to `bottom` in shares of its height."""
        size = self.y.shape[2]
        return replace(self, y=self.y[:, :, int(top * size) : math.ceil(bottom * size)])

    def shows(self, which: int) -> Tensor:
        """Return 1 where the far things number `which` are to be seen.  # (B, 1, 1, 1)"""
        return (self.far == which).float()[:, None, None, None]

    def by_day(self) -> Tensor | float:
        """Return 1 in the plain light of the day, in which a setting may have a sun of its own.  # (B, 1, 1, 1)"""
        if self.light is None:
            return 1.0
        return _numbers(("day",), self.y.device)[self.light][:, None, None, None].float()

    def over(self, ground: Tensor, rgb: Rgb | Tensor, mask: Tensor) -> Tensor:
        return ground.lerp(self.colour(rgb) if isinstance(rgb, tuple) else rgb, mask)

    def cloud(self, ground: Tensor, cx: Tensor, cy: float, r: float, rgb: Rgb = (1.0, 1.0, 1.0)) -> Tensor:
        mask = self.disc(cx, cy, r, 0.8)
        for dx, dy, k in ((-1.1, 0.25, 0.7), (1.1, 0.2, 0.75)):
            mask = torch.maximum(mask, self.disc(cx + dx * r, cy + dy * r, k * r, 0.8))
        return self.over(ground, rgb, mask * (1 - self.below(cy + 0.55 * r)))

    def triangle(self, cx: Tensor | float, top: Tensor | float, base: Tensor | float, half: float) -> Tensor:
        """Return an upright triangle: its tip at (cx, top), its base `half` to each side at `base`."""
        height = base - top
        slope = ((self.y - top) / height * half - (self.x - cx).abs()) / self.pixel + 0.5
        return slope.clamp(0, 1) * (1 - self.below(base))

    def dots(self, cells: int, radius: float, shift: Tensor, share: float = 1.0, seed: int = 1) -> Tensor:
        """Return scattered discs, at most one in each of cells x cells squares; `shift` slides them sideways."""
        table = scatter(cells, seed, self.y.device)  # (3, cells, cells)
        x, y = (self.x + shift).remainder(1.0) * cells, self.y * cells
        column, row = x.long().clamp(max=cells - 1), y.long().clamp(max=cells - 1)
        cx, cy, size = table[:, row, column]
        distance = ((x - column - cx).square() + (y - row - cy).square()).sqrt() / cells
        r = radius * (0.5 + size / share * 0.5)
        return ((r - distance) / self.pixel + 0.5).clamp(0, 1) * (size < share)


@cache
def scatter(cells: int, seed: int, device: torch.device) -> Tensor:
    draw = torch.rand((3, cells, cells), generator=torch.Generator().manual_seed(seed))
    draw[:2] = 0.2 + 0.6 * draw[:2]
    return draw.to(device)


@cache
def _colours(rgb: tuple[Rgb, ...], device: torch.device) -> Tensor:
    return torch.tensor(rgb, device=device)


def view(look: Tensor, size: int, light: Tensor | None, far: Tensor) -> View:
    """Return the view of a square image of `size` pixels."""
    at = (torch.arange(size, device=look.device, dtype=torch.float32) + 0.5) / size
    tone = None
    if light is not None:
        tone = _colours(tuple(TONES[name] for name in LIGHTS), look.device)[light][:, :, None, None]
    return View(at[None, None, None, :], at[None, None, :, None], 1.0 / size, look.float(), light, tone, far)


@cache
def _skies(device: torch.device) -> Tensor:
    """The colours of the sky at the top and at the horizon in every light.  # (2, LIGHTS, 3)"""
    unused: tuple[Rgb, Rgb] = ((0.0, 0.0, 0.0), (0.0, 0.0, 0.0))
    return torch.tensor([SKIES.get(light, unused) for light in LIGHTS], device=device).transpose(0, 1)


@cache
def _numbers(lights: tuple[str, ...], device: torch.device) -> Tensor:
    """Whether each light is one of these.  # (LIGHTS,) bool"""
    return torch.tensor([light in lights for light in LIGHTS], device=device)

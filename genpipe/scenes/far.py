"""What may be seen far away in a setting: small shapes without detail, none of which is a thing that captions name.

Each of these draws on an image (B, 3, H, W) in place, where the view shows far things of that number.
"""

import math

import torch
from torch import Tensor

from genpipe.scenes.view import Rgb, View

DARK = (0.22, 0.26, 0.34)
GREEN = (0.20, 0.46, 0.26)


def _draw(v: View, image: Tensor, top: float, part: View, rgb: Rgb, mask: Tensor) -> None:
    start = int(top * v.y.shape[2])
    image[:, :, start : start + part.y.shape[2]].lerp_(v.colour(rgb), mask)


def birds(v: View, image: Tensor, which: int, rgb: Rgb = DARK) -> None:
    """Draw three birds on the wing."""
    part, mask = v.part(0.03, 0.36), None
    for dx, y, wing in ((0.0, 0.12, 0.055), (0.15, 0.20, 0.045), (0.25, 0.10, 0.038)):
        across = ((part.x - v.u(5, 0.10, 0.60) - dx) / wing).abs()  # from the body to the tip of a wing
        line = y - 0.45 * wing * torch.sin(math.pi * across.clamp(max=1))
        bird = ((0.011 * (1.15 - across) - (part.y - line).abs()) / v.pixel + 0.5).clamp(0, 1)
        mask = bird if mask is None else torch.maximum(mask, bird)
    assert mask is not None
    _draw(v, image, 0.03, part, rgb, mask * v.shows(which))


def boats(v: View, image: Tensor, which: int, horizon: Tensor, sail: Rgb = (1.0, 0.98, 0.94)) -> None:
    """Draw two small sails on the horizon."""
    part = v.part(0.40, 0.75)
    for x, size in ((v.u(5, 0.06, 0.44), 0.10), (v.u(5, 0.94, 0.62), 0.07)):
        hull = part.disc(x, horizon, 0.55 * size, 0.35) * part.below(horizon)
        _draw(v, image, 0.40, part, (0.46, 0.26, 0.20), hull * v.shows(which))
        cloth = part.triangle(x, horizon - size, horizon - 0.005, 0.42 * size)
        _draw(v, image, 0.40, part, sail, cloth * v.shows(which))


def island(v: View, image: Tensor, which: int, horizon: Tensor) -> None:
    """Draw two hills that rise out of the water."""
    part, x = v.part(0.40, 0.75), v.u(5, 0.12, 0.88)
    land = torch.maximum(part.disc(x, horizon, 0.17, 0.6), part.disc(x + 0.14, horizon, 0.11, 0.6))
    _draw(v, image, 0.40, part, (0.30, 0.52, 0.34), land * (1 - part.below(horizon)) * v.shows(which))


def trees(v: View, image: Tensor, which: int, base: float, crown: Rgb = GREEN) -> None:
    """Draw four round trees that stand on `base`."""
    part = v.part(base - 0.20, base + 0.02)
    for dx, r in ((0.06, 0.060), (0.18, 0.045), (0.80, 0.050), (0.93, 0.065)):
        x = v.u(5, -0.05, 0.05) + dx
        _draw(v, image, base - 0.20, part, (0.36, 0.24, 0.16), part.box(x - 0.010, base - r, x + 0.010, base)
              * v.shows(which))  # fmt: skip
        _draw(v, image, base - 0.20, part, crown, part.disc(x, base - 1.7 * r, r) * v.shows(which))


def pines(v: View, image: Tensor, which: int, base: float, rgb: Rgb = (0.12, 0.34, 0.26)) -> None:
    """Draw five firs that stand on `base`."""
    part, mask = v.part(base - 0.26, base), None
    for dx, height in ((0.04, 0.20), (0.14, 0.15), (0.78, 0.17), (0.88, 0.23), (0.97, 0.15)):
        tree = part.triangle(v.u(5, -0.04, 0.04) + dx, base - height, base, 0.34 * height)
        mask = tree if mask is None else torch.maximum(mask, tree)
    assert mask is not None
    _draw(v, image, base - 0.26, part, rgb, mask * v.shows(which))


def rocks(v: View, image: Tensor, which: int, base: float) -> None:
    """Draw two pointed rocks on the horizon."""
    part = v.part(base - 0.20, base)
    for dx, height, rgb in ((0.0, 0.18, (0.86, 0.64, 0.38)), (0.17, 0.11, (0.78, 0.55, 0.32))):
        rock = part.triangle(v.u(5, 0.10, 0.74) + dx, base - height, base, 0.8 * height)
        _draw(v, image, base - 0.20, part, rgb, rock * v.shows(which))


def flowers(v: View, image: Tensor, which: int, base: float, rgb: Rgb) -> None:
    """Strew light dots over the ground below `base`."""
    part = v.part(base, 1.0)
    _draw(v, image, base, part, rgb, part.dots(9, 0.017, v.u(5), share=0.7, seed=13) * v.shows(which))


def weeds(v: View, image: Tensor, which: int) -> None:
    """Draw waving stalks at both sides of the sea's floor."""
    part, mask = v.part(0.45, 0.95), None
    for dx, top in ((0.05, 0.52), (0.12, 0.64), (0.87, 0.60), (0.95, 0.50)):
        middle = v.u(5, -0.02, 0.02) + dx + 0.018 * torch.sin(18 * part.y + 20 * dx)
        stalk = ((0.016 - (part.x - middle).abs()) / v.pixel + 0.5).clamp(0, 1) * part.below(top)
        mask = stalk if mask is None else torch.maximum(mask, stalk)
    assert mask is not None
    _draw(v, image, 0.45, part, (0.10, 0.50, 0.36), mask * v.shows(which))


def discs(v: View, image: Tensor, which: int, rgb: Rgb, places: tuple[tuple[float, float, float, float], ...]) -> None:
    """Draw flattened discs: x, y, radius and height in shares of the width of each."""
    for x, y, radius, flat in places:
        top = max(0.0, y - radius * flat - 0.02)
        part = v.part(top, min(1.0, y + radius * flat + 0.02))
        _draw(v, image, top, part, rgb, part.disc(v.u(5, -0.06, 0.06) + x, y, radius, flat) * v.shows(which))


def floor(v: View, image: Tensor, which: int, line: float, rgb: Rgb) -> None:
    """Colour all that is below `line`."""
    part = v.part(line - 0.02, 1.0)
    _draw(v, image, line - 0.02, part, rgb, part.below(line) * v.shows(which))


def cloth(v: View, image: Tensor, which: int, edge: Tensor, rgb: Rgb) -> None:
    """Lay a chequered cloth over what is below `edge`."""
    part = v.part(0.6, 1.0)
    squares = ((part.x * 8).remainder(2) < 1) ^ ((part.y * 10).remainder(2) < 1)
    _draw(v, image, 0.6, part, (0.98, 0.96, 0.92), part.below(edge) * v.shows(which))
    _draw(v, image, 0.6, part, rgb, part.below(edge) * squares * v.shows(which))


def frame(v: View, image: Tensor, which: int, rgb: Rgb, inner: Rgb) -> None:
    """Hang a framed plain canvas on the wall at the right."""
    part, x = v.part(0.08, 0.50), v.u(5, 0.62, 0.70)
    _draw(v, image, 0.08, part, rgb, part.box(x, 0.12, x + 0.26, 0.42) * v.shows(which))
    _draw(v, image, 0.08, part, inner, part.box(x + 0.025, 0.145, x + 0.235, 0.395) * v.shows(which))

"""The places that scenes are set in, drawn as flat illustrations by formulas over pixel coordinates.

Every painter is batched and runs on any device. What varies within a setting (the height of the horizon, where the
clouds are) is read from `look`: LOOK numbers in [0, 1] per scene, with 0.5 everywhere for the canonical view; the light
of the day and what is to be seen far away are choices among a few. There is little clutter on purpose: a small network
has to learn all of it.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from genpipe.scenes import far
from genpipe.scenes.places import OUTDOORS
from genpipe.scenes.view import Rgb, View, scatter, view


def sea(v: View) -> Tensor:
    image = v.sky((0.42, 0.74, 0.96), (0.86, 0.95, 1.0), 0.0, 0.58)
    image = v.cloud(image, v.u(1, 0.1, 0.3), 0.14, 0.07)
    image = v.cloud(image, v.u(2, 0.72, 0.92), 0.24, 0.06)
    horizon = v.u(0, 0.54, 0.62)
    image = v.over(image, v.fade((0.16, 0.56, 0.82), (0.04, 0.32, 0.62), 0.56, 1.0), v.below(horizon))
    far.boats(v, image, 1, horizon)
    far.island(v, image, 2, horizon)
    crest = horizon + 0.12 + v.wave(2.5, v.u(3), 0.012)
    return v.over(image, (0.10, 0.46, 0.75), v.below(crest) * 0.55)


def sea_front(v: View) -> tuple[Tensor, Tensor]:
    crest = 0.855 + v.wave(3, v.u(4), 0.016)
    colour = v.over(
        v.fade((0.07, 0.42, 0.74), (0.03, 0.28, 0.58), 0.84, 1.0), (0.80, 0.94, 1.0), 1 - v.below(crest + 0.02)
    )
    return colour, v.below(crest)


def beach(v: View) -> Tensor:
    image = v.sky((0.36, 0.74, 0.97), (0.84, 0.95, 1.0), 0.0, 0.5)
    image = v.cloud(image, v.u(1, 0.1, 0.9), 0.16, 0.07)
    horizon = v.u(0, 0.43, 0.49)
    image = v.over(image, v.fade((0.10, 0.58, 0.80), (0.30, 0.82, 0.86), 0.45, 0.68), v.below(horizon))
    far.boats(v, image, 1, horizon)
    far.birds(v, image, 2)
    shore = v.u(2, 0.62, 0.68) + v.wave(0.8, v.u(3), 0.02)
    image = v.over(image, (0.97, 0.99, 1.0), v.below(shore - 0.02))
    return v.over(image, v.fade((0.98, 0.88, 0.66), (0.93, 0.78, 0.52), 0.62, 1.0), v.below(shore))


def underwater(v: View) -> Tensor:
    image = v.fade((0.30, 0.80, 0.90), (0.03, 0.28, 0.56))
    slant = v.x + 0.35 * v.y
    ray = torch.sin(2 * math.pi * (2.0 * slant + v.u(1))).clamp(min=0) * (1 - v.y).clamp(min=0)
    image = v.over(image, (0.85, 1.0, 1.0), 0.28 * ray)
    image = v.over(image, (0.86, 0.78, 0.54), v.below(v.u(0, 0.86, 0.92) + v.wave(1.5, v.u(2), 0.02)))
    far.weeds(v, image, 1)
    rocks = ((0.10, 0.90, 0.13, 0.8), (0.26, 0.93, 0.09, 0.8), (0.90, 0.92, 0.12, 0.8))
    far.discs(v, image, 2, (0.42, 0.44, 0.50), rocks)
    return v.over(image, (0.80, 0.97, 1.0), 0.7 * v.dots(5, 0.020, v.u(3), share=0.35, seed=4))


def meadow(v: View) -> Tensor:
    image = v.sky((0.40, 0.74, 0.98), (0.88, 0.96, 1.0), 0.0, 0.6)
    image = v.cloud(image, v.u(1, 0.1, 0.3), 0.15, 0.075)
    image = v.cloud(image, v.u(2, 0.7, 0.9), 0.22, 0.06)
    image = v.over(image, (0.52, 0.79, 0.38), v.below(v.u(0, 0.57, 0.63) + v.wave(0.9, v.u(3), 0.045)))
    far.trees(v, image, 1, 0.68)
    far.birds(v, image, 2)
    grass = v.fade((0.42, 0.74, 0.28), (0.24, 0.58, 0.20), 0.65, 1.0)
    return v.over(image, grass, v.below(0.72 + v.wave(0.7, v.u(4), 0.035)))


def forest(v: View) -> Tensor:
    image = v.sky((0.72, 0.88, 0.72), (0.56, 0.78, 0.56), 0.0, 0.7)
    for colour, teeth, top, phase in (((0.30, 0.58, 0.36), 5.0, 0.16, v.u(0)), ((0.13, 0.42, 0.26), 4.0, 0.30, v.u(1))):
        tooth = (((v.x + phase) * teeth).remainder(1.0) - 0.5).abs() * 2
        image = v.over(image, colour, v.below(top + 0.42 * tooth))
    image = v.over(image, (0.10, 0.34, 0.22), v.below(0.66))
    ground = v.fade((0.36, 0.60, 0.28), (0.22, 0.42, 0.20), 0.7, 1.0)
    image = v.over(image, ground, v.below(v.u(2, 0.72, 0.76) + v.wave(0.8, v.u(3), 0.02)))
    far.flowers(v, image, 1, 0.78, (0.98, 0.86, 0.52))
    far.birds(v, image, 2)
    return image


def mountains(v: View) -> Tensor:
    image = v.sky((0.46, 0.72, 0.94), (0.92, 0.96, 1.0), 0.0, 0.7)
    for colour, peaks, top, deep, phase in (
        ((0.60, 0.68, 0.80), 1.6, 0.22, 0.42, v.u(0)),
        ((0.40, 0.48, 0.62), 1.25, 0.34, 0.44, v.u(1)),
    ):
        tooth = (((v.x + phase) * peaks).remainder(1.0) - 0.5).abs() * 2
        ridge = top + deep * tooth
        image = v.over(image, colour, v.below(ridge))
        cap = top + 0.13 + v.wave(9, phase, 0.02)
        image = v.over(image, (0.97, 0.98, 1.0), v.below(ridge) * (1 - v.below(cap)))
    ground = v.fade((0.46, 0.70, 0.36), (0.28, 0.52, 0.26), 0.72, 1.0)
    image = v.over(image, ground, v.below(v.u(2, 0.74, 0.78) + v.wave(0.7, v.u(3), 0.025)))
    far.pines(v, image, 1, 0.82)
    far.birds(v, image, 2)
    return image


def desert(v: View) -> Tensor:
    image = v.sky((0.46, 0.76, 0.92), (1.0, 0.93, 0.74), 0.0, 0.6)
    image = v.over(image, (1.0, 0.90, 0.45), v.disc(v.u(1, 0.78, 0.88), 0.15, 0.075) * v.by_day())
    far.rocks(v, image, 1, 0.66)
    far.birds(v, image, 2)
    image = v.over(image, (0.93, 0.72, 0.42), v.below(v.u(0, 0.56, 0.62) + v.wave(0.8, v.u(2), 0.05)))
    sand = v.fade((0.96, 0.78, 0.46), (0.84, 0.60, 0.30), 0.66, 1.0)
    return v.over(image, sand, v.below(0.72 + v.wave(0.6, v.u(3), 0.05)))


def snow(v: View) -> Tensor:
    image = v.sky((0.56, 0.74, 0.90), (0.84, 0.92, 0.98), 0.0, 0.65)
    image = v.over(image, (0.84, 0.90, 0.97), v.below(v.u(0, 0.57, 0.63) + v.wave(0.9, v.u(1), 0.045)))
    far.pines(v, image, 1, 0.74)
    far.birds(v, image, 2)
    drift = v.fade((0.99, 1.0, 1.0), (0.88, 0.93, 0.98), 0.68, 1.0)
    image = v.over(image, drift, v.below(0.72 + v.wave(0.7, v.u(2), 0.035)))
    return v.over(image, (1.0, 1.0, 1.0), v.dots(7, 0.014, v.u(3), share=0.6, seed=7))


def sunset(v: View) -> Tensor:
    image = v.fade((0.36, 0.18, 0.48), (0.94, 0.40, 0.36), 0.0, 0.36)
    image = v.over(image, v.fade((0.94, 0.40, 0.36), (1.0, 0.80, 0.36), 0.36, 0.66), v.below(0.36))
    image = v.over(image, (1.0, 0.93, 0.58), v.disc(v.u(1, 0.42, 0.58), 0.60, 0.17))
    horizon = v.u(0, 0.65, 0.71)
    image = v.over(image, v.fade((0.78, 0.34, 0.34), (0.24, 0.10, 0.30), 0.66, 1.0), v.below(horizon))
    far.boats(v, image, 1, horizon, (0.30, 0.12, 0.30))
    far.birds(v, image, 2)
    glint = v.disc(v.u(1, 0.42, 0.58), 0.70, 0.15, 0.18) + v.disc(v.u(1, 0.42, 0.58), 0.80, 0.09, 0.16)
    return v.over(image, (1.0, 0.74, 0.42), 0.8 * glint * v.below(0.71))


def night(v: View) -> Tensor:
    image = v.fade((0.01, 0.02, 0.09), (0.08, 0.13, 0.32), 0.0, 0.8)
    image = v.over(image, (0.95, 0.95, 0.80), v.dots(8, 0.011, v.u(0), share=0.6, seed=3))
    x = v.u(1, 0.80, 0.88)
    moon = v.disc(x, 0.15, 0.085) * (1 - v.disc(x - 0.04, 0.125, 0.075))
    image = v.over(image, (1.0, 0.96, 0.74), moon)
    far.pines(v, image, 1, 0.84, (0.03, 0.09, 0.12))
    hills = ((0.16, 0.80, 0.26, 0.7), (0.84, 0.80, 0.32, 0.7))
    far.discs(v, image, 2, (0.07, 0.12, 0.24), hills)
    return v.over(
        image,
        v.fade((0.02, 0.08, 0.10), (0.01, 0.03, 0.05), 0.78, 1.0),
        v.below(v.u(2, 0.77, 0.81) + v.wave(0.8, v.u(3), 0.025)),
    )


def space(v: View) -> Tensor:
    image = v.fade((0.0, 0.0, 0.02), (0.05, 0.02, 0.12))
    glow = ((v.x - v.u(1, 0.2, 0.5)) + (v.y - 0.6) * 0.9).square()
    image = v.over(image, (0.30, 0.10, 0.45), 0.35 * torch.exp(-14 * glow))
    image = v.over(image, (1.0, 1.0, 1.0), v.dots(9, 0.010, v.u(0), share=0.55, seed=5))
    x = v.u(2, 0.82, 0.90)
    image = v.over(image, (0.86, 0.48, 0.30), v.disc(x, 0.16, 0.09))
    far.discs(v, image, 1, (0.36, 0.40, 0.46), ((0.5, 1.08, 0.75, 0.32),))
    far.discs(v, image, 2, (0.34, 0.62, 0.88), ((0.16, 0.80, 0.13, 1.0),))
    return v.over(image, (0.55, 0.26, 0.22), v.disc(x, 0.16, 0.09) * (1 - v.disc(x - 0.03, 0.14, 0.09)))


def rain(v: View) -> Tensor:
    image = v.fade((0.38, 0.44, 0.53), (0.68, 0.73, 0.78), 0.0, 0.75)
    for cx, r in ((v.u(0, 0.10, 0.30), 0.13), (v.u(1, 0.68, 0.90), 0.14)):
        image = v.cloud(image, cx, 0.08, r, (0.28, 0.32, 0.40))
    image = v.over(image, v.fade((0.42, 0.50, 0.54), (0.28, 0.36, 0.42), 0.76, 1.0), v.below(v.u(2, 0.76, 0.80)))
    far.trees(v, image, 1, 0.80, (0.24, 0.36, 0.32))
    far.discs(v, image, 2, (0.58, 0.66, 0.72), ((0.24, 0.90, 0.17, 0.2), (0.80, 0.86, 0.13, 0.2)))
    across, down = (
        (v.x + 0.25 * v.y + 0.1 * v.u(3)) * 9,
        v.y * 5 + 0.5 * torch.floor((v.x + 0.25 * v.y) * 9 + 0.9 * v.u(3)),
    )
    streak = (1.6 * v.pixel * 9 / 2 - (across.remainder(1.0) - 0.5).abs()) / (9 * v.pixel) + 0.5
    return v.over(image, (0.80, 0.90, 0.98), 0.8 * streak.clamp(0, 1) * (down.remainder(1.0) < 0.5))


def city(v: View) -> Tensor:
    image = v.sky((0.52, 0.78, 0.96), (0.93, 0.96, 1.0), 0.0, 0.7)
    heights = scatter(8, 11, v.y.device)[0, 0]  # (8,)
    for colour, columns, top, i in (((0.70, 0.78, 0.88), 6, 0.14, 0), ((0.48, 0.57, 0.70), 5, 0.30, 1)):
        place = (v.x + v.u(i)).remainder(1.0) * columns
        column = place.long().clamp(max=columns - 1)
        roof = top + 0.35 * heights[column]
        wall = v.below(roof) * (((0.5 - (place - column - 0.5).abs()) / columns / v.pixel).clamp(0, 1))
        image = v.over(image, colour, wall)
        if i:
            pane = ((place * 3).remainder(1.0) - 0.5).abs().lt(0.25) & ((v.y - roof) * 14).remainder(1.0).sub(
                0.6
            ).abs().lt(0.25)
            image = v.over(image, (0.95, 0.90, 0.66), wall * pane * (v.y > roof + 0.02))
    far.trees(v, image, 1, 0.78)
    far.birds(v, image, 2)
    ground = v.u(2, 0.76, 0.80)
    image = v.over(image, (0.78, 0.78, 0.78), v.below(ground))
    image = v.over(image, (0.34, 0.36, 0.40), v.below(ground + 0.04))
    dash = ((v.x + v.u(3)) * 4).remainder(1.0).lt(0.55)
    return v.over(image, (0.97, 0.95, 0.86), v.below(0.915) * (1 - v.below(0.94)) * dash)


def room(v: View) -> Tensor:
    image = v.fade((0.97, 0.90, 0.78), (0.93, 0.83, 0.70), 0.0, 0.72)
    x = v.u(0, 0.10, 0.18)
    image = v.over(image, (1.0, 1.0, 1.0), v.box(x, 0.10, x + 0.30, 0.46))
    glass = v.box(x + 0.025, 0.125, x + 0.14, 0.435) + v.box(x + 0.16, 0.125, x + 0.275, 0.435)
    image = v.over(image, (0.62, 0.84, 0.96), glass)
    far.frame(v, image, 1, (0.56, 0.36, 0.22), (0.66, 0.80, 0.62))
    far.frame(v, image, 2, (0.90, 0.74, 0.36), (0.86, 0.56, 0.46))
    floor = v.u(1, 0.72, 0.76)
    image = v.over(image, (1.0, 0.98, 0.94), v.below(floor - 0.03))
    image = v.over(image, v.fade((0.72, 0.48, 0.30), (0.58, 0.36, 0.22), 0.72, 1.0), v.below(floor))
    return v.over(image, (0.74, 0.30, 0.32), v.disc(0.5, 0.90, v.u(2, 0.36, 0.42), 0.20))


def table(v: View) -> Tensor:
    image = v.fade((0.74, 0.88, 0.86), (0.62, 0.80, 0.79), 0.0, 0.7)
    edge = v.u(0, 0.66, 0.72)
    image = v.over(image, v.fade((0.84, 0.60, 0.36), (0.72, 0.47, 0.26), 0.68, 1.0), v.below(edge))
    grain = (v.y - 0.68) / 0.32 * 4 + v.u(1)
    image = v.over(image, (0.62, 0.40, 0.22), 0.6 * v.below(edge) * (grain.remainder(1.0) < 0.08))
    far.cloth(v, image, 1, edge, (0.86, 0.36, 0.34))
    far.cloth(v, image, 2, edge, (0.40, 0.60, 0.82))
    return image


def sky(v: View) -> Tensor:
    image = v.sky((0.26, 0.62, 0.96), (0.80, 0.93, 1.0))
    for cx, cy, r in (
        (v.u(0, 0.10, 0.30), 0.18, 0.085),
        (v.u(1, 0.72, 0.92), 0.32, 0.075),
        (v.u(2, 0.08, 0.28), 0.74, 0.080),
        (v.u(3, 0.68, 0.88), 0.86, 0.095),
    ):
        image = v.cloud(image, cx, cy, r)
    far.birds(v, image, 1)
    far.discs(v, image, 2, (0.42, 0.70, 0.36), ((0.2, 1.02, 0.55, 0.28), (0.85, 1.02, 0.42, 0.28)))
    return image


def _plain(rgb: Rgb) -> Callable[[View], Tensor]:
    darker = (0.88 * rgb[0], 0.88 * rgb[1], 0.88 * rgb[2])

    def paint(v: View) -> Tensor:
        image = (v.colour(rgb) * v.u(0, 0.98, 1.02)).clamp(max=1.0).expand(-1, -1, v.y.shape[2], v.x.shape[3]).clone()
        far.floor(v, image, 1, 0.66, darker)
        far.floor(v, image, 2, 0.84, darker)
        return image

    return paint


PAINTERS: dict[str, Callable[[View], Tensor]] = {
    "sea": sea, "beach": beach, "underwater": underwater, "meadow": meadow, "forest": forest, "mountains": mountains,
    "desert": desert, "snow": snow, "sunset": sunset, "night": night, "space": space, "rain": rain, "city": city,
    "room": room, "table": table, "sky": sky,
    "white": _plain((1.0, 1.0, 1.0)), "yellow": _plain((0.99, 0.85, 0.36)), "blue": _plain((0.36, 0.66, 0.95)),
    "pink": _plain((0.99, 0.72, 0.82)), "green": _plain((0.56, 0.82, 0.48)),
}  # fmt: skip
FRONTS: dict[str, Callable[[View], tuple[Tensor, Tensor]]] = {"sea": sea_front}


def _view(setting: str, look: Tensor, size: int, light: Tensor | None, distant: Tensor | None) -> View:
    nothing = torch.zeros(len(look), dtype=torch.long, device=look.device)
    day = (nothing if light is None else light) if setting in OUTDOORS else None
    return view(look, size, day, nothing if distant is None else distant)


def paint(setting: str, look: Tensor, size: int, light: Tensor | None = None, distant: Tensor | None = None) -> Tensor:
    """Draw the bare setting for each look (B, LOOK): (B, 3, size, size) float32 in [0, 1].

    Args:
        light: (B,) int64, numbers of LIGHTS (default: by day); it is not to be seen but in OUTDOORS.
        distant: (B,) int64, which of the setting's FAR things to show (default: 0, none).
    """
    return PAINTERS[setting](_view(setting, look, size, light, distant)).clamp_(0, 1)


def front(setting: str, look: Tensor, size: int, light: Tensor | None = None) -> tuple[Tensor, Tensor] | None:
    """Draw what hides the objects (the wave before a ship): colour (B, 3, H, W) and cover (B, 1, H, W), or None."""
    painter = FRONTS.get(setting)
    return None if painter is None else painter(_view(setting, look, size, light, None))

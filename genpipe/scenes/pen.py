"""Shapes on a square of transparent pixels, finer than the sprite that it becomes. Used by scripts/make/sprites.py only."""

from collections.abc import Sequence
from itertools import pairwise

from PIL import Image, ImageDraw

CANVAS = 512  # units per side of the square that is drawn on
FINE = 2  # pixels per unit; what is drawn is reduced

Colour = tuple[int, int, int]
Paint = Colour | tuple[int, int, int, int]
Point = tuple[float, float]
Box = tuple[float, float, float, float]  # left, top, right, bottom
BLACK, BONE, GOLD = (24, 24, 30), (250, 250, 245), (240, 180, 60)


def curve(*points: Point, steps: int = 24) -> list[Point]:
    """Return a Bézier curve from the first of `points` to the last, pulled by those between."""
    result = []
    for i in range(steps + 1):
        t, row = i / steps, list(points)
        while len(row) > 1:
            row = [(a[0] + (b[0] - a[0]) * t, a[1] + (b[1] - a[1]) * t) for a, b in pairwise(row)]
        result.append(row[0])
    return result


class Pen:
    """What draws shapes on an image as `ImageDraw` does, in units of which a pixel is one FINE-th."""

    def __init__(self, image: Image.Image) -> None:
        self._draw = ImageDraw.Draw(image)

    def polygon(self, at: Sequence[Point], fill: Paint, outline: Colour | None = None, width: float = 1) -> None:
        self._draw.polygon(_fine(at), fill, outline, round(width * FINE))

    def line(self, at: Sequence[Point], fill: Paint, width: float, joint: str | None = None) -> None:
        self._draw.line(_fine(at), fill, round(width * FINE), joint)

    def rectangle(self, box: Box, fill: Paint, outline: Colour | None = None, width: float = 1) -> None:
        self._draw.rectangle(_fine_box(box), fill, outline, round(width * FINE))

    def ellipse(self, box: Box, fill: Paint | None = None, outline: Paint | None = None, width: float = 1) -> None:
        self._draw.ellipse(_fine_box(box), fill, outline, round(width * FINE))

    def pieslice(self, box: Box, start: float, end: float, fill: Paint) -> None:
        self._draw.pieslice(_fine_box(box), start, end, fill)

    def rounded_rectangle(
        self, box: Box, radius: float, fill: Paint, outline: Colour | None = None, width: float = 1
    ) -> None:
        self._draw.rounded_rectangle(_fine_box(box), radius * FINE, fill, outline, round(width * FINE))


def _fine(points: Sequence[Point]) -> list[Point]:
    return [(x * FINE, y * FINE) for x, y in points]


def _fine_box(box: Box) -> Box:
    left, top, right, bottom = (edge * FINE for edge in box)
    return left, top, right, bottom


def canvas() -> tuple[Image.Image, Pen]:
    image = Image.new("RGBA", (FINE * CANVAS, FINE * CANVAS))
    return image, Pen(image)

"""Costumes to put on an emoji's head: pirate, king, wizard, astronaut, Santa. Used by scripts/make/sprites.py only."""

from collections.abc import Callable
from dataclasses import dataclass

from PIL import Image

from genpipe.scenes.drawings import skull
from genpipe.scenes.pen import BLACK, BONE, CANVAS, FINE, GOLD, Pen, canvas, curve


@dataclass(frozen=True)
class Head:
    """Where a costume goes, in shares of the sprite's side: the middle of the brow, the width of a hat, one eye."""

    x: float
    brow: float
    width: float
    eye: tuple[float, float, float]  # x, y, radius of the patch


HEADS = {
    "🐱": Head(0.50, 0.27, 0.72, (0.70, 0.54, 0.10)),
    "🐶": Head(0.50, 0.20, 0.62, (0.66, 0.50, 0.10)),
    "🐻": Head(0.50, 0.18, 0.72, (0.67, 0.46, 0.10)),
    "🐼": Head(0.50, 0.18, 0.70, (0.67, 0.50, 0.12)),
    "🦁": Head(0.50, 0.22, 0.68, (0.625, 0.38, 0.085)),
    "🐯": Head(0.50, 0.19, 0.70, (0.69, 0.32, 0.09)),
    "🦊": Head(0.50, 0.34, 0.64, (0.62, 0.56, 0.09)),
    "🐰": Head(0.50, 0.46, 0.56, (0.63, 0.60, 0.08)),
    "🐵": Head(0.50, 0.24, 0.66, (0.62, 0.47, 0.09)),
    "🐷": Head(0.50, 0.22, 0.70, (0.70, 0.51, 0.09)),
    "🐸": Head(0.50, 0.17, 0.66, (0.75, 0.28, 0.11)),
    "🐨": Head(0.50, 0.24, 0.60, (0.67, 0.49, 0.09)),
    "🐺": Head(0.50, 0.25, 0.66, (0.65, 0.46, 0.095)),
    "🐭": Head(0.50, 0.33, 0.54, (0.65, 0.57, 0.085)),
    "🐹": Head(0.50, 0.24, 0.64, (0.69, 0.52, 0.09)),
    "🐮": Head(0.50, 0.21, 0.56, (0.66, 0.42, 0.09)),
    "🐧": Head(0.47, 0.10, 0.46, (0.47, 0.16, 0.06)),
    "🦉": Head(0.50, 0.17, 0.52, (0.62, 0.31, 0.11)),
    "🤖": Head(0.50, 0.29, 0.66, (0.67, 0.52, 0.12)),
    "👻": Head(0.50, 0.12, 0.50, (0.58, 0.26, 0.10)),
}
WORN = 330  # the side of the emoji on the canvas, to leave room above it


def dress(costume: str, face: Image.Image, head: Head, crown: Image.Image) -> Image.Image:
    """Dress `face`, a square emoji, in a costume. `crown` is the emoji of one."""
    image, draw = canvas()
    side = 350 if costume == "astronaut" else WORN
    left, top = (CANVAS - side) // 2, 60 if costume == "astronaut" else CANVAS - side
    if costume == "astronaut":
        _suit(draw)
    _lay(image, face, side, left, top)
    if costume == "astronaut":
        return _helmet(image)
    x, y, w = left + head.x * side, top + head.brow * side, head.width * side
    if costume == "king":
        wide = 0.86 * w
        _lay(image, crown, wide, x - wide / 2, max(0, y - 0.84 * wide))
    elif costume == "pirate":
        ex, ey, r = left + head.eye[0] * side, top + head.eye[1] * side, head.eye[2] * side
        draw.line([(x - 0.52 * w, y + 0.1 * w), (ex, ey), (x + 0.6 * w, y + 0.1 * w)], fill=BLACK, width=7)
        draw.ellipse((ex - r, ey - r, ex + r, ey + r * 1.1), fill=BLACK)
    if costume in HATS:
        HATS[costume](draw, x, y, w)
    return image


def _lay(image: Image.Image, over: Image.Image, side: float, left: float, top: float) -> None:
    whole = round(side * FINE)
    image.alpha_composite(
        over.resize((whole, whole), Image.Resampling.LANCZOS), (round(left * FINE), round(top * FINE))
    )


def _pirate_hat(draw: Pen, x: float, y: float, w: float) -> None:
    crest = curve((x - 0.66 * w, y + 0.04 * w), (x - 0.62 * w, y - 0.34 * w), (x - 0.3 * w, y - 0.30 * w),
                  (x, y - 0.74 * w), (x + 0.3 * w, y - 0.30 * w), (x + 0.62 * w, y - 0.34 * w),
                  (x + 0.66 * w, y + 0.04 * w))  # fmt: skip
    brim = curve((x + 0.66 * w, y + 0.04 * w), (x, y - 0.14 * w), (x - 0.66 * w, y + 0.04 * w))
    draw.polygon(crest + brim, fill=(36, 36, 44))
    draw.line(brim, fill=GOLD, width=max(6, round(0.035 * w)), joint="curve")
    skull(draw, x, y - 0.27 * w, 0.105 * w, (36, 36, 44))


def _wizard_hat(draw: Pen, x: float, y: float, w: float) -> None:
    left, right = curve((x - 0.36 * w, y), (x - 0.1 * w, y - 0.4 * w), (x + 0.1 * w, y - w)), curve(
        (x + 0.1 * w, y - w), (x + 0.2 * w, y - 0.4 * w), (x + 0.36 * w, y))  # fmt: skip
    draw.ellipse((x - 0.62 * w, y - 0.1 * w, x + 0.62 * w, y + 0.13 * w), fill=(74, 56, 160))
    draw.polygon(left + right, fill=(94, 72, 190))
    draw.polygon(
        [(x - 0.36 * w, y), (x - 0.31 * w, y - 0.1 * w), (x + 0.31 * w, y - 0.1 * w), (x + 0.36 * w, y)], fill=GOLD
    )
    for dx, dy, r in ((-0.05, -0.28, 0.075), (0.14, -0.42, 0.06), (0.06, -0.64, 0.05)):
        cx, cy, k = x + dx * w, y + dy * w, r * w
        draw.polygon([(cx, cy - k), (cx + 0.3 * k, cy - 0.3 * k), (cx + k, cy), (cx + 0.3 * k, cy + 0.3 * k), (cx, cy + k),
                      (cx - 0.3 * k, cy + 0.3 * k), (cx - k, cy), (cx - 0.3 * k, cy - 0.3 * k)], fill=(255, 226, 110))  # fmt: skip


def _santa_hat(draw: Pen, x: float, y: float, w: float) -> None:
    cone = curve(
        (x - 0.46 * w, y), (x - 0.36 * w, y - 0.72 * w), (x + 0.16 * w, y - 0.86 * w), (x + 0.56 * w, y - 0.40 * w)
    )
    draw.polygon(
        cone + curve((x + 0.56 * w, y - 0.40 * w), (x + 0.34 * w, y - 0.44 * w), (x + 0.46 * w, y)), fill=(214, 40, 44)
    )
    draw.rounded_rectangle((x - 0.54 * w, y - 0.11 * w, x + 0.54 * w, y + 0.11 * w), radius=0.11 * w, fill=BONE)
    r = 0.12 * w
    draw.ellipse((x + 0.56 * w - r, y - 0.38 * w - r, x + 0.56 * w + r, y - 0.38 * w + r), fill=BONE)


HATS: dict[str, Callable[[Pen, float, float, float], None]] = {
    "pirate": _pirate_hat,
    "wizard": _wizard_hat,
    "santa": _santa_hat,
}


def _suit(draw: Pen) -> None:
    draw.rounded_rectangle((96, 380, 416, 600), radius=90, fill=(232, 236, 242))
    draw.rounded_rectangle((126, 400, 386, 600), radius=70, fill=(206, 212, 222))
    draw.ellipse((26, 4, 486, 464), fill=(120, 150, 180))


def _helmet(image: Image.Image) -> Image.Image:
    over, draw = canvas()
    draw.ellipse((26, 4, 486, 464), fill=(190, 225, 250, 46))
    draw.ellipse((26, 4, 486, 464), outline=(246, 248, 252, 255), width=30)
    draw.ellipse((20, -2, 492, 470), outline=(176, 186, 200, 255), width=8)
    draw.line(curve((92, 190), (104, 110), (186, 74)), fill=(255, 255, 255, 210), width=20, joint="curve")
    draw.rounded_rectangle((150, 444, 362, 484), radius=18, fill=(236, 240, 246, 255))
    for x, colour in ((206, (224, 60, 56, 255)), (256, (60, 130, 220, 255)), (306, (250, 200, 60, 255))):
        draw.ellipse((x - 13, 452, x + 13, 478), fill=colour)
    return Image.alpha_composite(image, over)

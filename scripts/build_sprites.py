"""Draw the sprite atlas of `genpipe.scenes` from the Noto Color Emoji font and from shapes of our own.

    python scripts/build_sprites.py [--font NotoColorEmoji.ttf] [--sheet sheet.png]

Only this script needs the font; what it writes (atlas.webp, atlas.txt) is shipped.
"""

import argparse
import itertools
import math
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from genpipe.scenes.concepts import concepts

FONT = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
OUT = Path(__file__).resolve().parent.parent / "genpipe" / "scenes"
SIZE = 128  # pixels a side of one sprite
MARGIN = 2  # transparent border, so that bilinear sampling fades to nothing
COLUMNS = 32
DRAWN = 512  # our own shapes are drawn on a square of this side, then reduced

Colour = tuple[int, int, int]
Points = list[tuple[float, float]]


def fit(image: Image.Image) -> Image.Image:
    """Crop to what is visible and fit it into a square sprite."""
    box = image.getchannel("A").point(lambda a: 255 if a > 8 else 0).getbbox()
    if box is None:
        raise ValueError("the picture is empty")
    image = image.crop(box)
    scale = (SIZE - 2 * MARGIN) / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    image = image.convert("RGBa").resize(size, Image.Resampling.LANCZOS).convert("RGBA")
    sprite = Image.new("RGBA", (SIZE, SIZE))
    sprite.paste(image, ((SIZE - size[0]) // 2, (SIZE - size[1]) // 2))
    return sprite


@cache
def font(path: Path) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(path), 109)  # the one size that the bitmap font holds


def emoji(text: str, path: Path) -> Image.Image:
    canvas = Image.new("RGBA", (180, 180))
    ImageDraw.Draw(canvas).text((10, 10), text, font=font(path), embedded_color=True)
    return canvas


def curve(*points: tuple[float, float], steps: int = 24) -> Points:
    """A Bézier curve through the first and last of `points`, pulled by those between."""
    result = []
    for i in range(steps + 1):
        t, row = i / steps, list(points)
        while len(row) > 1:
            row = [(a[0] + (b[0] - a[0]) * t, a[1] + (b[1] - a[1]) * t) for a, b in itertools.pairwise(row)]
        result.append(row[0])
    return result


def skull(draw: ImageDraw.ImageDraw, x: float, y: float, r: float, bone: Colour = (250, 250, 245)) -> None:
    """A skull over crossed bones, centred on (x, y); `r` is the half-width of the cranium."""
    dark = (28, 28, 34)
    for side in (-1, 1):
        ax, ay, bx, by = x - side * 1.5 * r, y + 0.35 * r, x + side * 1.5 * r, y + 1.75 * r
        draw.line([(ax, ay), (bx, by)], fill=bone, width=max(2, round(0.34 * r)))
        for ex, ey, s in ((ax, ay, -1), (bx, by, 1)):
            for dx, dy in ((s * side * 0.16, -s * 0.2), (-s * side * 0.1, s * 0.2)):
                k = 0.27 * r
                draw.ellipse([ex + dx * r - k, ey + dy * r - k, ex + dx * r + k, ey + dy * r + k], fill=bone)
    draw.rounded_rectangle([x - 0.62 * r, y, x + 0.62 * r, y + 1.3 * r], radius=0.25 * r, fill=bone)
    draw.ellipse([x - r, y - r, x + r, y + 0.85 * r], fill=bone)
    for side in (-1, 1):
        cx, cy, k = x + side * 0.43 * r, y + 0.08 * r, 0.29 * r
        draw.ellipse([cx - k, cy - k, cx + k, cy + 1.1 * k], fill=dark)
    draw.polygon([(x, y + 0.38 * r), (x - 0.17 * r, y + 0.7 * r), (x + 0.17 * r, y + 0.7 * r)], fill=dark)
    for dx in (-0.25, 0.0, 0.25):
        draw.line([(x + dx * r, y + 0.92 * r), (x + dx * r, y + 1.26 * r)], fill=dark, width=max(1, round(0.09 * r)))


def sail(
    draw: ImageDraw.ImageDraw, x: float, top: float, bottom: float, wide: float, low: float, fill: Colour, shade: Colour
) -> None:
    """A square sail hanging from a yard: `wide` and `low` are its half-widths, and it swells to the right."""
    belly = 0.16 * (bottom - top)
    left = curve((x - wide, top), (x - wide + belly * 1.6, (top + bottom) / 2), (x - low, bottom))
    right = curve((x + wide, top), (x + wide + belly * 2.2, (top + bottom) / 2), (x + low, bottom))
    foot = curve((x + low, bottom), (x, bottom - belly * 1.2), (x - low, bottom))
    draw.polygon(left[::-1] + right + foot, fill=fill)
    inner = curve((x + wide * 0.72, top), (x + wide * 0.72 + belly * 2.2, (top + bottom) / 2), (x + low * 0.72, bottom))
    draw.polygon(right + inner[::-1], fill=shade)
    draw.line([(x - wide - 12, top), (x + wide + 12, top)], fill=(92, 56, 30), width=11)


def pirate_ship(sails: tuple[Colour, Colour], skull_on_sail: bool) -> Image.Image:
    """A three-masted ship under dark sails, bow to the right, stern castle to the left, black flag on the main mast."""
    image = Image.new("RGBA", (DRAWN, DRAWN))
    draw = ImageDraw.Draw(image)
    mast, rope = (110, 68, 36), (84, 62, 48)
    fill, shade = sails
    # Masts and bowsprit, behind everything.
    for x, top in ((124, 150), (252, 30), (372, 128)):
        draw.rectangle([x - 7, top, x + 7, 400], fill=mast)
    draw.line([(400, 372), (502, 306)], fill=mast, width=14)
    for a, b in (((372, 134), (500, 306)), ((124, 156), (60, 330)), ((252, 90), (372, 140)), ((252, 90), (124, 158))):
        draw.line([a, b], fill=rope, width=4)
    # Jib between the foremast and the bowsprit.
    draw.polygon(
        [(388, 160), *curve((388, 160), (462, 236), (490, 304)), *curve((490, 304), (430, 300), (396, 330))], fill=shade
    )
    # Sails: mizzen, main, fore.
    sail(draw, 122, 176, 316, 50, 58, fill, shade)
    sail(draw, 372, 158, 216, 42, 48, fill, shade)
    sail(draw, 372, 228, 332, 52, 58, fill, shade)
    sail(draw, 250, 122, 186, 56, 64, fill, shade)
    sail(draw, 250, 200, 346, 70, 78, fill, shade)
    if skull_on_sail:
        skull(draw, 254, 250, 36)
    # Hull: stern castle, waist, bow.
    wood, light, darker, gold = (140, 84, 42), (176, 112, 58), (98, 56, 28), (240, 180, 60)
    keel = [*curve((470, 352), (448, 452), (392, 486)), (120, 486), *curve((120, 486), (70, 462), (44, 318))]
    deck = [(44, 318), (148, 318), (158, 366), (330, 372), (346, 348), (470, 346)]
    draw.polygon(deck + keel, fill=wood)
    draw.polygon(
        [
            *curve((462, 384), (444, 458), (392, 486)),
            (120, 486),
            *curve((120, 486), (82, 466), (66, 408)),
            (72, 436),
            *curve((90, 440), (250, 456), (456, 408)),
        ],
        fill=darker,
    )
    draw.line([(50, 352), (152, 352)], fill=darker, width=6)
    draw.line(curve((60, 392), (250, 410), (464, 374)), fill=light, width=9, joint="curve")
    draw.line(
        [(38, 316), (150, 316), (160, 364), (330, 370), (346, 346), (478, 342)], fill=gold, width=11, joint="curve"
    )
    for x, y in ((104, 424), (164, 430), (224, 431), (284, 429), (344, 423), (402, 412)):
        draw.rounded_rectangle([x - 15, y - 15, x + 15, y + 13], radius=4, fill=(44, 26, 18))
        draw.ellipse([x - 8, y - 8, x + 8, y + 8], fill=(22, 20, 22))
    for x in (74, 114):
        draw.rounded_rectangle([x - 13, 328, x + 13, 346], radius=4, fill=(255, 222, 120))
    # The flag, the largest thing aloft.
    flag = curve((259, 8), (300, -8), (330, 22), (384, 6)) + curve((384, 104), (330, 122), (300, 92), (259, 108))
    draw.polygon(flag, fill=(24, 24, 30))
    skull(draw, 321, 46, 27)
    draw.ellipse([242, 0, 262, 20], fill=gold)
    return image


DARK = ((58, 58, 68), (40, 40, 48))
GREY = ((142, 146, 156), (112, 116, 128))
RED = ((176, 48, 44), (138, 34, 34))
DRAWINGS: dict[str, Callable[[], Image.Image]] = {
    "pirate_ship_dark": lambda: pirate_ship(DARK, True),
    "pirate_ship_grey": lambda: pirate_ship(GREY, False),
    "pirate_ship_red": lambda: pirate_ship(RED, True),
}


def sprite(recipe: str, path: Path) -> Image.Image:
    return fit(DRAWINGS[recipe[1:]]() if recipe.startswith("@") else emoji(recipe, path))


def tile(sprites: list[Image.Image], columns: int) -> Image.Image:
    sheet = Image.new("RGBA", (columns * SIZE, math.ceil(len(sprites) / columns) * SIZE))
    for i, image in enumerate(sprites):
        sheet.paste(image, (i % columns * SIZE, i // columns * SIZE))
    return sheet


def build(names: Iterable[str], path: Path) -> tuple[Image.Image, list[str]]:
    """The atlas and the concept's name for each of its sprites."""
    owners = [(name, recipe) for name in names for recipe in concepts()[name].recipes]
    return tile([sprite(recipe, path) for _, recipe in owners], COLUMNS), [name for name, _ in owners]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--font", type=Path, default=FONT)
    parser.add_argument("--sheet", type=Path, help="also write the atlas on a grey ground here, to look at")
    arguments = parser.parse_args()
    atlas, owners = build(concepts(), arguments.font)
    atlas.save(OUT / "atlas.webp", quality=85, alpha_quality=90, method=6)
    (OUT / "atlas.txt").write_text("\n".join(owners) + "\n", encoding="utf-8")
    print(f"{len(owners)} sprites, {(OUT / 'atlas.webp').stat().st_size} bytes")
    if arguments.sheet:
        ground = Image.new("RGBA", atlas.size, (205, 215, 225, 255))
        Image.alpha_composite(ground, atlas).convert("RGB").save(arguments.sheet)


if __name__ == "__main__":
    main()

"""Draw the sprite atlas of `genpipe.scenes` from the Noto Color Emoji font and from drawings of our own.

    python -m scripts.make.sprites [--font NotoColorEmoji.ttf] [--sheet sheet.png]

Only this script needs the font; what it writes (atlas.webp, atlas.txt) is shipped. A recipe of the concept table is an
emoji, `@name` for a drawing, or `@costume:emoji`.
"""

import argparse
import math
from functools import cache
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from genpipe.scenes.atlas import SPRITE_SIDE
from genpipe.scenes.concepts import concepts
from genpipe.scenes.costumes import HEADS, dress
from genpipe.scenes.drawings import DRAWINGS

FONT = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
OUT = Path(__file__).resolve().parents[2] / "genpipe" / "scenes"
MARGIN = 2  # transparent border, so that bilinear sampling fades to nothing
COLUMNS = 32


def fit(image: Image.Image, side: int = SPRITE_SIDE) -> Image.Image:
    """Crop to what is visible and fit it into a square."""
    box = image.getchannel("A").point([255 * (a > 8) for a in range(256)]).getbbox()
    if box is None:
        raise ValueError("nothing is drawn: the font lacks this emoji")
    image = image.crop(box)
    scale = (side - 2 * MARGIN) / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    image = image.convert("RGBa").resize(size, Image.Resampling.LANCZOS).convert("RGBA")
    square = Image.new("RGBA", (side, side))
    square.paste(image, ((side - size[0]) // 2, (side - size[1]) // 2))
    return square


@cache
def font(path: Path) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(path), 109)  # the one size that the bitmap font holds


def emoji(text: str, path: Path) -> Image.Image:
    canvas = Image.new("RGBA", (300, 180))
    draw = ImageDraw.Draw(canvas)
    if draw.textlength(text, font=font(path), embedded_color=True) > 160:
        raise ValueError(f"the font has no single image for {text}")
    draw.text((10, 10), text, font=font(path), embedded_color=True)
    return canvas


def sprite(recipe: str, path: Path) -> Image.Image:
    if not recipe.startswith("@"):
        return fit(emoji(recipe, path))
    name, _, face = recipe[1:].partition(":")
    if not face:
        return fit(DRAWINGS[name]())
    return fit(dress(name, fit(emoji(face, path)), HEADS[face], fit(emoji("👑", path))))


def tile(sprites: list[Image.Image]) -> Image.Image:
    sheet = Image.new("RGBA", (COLUMNS * SPRITE_SIDE, math.ceil(len(sprites) / COLUMNS) * SPRITE_SIDE))
    for i, image in enumerate(sprites):
        sheet.paste(image, (i % COLUMNS * SPRITE_SIDE, i // COLUMNS * SPRITE_SIDE))
    return sheet


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--font", type=Path, default=FONT)
    parser.add_argument("--sheet", type=Path, help="also write the atlas on a grey ground here, to look at")
    arguments = parser.parse_args()
    owners = [(name, recipe) for name, concept in concepts().items() for recipe in concept.recipes]
    atlas = tile([sprite(recipe, arguments.font) for _, recipe in owners])
    atlas.save(OUT / "atlas.webp", quality=85, alpha_quality=90, method=6)
    (OUT / "atlas.txt").write_text("".join(f"{name}\n" for name, _ in owners), encoding="utf-8")
    print(f"{len(owners)} sprites, {(OUT / 'atlas.webp').stat().st_size} bytes")
    if arguments.sheet:
        ground = Image.new("RGBA", atlas.size, (205, 215, 225, 255))
        Image.alpha_composite(ground, atlas).convert("RGB").save(arguments.sheet)


if __name__ == "__main__":
    main()

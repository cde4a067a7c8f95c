"""Draw the sprite atlas of `genpipe.scenes` from the drawings of Noto Color Emoji and from some of our own.

    git clone --depth 1 --branch v2.042 https://github.com/googlefonts/noto-emoji
    python -m scripts.make.sprites --svg noto-emoji/svg [--sheet sheet.png]

Only this script needs the drawings, and resvg (`pip install resvg_py`) to render them; what it writes (atlas.webp,
atlas.txt) is shipped. A recipe of the concept table is an emoji, `@name` for a drawing, or `@costume:emoji`.
"""

import argparse
import io
import math
from functools import cache
from pathlib import Path

from PIL import Image

from genpipe.scenes.atlas import SPRITE_SIDE
from genpipe.scenes.concepts import concepts
from genpipe.scenes.costumes import HEADS, dress
from genpipe.scenes.drawings import DRAWINGS
from genpipe.scenes.pen import CANVAS, FINE

OUT = Path(__file__).resolve().parents[2] / "genpipe" / "scenes"
MARGIN = 1 / 64  # of the side: a transparent border, so that bilinear sampling fades to nothing
COLUMNS = 32
SIDE = CANVAS * FINE  # pixels of what is reduced to a sprite


def fit(image: Image.Image, side: int = SPRITE_SIDE) -> Image.Image:
    """Crop to what is visible and fit it into a square."""
    box = image.getchannel("A").point([255 * (a > 8) for a in range(256)]).getbbox()
    if box is None:
        raise ValueError("nothing is drawn")
    image = image.crop(box)
    scale = side * (1 - 2 * MARGIN) / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    image = image.convert("RGBa").resize(size, Image.Resampling.LANCZOS).convert("RGBA")
    square = Image.new("RGBA", (side, side))
    square.paste(image, ((side - size[0]) // 2, (side - size[1]) // 2))
    return square


@cache
def emoji(text: str, folder: Path) -> Image.Image:
    """Render an emoji's drawing in the pixels of our own canvas."""
    from resvg_py import svg_to_bytes  # pyright: ignore[reportMissingImports] (of this script alone)

    name = "emoji_u" + "_".join(f"{ord(sign):04x}" for sign in text if sign != "\ufe0f") + ".svg"
    png = svg_to_bytes(svg_string=(folder / name).read_text(encoding="utf-8"), width=SIDE, height=SIDE)
    with Image.open(io.BytesIO(png)) as image:
        return image.convert("RGBA")


def sprite(recipe: str, folder: Path) -> Image.Image:
    if not recipe.startswith("@"):
        return fit(emoji(recipe, folder))
    name, _, face = recipe[1:].partition(":")
    if not face:
        return fit(DRAWINGS[name]())
    return fit(dress(name, fit(emoji(face, folder), SIDE), HEADS[face], fit(emoji("👑", folder), SIDE)))


def tile(sprites: list[Image.Image]) -> Image.Image:
    sheet = Image.new("RGBA", (COLUMNS * SPRITE_SIDE, math.ceil(len(sprites) / COLUMNS) * SPRITE_SIDE))
    for i, image in enumerate(sprites):
        sheet.paste(image, (i % COLUMNS * SPRITE_SIDE, i // COLUMNS * SPRITE_SIDE))
    return sheet


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--svg", type=Path, required=True, help="noto-emoji's folder of that name")
    parser.add_argument("--quality", type=int, default=85, help="of the WebP file, 1 to 100 (%(default)s)")
    parser.add_argument("--sheet", type=Path, help="also write the atlas on a grey ground here, to look at")
    arguments = parser.parse_args()
    owners = [(name, recipe) for name, concept in concepts().items() for recipe in concept.recipes]
    try:
        atlas = tile([sprite(recipe, arguments.svg) for _, recipe in owners])
    except ImportError as error:
        raise SystemExit(f"error: drawings cannot be rendered ({error}): pip install resvg_py") from error
    except OSError as error:
        raise SystemExit(f"error: {error}: give noto-emoji's svg folder of v2.042 as --svg") from error
    atlas.save(OUT / "atlas.webp", quality=arguments.quality, alpha_quality=arguments.quality, method=6)
    (OUT / "atlas.txt").write_text("".join(f"{name}\n" for name, _ in owners), encoding="utf-8")
    print(f"{len(owners)} sprites, {(OUT / 'atlas.webp').stat().st_size} bytes")
    if arguments.sheet:
        ground = Image.new("RGBA", atlas.size, (205, 215, 225, 255))
        Image.alpha_composite(ground, atlas).convert("RGB").save(arguments.sheet)


if __name__ == "__main__":
    main()

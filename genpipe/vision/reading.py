"""Reading the images that people have: any mode, any orientation, and files that are no images at all."""

import re
from pathlib import Path

from PIL import Image

from genpipe.images import open_image, upright

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"}


def read_image(source: str | Path | Image.Image) -> Image.Image:
    """Return the image as it is meant to be seen, in RGB.

    EXIF rotation is obeyed, transparency is laid on white, 16 bits become 8, and of an animation it is the first frame.

    Raises:
        ValueError: not an image, a damaged one, one with more than `PIL.Image.MAX_IMAGE_PIXELS` pixels, or one whose
            levels are floating-point numbers.
        OSError: the file cannot be read.
    """
    if isinstance(source, Image.Image):
        return as_seen(source, "this image")
    with open_image(source) as image:
        return as_seen(image, str(source))


def images_in(folder: Path) -> list[Path]:
    """Return the files directly in a folder that are images by their suffix, sorted by name.

    Raises:
        ValueError: there are none.
    """
    paths = sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))
    if not paths:
        raise ValueError(f"the folder {folder} holds no images: put {', '.join(sorted(SUFFIXES))} files into it")
    return paths


def why_unusable(error: ValueError, name: str) -> str:
    """Return why the image `name` cannot be used, in a few words, from an error of `read_image`: "a damaged image"."""
    return re.sub("^(is|has) ", "", str(error).removeprefix(f"{name} ")).partition(":")[0]


def as_seen(image: Image.Image, name: str) -> Image.Image:
    """Return an open image as `read_image` does; `name` is what errors call it."""
    image = upright(image, name)
    if image.mode == "RGBA":
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image

"""Reading the pictures that people have: any mode, any orientation, and files that are no pictures at all."""

import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"}


def read_picture(source: str | Path | Image.Image) -> Image.Image:
    """The picture as it is meant to be seen, in RGB.

    EXIF rotation is obeyed, transparency is laid on white, 16 bits become 8, and of an animation it is the first frame.

    Raises:
        ValueError: not a picture, a damaged one, one with more than `PIL.Image.MAX_IMAGE_PIXELS` pixels, or one whose
            levels are floating-point numbers.
        OSError: the file cannot be read.
    """
    if isinstance(source, Image.Image):
        return _as_seen(source, "this picture")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(source) as image:
                return _as_seen(image, str(source))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        limit = Image.MAX_IMAGE_PIXELS
        raise ValueError(f"{source} has more than {limit:,} pixels, which genpipe refuses: make it smaller") from None
    except UnidentifiedImageError:
        raise ValueError(f"{source} is not a picture: give a {', '.join(sorted(SUFFIXES))} file") from None
    except (_Unsupported, MemoryError):
        raise
    except Exception as error:
        # The system's own errors have a number, those of Pillow's decoders have none and are of every type.
        if isinstance(error, OSError) and error.errno is not None:
            raise
        reason = " ".join(str(error).split())
        raise ValueError(f"{source} is a damaged picture: {reason}; fetch or save it again") from error


def pictures_in(folder: Path) -> list[Path]:
    """The files directly in a folder that are pictures by their suffix, sorted by name.

    Raises:
        ValueError: there are none.
    """
    paths = sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))
    if not paths:
        raise ValueError(f"the folder {folder} holds no pictures: put {', '.join(sorted(SUFFIXES))} files into it")
    return paths


class _Unsupported(ValueError):
    """A picture that is whole, but not one to look at."""


def _as_seen(image: Image.Image, name: str) -> Image.Image:
    image = ImageOps.exif_transpose(image)
    if image.mode == "F":
        raise _Unsupported(f"{name} has floating-point levels without a scale: save it with 8 or 16 bits")
    if image.mode.startswith("I"):
        levels = np.asarray(image)
        if levels.size and (levels.min() < 0 or levels.max() > 0xFFFF):
            raise _Unsupported(f"{name} has levels beyond 16 bits: save it with 8 or 16 bits")
        return Image.fromarray((levels // 256).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")

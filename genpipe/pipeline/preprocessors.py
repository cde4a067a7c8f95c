"""What control models are shown of an image: its outlines by classical filters, or its colours alone."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from PIL import Image

# Pixels that `tile` makes one of.
TILE = 4
# How far apart, in pixels, `lines` looks for what is darker than what is around it.
SPREAD = 6.0


def preprocess(name: str, image: Image.Image) -> Image.Image:
    """Take from an RGB image what control models of that kind are shown, of the same size.

    Args:
        name: "canny" gives thin white edges on black (Canny, 1986), "edges" soft ones, "lines" whatever is darker than
            its surroundings, as drawn lines are, in white; "tile" the colours without the detail.
        image: to take it from.

    Raises:
        ValueError: scikit-image, which finds the edges, is not installed.
    """
    return _ALL[name](image)


def _canny(image: Image.Image) -> Image.Image:
    return _white(_skimage("feature").canny(_grey(image), sigma=1.0))


def _edges(image: Image.Image) -> Image.Image:
    return _white(_normalised(_skimage("filters").sobel(_grey(image))))


def _lines(image: Image.Image) -> Image.Image:
    grey = _grey(image)
    return _white(_normalised(np.clip(_skimage("filters").gaussian(grey, SPREAD) - grey, 0, None)))


def _tile(image: Image.Image) -> Image.Image:
    small = (max(1, image.width // TILE), max(1, image.height // TILE))
    return image.resize(small, Image.Resampling.BOX).resize(image.size, Image.Resampling.BICUBIC)


_ALL: Mapping[str, Callable[[Image.Image], Image.Image]] = {
    "canny": _canny,
    "edges": _edges,
    "lines": _lines,
    "tile": _tile,
}


def _grey(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("L"), dtype=np.float64) / 255


def _normalised(levels: np.ndarray) -> np.ndarray:
    return levels / max(float(levels.max()), 1e-6)


def _white(levels: np.ndarray) -> Image.Image:
    return Image.fromarray((levels * 255).round().astype(np.uint8)).convert("RGB")


def _skimage(module: str) -> Any:
    try:
        from skimage import feature, filters
    except ImportError:
        raise ValueError("finding edges needs scikit-image: pip install 'genpipe[control]'") from None
    return {"feature": feature, "filters": filters}[module]

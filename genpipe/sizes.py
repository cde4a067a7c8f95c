"""Sizes of images as people write them: "512x768", "512" for a square, or a ratio such as 16:9."""

import math
import re

from genpipe.messages import quoted
from genpipe.request import MAX_SIDE

MAX_RATIO = 8
# Width and height of the wide images that Stable Diffusion XL was trained on ("SDXL", arXiv 2307.01952, appendix I).
XL_SIZES = (
    *((1024, 1024), (1024, 960), (1088, 960), (1088, 896), (1152, 896), (1152, 832), (1216, 832), (1280, 768)),
    *((1344, 768), (1344, 704), (1408, 704), (1472, 704), (1536, 640), (1600, 640), (1664, 576), (1728, 576)),
)


def parse_size(text: str) -> tuple[int, int]:
    """Read a size in pixels; leading zeros count for nothing.

    Returns:
        The width and the height, 1 … 8192 each.

    Raises:
        ValueError: the text is not a size, or a side is out of its range.
    """
    match = re.fullmatch(r"\s*0*(\d+)(?:\s*[xX×]\s*0*(\d+))?\s*", text, re.ASCII)
    if match is None:
        raise ValueError(f"{quoted(text)} is not a size: write it as 512x768, or 512 for a square")
    sides = [match[1], match[1] if match[2] is None else match[2]]
    width, height = (int(side) if len(side) < 9 else MAX_SIDE + 1 for side in sides)
    if not (1 <= width <= MAX_SIDE and 1 <= height <= MAX_SIDE):
        raise ValueError(f"size {quoted(text)} is out of range: give each side as 1 to {MAX_SIDE} pixels")
    return width, height


def parse_ratio(text: str) -> float:
    """Read the ratio of width to height that people write as 16:9, 3/2 or 1.5.

    Raises:
        ValueError: the text is not a ratio, or one beyond 1:`MAX_RATIO` or `MAX_RATIO`:1.
    """
    match = re.fullmatch(r"\s*(\d{1,5}(?:\.\d{1,5})?)\s*(?:[:/xX×]\s*(\d{1,5}(?:\.\d{1,5})?)\s*)?", text, re.ASCII)
    if match is None:
        raise ValueError(f"{quoted(text)} is not a ratio: write it as 16:9, width first")
    width, height = float(match[1]), float(match[2] or 1)
    if not (width and height and 1 / MAX_RATIO <= width / height <= MAX_RATIO):
        raise ValueError(f"the ratio {quoted(text)} is out of range: give 1:{MAX_RATIO} to {MAX_RATIO}:1")
    return width / height


def size_of_ratio(ratio: float, width: int, height: int, *, xl: bool = False) -> tuple[int, int]:
    """Choose the size of a ratio that a model draws well: of the area that it was trained on, or nearly.

    Args:
        ratio: of width to height.
        width, height: that the model was trained on, in pixels.
        xl: take one of the sizes that Stable Diffusion XL was trained on. Others are multiples of 64, or of 8 for models
            of small images.

    Returns:
        The width and the height.
    """
    if ratio < 1:  # so that wide and tall are alike, to the last pixel
        tall, wide = size_of_ratio(1 / ratio, height, width, xl=xl)
        return wide, tall
    area, sizes = width * height, XL_SIZES
    if not xl:
        step = 64 if min(width, height) >= 512 else 8
        most = math.ceil(math.sqrt(area * MAX_RATIO) / step) + 1
        sizes = [(step * columns, step * rows) for columns in range(1, most) for rows in range(1, columns + 1)]

    def misses(size: tuple[int, int]) -> float:
        return abs(math.log(size[0] / size[1] / ratio)) + abs(math.log(size[0] * size[1] / area))

    return min(sizes, key=misses)

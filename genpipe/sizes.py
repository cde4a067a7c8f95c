"""Sizes of images as people write them: "512x768", "512 × 768", or "512" for a square."""

import re

from genpipe.messages import quoted
from genpipe.request import MAX_SIDE


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

"""The images that a batch begins from: what of them is drawn over, and what is put back, byte for byte, in the end."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFilter

from genpipe.images import Picture
from genpipe.request import Request


@dataclass(frozen=True)
class Original:
    """An image to begin from.

    Attributes:
        image: RGB, what is drawn over, at the size of the request.
        mask: of that size, 255 where it is to change and 0 where it stays; None where all of it is to change.
        whole: the image that `image` is a part of, or all of, at the size that it has in the end.
        hard: the mask of `whole`.
        box: left, top, right and bottom of that part in `whole`.
    """

    image: Image.Image
    mask: Image.Image | None
    whole: Image.Image
    hard: Image.Image | None
    box: tuple[int, int, int, int]

    def restored(self, drawn: Picture, blur: int) -> Picture:
        """Put what was to stay, byte for byte, over what was drawn in its place.

        Args:
            drawn: at the size of the request.
            blur: over how many pixels inside of the mask the change fades in.
        """
        if self.hard is None:
            return drawn
        old, hard = self.whole.crop(self.box), self.hard.crop(self.box)
        new = drawn if drawn.size == old.size else drawn.resize(old.size, Image.Resampling.LANCZOS)
        found = self.whole.copy()
        found.paste(Image.composite(new, old, _faded(hard, blur)), self.box[:2])
        return Picture.of(found)


@dataclass(frozen=True)
class Originals:
    """The images that a batch begins from; all of them have a mask, or none."""

    each: tuple[Original, ...]

    @classmethod
    def of(cls, requests: Sequence[Request], factor: int) -> "Originals | None":
        """Read the images of requests; None where they have none.

        Args:
            requests: of the batch.
            factor: of what an image's sides have to be multiples to be drawn. What is a little larger, and has a mask, is
                drawn smaller, and keeps its own size in the end.

        Raises:
            ValueError: an image or a mask cannot be used, or only some of the images have parts to change.
            OSError: a file cannot be read.
        """
        found = tuple(_read(request, factor) for request in requests if request.image is not None)
        if not found:
            return None
        if len({one.mask is None for one in found}) > 1:
            raise ValueError("some images of the batch are transparent or have a mask, others not: draw them apart")
        return cls(found)

    @classmethod
    def drawn(cls, images: Sequence[Image.Image]) -> "Originals":
        """Take images that are drawn over as a whole."""
        return cls(tuple(Original(image, None, image, None, (0, 0, *image.size)) for image in images))

    @property
    def images(self) -> tuple[Image.Image, ...]:
        """What is drawn over, RGB, all of one size."""
        return tuple(one.image for one in self.each)

    @property
    def masks(self) -> tuple[Image.Image, ...] | None:
        """255 where the images are to change, 0 where they stay; None where all of them is to change."""
        found = tuple(one.mask for one in self.each if one.mask is not None)
        return found or None


def _read(request: Request, factor: int) -> Original:
    size = (request.width, request.height)
    whole, soft = _with_mask(request)
    if request.outpaint is not None:
        whole, soft = _widened(whole, soft, request.outpaint)
    hard = None if soft is None else _binary(soft)
    box = (0, 0, *whole.size)
    if hard is not None and hard.getbbox() is None:
        raise ValueError("mask leaves nothing to change, it is all black: paint white what is to change")
    if request.only_masked is not None:
        if hard is None:
            raise ValueError("only_masked draws the masked part of an image: give a mask, too")
        box = _around(hard, request.only_masked, size)
    elif soft is None or any(own // factor * factor != wanted for own, wanted in zip(whole.size, size, strict=True)):
        whole, box = _resized(whole, size), (0, 0, *size)
        soft = None if soft is None else _resized(soft, size)
        hard = None if soft is None else _binary(soft)
    image, mask = _resized(whole.crop(box), size), None
    if soft is not None:
        mask = _binary(_resized(soft.crop(box), size))
        if mask.getbbox() is None:
            raise ValueError(
                "mask leaves nothing to change at this size: paint a larger part white, or use only_masked"
            )
    return Original(image, mask, whole, hard, box)


def _with_mask(request: Request) -> tuple[Image.Image, Image.Image | None]:
    """The image, RGB at its own size, and a mask of that size in levels of grey."""
    assert request.image is not None
    given = request.image.open()
    mask = None
    if request.mask is not None:
        mask = request.mask.open().convert("L")
        if mask.size != given.size:
            raise ValueError(
                f"mask is {mask.width}x{mask.height} where the image is {given.width}x{given.height}: make them one size"
            )
    elif given.mode == "RGBA":
        mask = given.getchannel("A").point(list(range(255, -1, -1)))
    return given.convert("RGB"), mask


def _widened(
    image: Image.Image, mask: Image.Image | None, sides: tuple[int, int, int, int]
) -> tuple[Image.Image, Image.Image]:
    """A wider image, whose new parts repeat its edges, and the mask of these parts."""
    left, top, right, bottom = sides
    around = ((top, bottom), (left, right))
    wide = Image.fromarray(np.pad(np.asarray(image), (*around, (0, 0)), mode="edge"))
    old = np.zeros((image.height, image.width), np.uint8) if mask is None else np.asarray(mask)
    return wide, Image.fromarray(np.pad(old, around, constant_values=255))


def _around(hard: Image.Image, padding: int, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """The part of an image that holds its mask and so many pixels around, as wide to high as `size` where there is room."""
    bounds = hard.getbbox()
    assert bounds is not None
    left, top = max(0, bounds[0] - padding), max(0, bounds[1] - padding)
    right, bottom = min(hard.width, bounds[2] + padding), min(hard.height, bounds[3] + padding)
    width = min(hard.width, max(right - left, round((bottom - top) * size[0] / size[1])))
    height = min(hard.height, max(bottom - top, round((right - left) * size[1] / size[0])))
    left = min(max(0, (left + right - width) // 2), hard.width - width)
    top = min(max(0, (top + bottom - height) // 2), hard.height - height)
    return left, top, left + width, top + height


def _resized(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    return image if image.size == size else image.resize(size, Image.Resampling.LANCZOS)


def _binary(mask: Image.Image) -> Image.Image:
    return mask.point([0] * 128 + [255] * 128)


def _faded(mask: Image.Image, blur: int) -> Image.Image:
    """From nothing at the mask's edge to all within it; outside of it nothing changes."""
    if not blur:
        return mask
    levels = np.asarray(mask.filter(ImageFilter.GaussianBlur(blur)), dtype=np.float32)
    inside = np.clip(2 * levels - 255, 0, 255) * (np.asarray(mask) > 0)
    return Image.fromarray(inside.astype(np.uint8))

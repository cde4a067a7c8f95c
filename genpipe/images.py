"""Images outside the networks: tensors to PIL and back, files, grids."""

import io
import math
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, BinaryIO

from PIL import Image, ImageOps, UnidentifiedImageError

from genpipe.checks import check_file_name
from genpipe.files import atomic_write
from genpipe.imprint import COMPOSITE, SOURCE, png_texts, saving_options
from genpipe.messages import one_line
from genpipe.moved import look_up

if TYPE_CHECKING:
    from numpy import ndarray
    from torch import Tensor

# What Pillow is told for each kind of file.
FORMATS: dict[str, dict[str, Any]] = {
    ".png": {"format": "PNG"},
    ".jpg": {"format": "JPEG", "quality": 95, "subsampling": 0},
    ".jpeg": {"format": "JPEG", "quality": 95, "subsampling": 0},
    ".webp": {"format": "WEBP", "quality": 95},
}
# Signs a file: from its bytes, its suffix and the image's `info`.
Sign = Callable[[bytes, str, Mapping[Any, Any]], bytes]
# What images are read from. Pillow knows more formats, among them PostScript, which it hands to a program that runs it.
READ_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
# Attributes in which versions of Pillow keep an image's pixels; one thread at a time makes them.
_PILLOWS, _MAKING = ("_im", "im"), Lock()


def open_image(source: str | Path | BinaryIO) -> Image.Image:
    """Open an image in one of `READ_FORMATS`, as `PIL.Image.open` does: its pixels are read when they are needed.

    Args:
        source: a file, or an open one in binary mode.

    Raises:
        ValueError: not an image in one of these formats, or one of more than `PIL.Image.MAX_IMAGE_PIXELS` pixels.
        OSError: the file cannot be read.
    """
    name = "this file"
    if isinstance(source, str | Path):
        check_file_name(source)
        name = str(source)
    with image_errors(name):
        image = Image.open(source, formats=READ_FORMATS)
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and image.width * image.height > limit:
        image.close()
        raise _too_large(name)
    return image


def upright(source: str | Path | Image.Image, name: str = "this image") -> Image.Image:
    """Read an image as it is meant to be seen, as 8-bit RGB, or as RGBA where it is transparent.

    EXIF rotation is obeyed, 16 bits become 8, and of an animation it is the first frame.

    Args:
        source: a file, or an open image.
        name: what errors call an open image.

    Raises:
        ValueError: not an image, a damaged one, one of too many pixels, or one whose levels are floating-point numbers.
        OSError: the file cannot be read.
    """
    if isinstance(source, Image.Image):
        return _upright(source, name)
    with open_image(source) as image:
        return _upright(image, str(source))


def _upright(image: Image.Image, name: str) -> Image.Image:
    import numpy as np

    with image_errors(name):
        image.load()
        image = ImageOps.exif_transpose(image)
    if image.mode == "F":
        raise ValueError(f"{name} has floating-point levels without a scale: save it with 8 or 16 bits")
    if image.mode.startswith("I"):
        levels = np.asarray(image)
        if levels.size and (levels.min() < 0 or levels.max() > 0xFFFF):
            raise ValueError(f"{name} has levels beyond 16 bits: save it with 8 or 16 bits")
        image = Image.fromarray((levels // 256).astype(np.uint8))
    with image_errors(name):
        return image.convert("RGBA" if image.has_transparency_data else "RGB")


@contextmanager
def image_errors(name: str) -> Iterator[None]:
    """Turn Pillow's errors, of whatever type, into one line of a ValueError about the image `name`, and hush its warnings.

    The system's own errors (OSError with a number) and a lack of memory stay what they are.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd metadata, and of sizes that `open_image` refuses
            yield
    except MemoryError:
        raise
    except Image.DecompressionBombError:
        raise _too_large(name) from None
    except UnidentifiedImageError:
        raise ValueError(f"{name} is not an image: give a {', '.join(READ_FORMATS)} file") from None
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise ValueError(f"{name} is a damaged image: {one_line(str(error))}; fetch or save it again") from error


def _too_large(name: str) -> ValueError:
    return ValueError(f"{name} has more than {Image.MAX_IMAGE_PIXELS:,} pixels, which genpipe refuses: make it smaller")


class Picture(Image.Image):
    """A PIL image that writes into its files, by `save` too, what its `info` says of how it was made."""

    _levels: "ndarray | None" = None

    @classmethod
    def of_levels(cls, levels: "ndarray") -> "Picture":
        """Make an RGB image of 8-bit levels (H, W, 3), which belong to it from now on."""
        picture, (height, width, _) = cls(), levels.shape
        picture._mode, picture._size, picture._levels = "RGB", (width, height), levels
        for name in _PILLOWS:
            vars(picture).pop(name, None)
        return picture

    @property
    def levels(self) -> "ndarray":
        """The levels (H, W, 3) of an RGB image, 8 bits, to be read only."""
        import numpy as np

        levels = self._levels
        return np.asarray(self) if levels is None else levels

    def __getattr__(self, name: str) -> Any:
        """Make Pillow's own pixels when they are first asked for: what is only written needs none, which takes a while."""
        if name in _PILLOWS:
            with _MAKING:
                levels, self._levels = self._levels, None  # Pillow's may be changed from now on
                if levels is not None:
                    self.im = Image.fromarray(levels).im
            if name in vars(self):
                return vars(self)[name]
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}", name=name, obj=self)

    @classmethod
    def of(cls, image: Image.Image) -> "Picture":
        """Make one of an RGB image."""
        if isinstance(image, cls):
            return image
        picture = cls()
        picture.__setstate__([{}, "RGB", image.size, None, image.convert("RGB").tobytes()])
        return picture

    def save(self, fp: Any, format: str | None = None, **params: Any) -> None:
        """As in PIL. `pnginfo=None` writes a PNG without the texts, `exif=None` and `xmp=None` a JPEG or a WebP."""
        kind = FORMATS.get(Path(fp).suffix.lower(), {}).get("format", "") if isinstance(fp, str | Path) else ""
        super().save(fp, format, **{**saving_options(self.info, format.upper() if format else kind), **params})


def to_pil(pixels: "Tensor") -> list[Picture]:
    """Turn pixels (B, 3, H, W) in [-1, 1] into B 8-bit RGB images: clipped there, and rounded to the nearest level."""
    levels = (pixels.detach().float() * 0.5 + 0.5).clamp(0, 1).mul(255).round().byte()
    levels = levels.permute(0, 2, 3, 1).contiguous()  # (B, H, W, 3)
    if levels.device.type == "cuda":
        levels = _copied_from_gpu(levels)
    return [Picture.of_levels(array.copy()) for array in levels.cpu().numpy()]  # one is not to hold the memory of all


def _copied_from_gpu(tensor: "Tensor") -> "Tensor":
    """Copy into memory that the GPU writes by itself, and wait for it and for nothing of other streams."""
    import torch

    copy = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu", pin_memory=True)
    copy.copy_(tensor, non_blocking=True)
    torch.cuda.current_stream(tensor.device).synchronize()
    return copy


def from_pil(images: Image.Image | Sequence[Image.Image]) -> "Tensor":
    """Turn B images of one size into pixels (B, 3, H, W), float32 in [-1, 1]; transparency is dropped.

    Raises:
        ValueError: there are no images, or their sizes differ.
    """
    import numpy as np
    import torch

    images = [images] if isinstance(images, Image.Image) else list(images)
    sizes = sorted({image.size for image in images})
    if len(sizes) != 1:
        listed = " and ".join(f"{width}x{height}" for width, height in sizes[:2])
        raise ValueError(f"a batch needs images of one size, not {listed or 'no images'}: resize them first")
    levels = np.stack([np.asarray(image.convert("RGB"), dtype=np.float32) for image in images])  # (B, H, W, 3)
    return torch.from_numpy(levels).permute(0, 3, 1, 2).contiguous() / 127.5 - 1


def grid(images: Sequence[Image.Image], columns: int | None = None) -> Image.Image:
    """Put images side by side, row by row from the top left, each in a cell of the largest one's size, on white.

    Where a machine made one of them, the grid says so too.

    Args:
        images: at least one.
        columns: images per row; None makes the grid about square.

    Raises:
        ValueError: no images, or `columns` below 1.
    """
    if not images:
        raise ValueError("a grid of [] has nothing to show: give at least one image")
    if columns is None:
        columns = math.ceil(math.sqrt(len(images)))
    if columns < 1:
        raise ValueError(f"columns must be 1 or more, not {columns}")
    columns = min(columns, len(images))
    width, height = (max(image.size[axis] for image in images) for axis in (0, 1))
    sheet = Image.new("RGB", (columns * width, math.ceil(len(images) / columns) * height), "white")
    for index, image in enumerate(images):
        row, column = divmod(index, columns)
        sheet.paste(image.convert("RGB"), (column * width, row * height))
    sources = {image.info.get(SOURCE) for image in images}
    if made := sources - {None}:
        sheet.info[SOURCE] = made.pop() if len(sources) == 1 else COMPOSITE
    return sheet


def save_image(image: Image.Image, path: str | Path, *, sign: Sign | None = None) -> None:
    """Write an image to `path`, wholly or not at all; the suffix (.png, .jpg, .jpeg, .webp) says in which format.

    `sign` signs the file, see `genpipe.signing.Signer`.

    Raises:
        ValueError: another suffix, or it cannot be signed.
        OSError: the file cannot be written.
    """
    path = Path(path)
    check_suffix(path)
    data = encode_image(image, path.suffix, sign=sign)
    with atomic_write(path, durable=True) as part:
        part.write_bytes(data)


def encode_image(image: Image.Image, suffix: str, *, sign: Sign | None = None) -> bytes:
    """Give the bytes of an image's file, in the format of a suffix in `FORMATS`; they say what made it, and may be signed."""
    params = FORMATS[suffix.lower()]
    if params["format"] == "PNG" and image.mode == "RGB":
        import numpy as np

        from genpipe.png import encode_png

        data = encode_png(image.levels if isinstance(image, Picture) else np.asarray(image), png_texts(image.info))
    else:
        file = io.BytesIO()
        Image.Image.save(image, file, **{**saving_options(image.info, params["format"]), **params})
        data = file.getvalue()
    return data if sign is None else sign(data, suffix, image.info)


def check_suffix(path: Path) -> None:
    """Raise ValueError unless `save_image` knows how to write a file of this name."""
    if path.suffix.lower() not in FORMATS:
        raise ValueError(f"{str(path)!r} has to end in {', '.join(FORMATS)}: .png keeps the very pixels")


def save_new(image: Image.Image, folder: str | Path, stem: str, *, sign: Sign | None = None) -> Path:
    """Write a PNG of this name and never over another file: pirate-ship.png, pirate-ship-2.png, ….

    Returns:
        The path that was free.

    Raises:
        OSError: the file cannot be written.
    """
    data, number = encode_image(image, ".png", sign=sign), 1
    while True:
        path = Path(folder) / (f"{stem}.png" if number == 1 else f"{stem}-{number}.png")
        number += 1
        if os.path.lexists(path):
            continue
        # Another process may take the name in the meantime.
        with suppress(FileExistsError), atomic_write(path, durable=True, replace=False) as part:
            part.write_bytes(data)
            return path


def __getattr__(name: str) -> Any:
    return look_up(__name__, name)

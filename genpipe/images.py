"""Pictures outside the networks: tensors to PIL and back, files, what made a picture, grids.

PNGs carry what made them twice: as A1111's text under "parameters", for people and the tools that read it, and as JSON
under "genpipe", from which `read_request` gives the `Request` back. JPEG and WebP files are plain pictures.
"""

import io
import json
import math
import re
import sys
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from PIL import Image, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo

import genpipe
from genpipe.files import atomic_write
from genpipe.request import Request
from genpipe.sampling.names import split_name

if TYPE_CHECKING:
    from torch import Tensor

# What Pillow is told for each kind of file.
FORMATS: dict[str, dict[str, Any]] = {
    ".png": {"format": "PNG"},
    ".jpg": {"format": "JPEG", "quality": 95, "subsampling": 0},
    ".jpeg": {"format": "JPEG", "quality": 95, "subsampling": 0},
    ".webp": {"format": "WEBP", "quality": 95},
}
_A1111_SOLVERS = {
    "pndm": "PLMS",
    "ddim": "DDIM",
    "euler": "Euler",
    "euler_a": "Euler a",
    "heun": "Heun",
    "dpmpp_2m": "DPM++ 2M",
    "dpmpp_2m_sde": "DPM++ 2M SDE",
    "lcm": "LCM",
}
# What a picture says of itself besides its request.
NOT_REQUESTED = ("model", "version", "dtype", "int8", "best_of")
# Names that Windows keeps for devices, with any suffix.
_RESERVED = re.compile(r"con|prn|aux|nul|(com|lpt)\d", re.IGNORECASE)


class Picture(Image.Image):
    """A PIL image whose PNG files, `save` included, carry the texts that its `info` holds of what made it."""

    def save(self, fp: Any, format: str | None = None, **params: Any) -> None:
        """As in PIL. `pnginfo=None` writes a PNG without the texts."""
        params.setdefault("pnginfo", _png_texts(self.info))
        super().save(fp, format, **params)


def to_pil(pixels: "Tensor") -> list[Picture]:
    """A batch of pixels (B, 3, H, W) in [-1, 1], clipped there, as 8-bit RGB pictures, rounded to the nearest level."""
    levels = (pixels.detach().float() * 0.5 + 0.5).clamp(0, 1).mul(255).round().byte()
    pictures = [Image.fromarray(array) for array in levels.permute(0, 2, 3, 1).cpu().numpy()]  # (H, W, 3) each
    for picture in pictures:
        picture.__class__ = Picture
    return cast(list[Picture], pictures)


def from_pil(images: Image.Image | Sequence[Image.Image]) -> "Tensor":
    """Pictures of one size as pixels (B, 3, H, W), float32 in [-1, 1]; transparency is dropped.

    Raises:
        ValueError: no pictures, or of different sizes.
    """
    import numpy as np
    import torch

    images = [images] if isinstance(images, Image.Image) else list(images)
    sizes = sorted({image.size for image in images})
    if len(sizes) != 1:
        listed = " and ".join(f"{width}x{height}" for width, height in sizes[:2])
        raise ValueError(f"a batch needs pictures of one size, not {listed or 'no pictures'}: resize them first")
    levels = np.stack([np.asarray(image.convert("RGB"), dtype=np.float32) for image in images])  # (B, H, W, 3)
    return torch.from_numpy(levels).permute(0, 3, 1, 2).contiguous() / 127.5 - 1


def grid(images: Sequence[Image.Image], columns: int | None = None) -> Image.Image:
    """Pictures side by side, row by row from the top left, each in a cell of the largest one's size, on white.

    Args:
        images: at least one.
        columns: pictures a row; None makes the grid about square.

    Raises:
        ValueError: no images, or `columns` below 1.
    """
    if not images:
        raise ValueError("a grid of [] has nothing to show: give at least one picture")
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
    return sheet


def annotate(
    image: Image.Image,
    request: Request,
    model: str,
    *,
    sampler: str | None = None,
    dtype: Any = None,
    int8: bool = False,
) -> None:
    """Write into `image.info` what made the picture.

    Args:
        image: written to.
        request: what was asked for.
        model: the checkpoint's path, hub id or "embedded".
        sampler: the sampler that ran, where the request leaves it to the checkpoint.
        dtype: of the networks; None leaves it out.
        int8: whether the denoiser was quantised; False leaves it out.
    """
    made = {**request.to_dict(), "model": model, "version": genpipe.__version__}
    if dtype is not None:
        made["dtype"] = str(dtype).removeprefix("torch.")
    if int8:
        made["int8"] = True
    image.info["genpipe"] = json.dumps(made, ensure_ascii=False)
    named = request if request.sampler else replace(request, sampler=sampler)
    image.info["parameters"] = parameters_text(named, model)


def annotate_choice(image: Image.Image, scores: Sequence[Mapping[str, Any]]) -> None:
    """Add to what `annotate` wrote, under "best_of", the scores of all the pictures that this one was chosen from."""
    image.info["genpipe"] = json.dumps(
        {**json.loads(image.info["genpipe"]), "best_of": list(scores)}, ensure_ascii=False
    )


def parameters_text(request: Request, model: str) -> str:
    """What made a picture, in the form that A1111's web UI writes and reads.

    The prompt keeps its line breaks; its NULs, which would end the text for many readers, become U+FFFD.
    """
    lines = [request.prompt]
    if request.negative_prompt:
        lines.append(f"Negative prompt: {request.negative_prompt}")
    settings: dict[str, Any] = {
        "Steps": request.steps,
        "Sampler": _a1111_sampler(request.sampler),
        "CFG scale": f"{request.guidance_scale:.12g}",
        "Guidance rescale": f"{request.guidance_rescale:.12g}" if request.guidance_rescale else None,
        "Seed": request.seed,
        "Size": f"{request.width}x{request.height}",
        # A1111 counts the layer that is read, so its 1 skips none.
        "Clip skip": request.clip_skip + 1 if request.clip_skip else None,
        "Model": model,
        "Version": f"genpipe {genpipe.__version__}",
    }
    lines.append(", ".join(f"{key}: {_quoted(str(value))}" for key, value in settings.items() if value is not None))
    text = "\n".join(lines).replace("\r\n", "\n").replace("\r", "\n")
    return text.replace("\0", "\N{REPLACEMENT CHARACTER}")


def read_metadata(source: str | Path | Image.Image) -> dict[str, Any]:
    """What a picture says of itself: the keys of `Request` and of `NOT_REQUESTED`.

    Raises:
        ValueError: not a picture, or one without a readable `genpipe` text (it was not made by genpipe, or has been
            saved again by a program that drops such texts).
        OSError: the file cannot be read.
    """
    try:
        if isinstance(source, Image.Image):
            name, text = "this picture", source.info.get("genpipe")
        else:
            with Image.open(source) as image:
                name, text = str(source), image.info.get("genpipe")
    except (UnidentifiedImageError, Image.DecompressionBombError):
        raise ValueError(f"{source} is not a picture: give a PNG that genpipe wrote") from None
    if text is None:
        raise ValueError(f"{name} does not say what made it: give a PNG that genpipe wrote")
    try:
        made = json.loads(text)
    except (TypeError, ValueError, RecursionError):
        made = None
    if not isinstance(made, dict):
        raise ValueError(f"{name} holds a damaged genpipe text: give a PNG that genpipe wrote")
    return made


def read_request(source: str | Path | Image.Image) -> Request:
    """The request that made a picture, from a PNG that genpipe wrote. Errors as in `read_metadata`."""
    made = read_metadata(source)
    return Request.from_dict({key: value for key, value in made.items() if key not in NOT_REQUESTED})


def save_image(image: Image.Image, path: str | Path) -> None:
    """Write a picture to `path`, wholly or not at all; the suffix (.png, .jpg, .jpeg, .webp) says how.

    Raises:
        ValueError: another suffix.
        OSError: the file cannot be written.
    """
    path = Path(path)
    check_suffix(path)
    data = encode_image(image, path.suffix)
    with atomic_write(path, durable=True) as part:
        part.write_bytes(data)


def encode_image(image: Image.Image, suffix: str) -> bytes:
    """The bytes of a picture's file, in the format of a suffix in `FORMATS`; those of a PNG say what made the picture."""
    params = dict(FORMATS[suffix.lower()])
    if params["format"] == "PNG":
        params["pnginfo"] = _png_texts(image.info)
    data = io.BytesIO()
    image.save(data, **params)
    return data.getvalue()


def check_suffix(path: Path) -> None:
    """Raise ValueError unless `save_image` knows how to write a file of this name."""
    if path.suffix.lower() not in FORMATS:
        raise ValueError(f"{str(path)!r} has to end in {', '.join(FORMATS)}: .png keeps what made the picture")


def save_new(image: Image.Image, folder: str | Path, prompt: str) -> Path:
    """Write a PNG named after its prompt and never over another file: pirate-ship.png, pirate-ship-2.png, ….

    Returns:
        The path that was free.

    Raises:
        OSError: the file cannot be written.
    """
    stem, number = file_stem(prompt), 1
    while True:
        path = Path(folder) / (f"{stem}.png" if number == 1 else f"{stem}-{number}.png")
        try:
            # Takes the name, so that another process cannot choose it too.
            path.open("xb").close()
        except FileExistsError:
            number += 1
            continue
        try:
            save_image(image, path)
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        return path


def file_stem(prompt: str) -> str:
    """A file name, without suffix, for a prompt: "Pirate ship, at night!" gives "pirate-ship-at-night".

    Letters and digits of every script are kept, in at most 60 characters; "picture" stands for a prompt without any.
    """
    # What the system's file names cannot hold is dropped.
    encoding = sys.getfilesystemencoding()
    text = unicodedata.normalize("NFKC", prompt).lower().encode(encoding, "ignore").decode(encoding)
    kept = ""
    for character in text:
        kind = unicodedata.category(character)
        # A mark belongs to the letter before it; alone it is what is left of an emoji.
        if kind[0] in "LN" or (kind[0] == "M" and kept[-1:] not in ("", "-")):
            kept += character
        elif kind != "Cf" and character not in "'’":
            kept += "-"
    stem = re.sub("-+", "-", kept).strip("-")
    if len(stem) > 60:
        words = stem[:61].rpartition("-")[0]
        stem = words if len(words) > 30 else stem[:60]
    # Disks count bytes, commonly to 255.
    stem = stem.encode()[:200].decode(errors="ignore").strip("-")
    return f"picture-{stem}" if _RESERVED.fullmatch(stem) else stem or "picture"


def _png_texts(info: Mapping[Any, Any]) -> PngInfo | None:
    texts = PngInfo()
    for key in ("parameters", "genpipe"):
        if key in info:
            # iTXt is the kind that holds Unicode. A model's path may hold bytes that are no text.
            texts.add_itxt(key, str(info[key]).encode("utf-8", "replace"))
    return texts if texts.chunks else None


def _a1111_sampler(name: str | None) -> str | None:
    if name is None:
        return None
    solver, spacing = split_name(name)
    return " ".join([_A1111_SOLVERS.get(solver, solver), *([spacing.capitalize()] if spacing else [])])


def _quoted(value: str) -> str:
    return json.dumps(value, ensure_ascii=False) if re.search(r'[,:"\n]', value) else value

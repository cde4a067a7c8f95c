"""A person's own folder of captioned images, checked and read once, before any training.

Captions stand in `metadata.jsonl`, in the form of Hugging Face's ImageFolder (one JSON object per line, with `file_name`
and `text`), or in a `.txt` file of the same name beside each image.
"""

import json
import os
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from genpipe.images import image_errors, open_image
from genpipe.messages import VALUE, listed, quoted
from genpipe.progress import Progress
from genpipe.training.diffusion import Wording
from genpipe.vision.reading import SUFFIXES, as_seen, why_unusable

METADATA = "metadata.jsonl"
CAPTION_KEYS = ("text", "caption", "prompt")
# An image is enlarged at most so many times: beyond that it would teach nothing but blur.
ENLARGED = 4


class _Unusable(Exception):
    """Why an image is skipped, in a few words."""


@dataclass
class Report:
    """What became of a folder's images: how many are used, and the names of those skipped or converted, by reason.

    `str()` of it is for people: a line of counts, then a line for each reason, with the first ten names.
    """

    used: int = 0
    skipped: dict[str, list[str]] = field(default_factory=dict)
    converted: dict[str, list[str]] = field(default_factory=dict)

    def skip(self, name: str, reason: str) -> None:
        """Note that an image is not used."""
        self.skipped.setdefault(reason, []).append(_printable(name))

    def convert(self, name: str, reason: str) -> None:
        """Note that an image is not used quite as it is."""
        self.converted.setdefault(reason, []).append(_printable(name))

    def __str__(self) -> str:
        counts = [f"{self.used} image" + "s" * (self.used != 1)]
        details = []
        for title, reasons in (("skipped", self.skipped), ("converted", self.converted)):
            if names := {name for names in reasons.values() for name in names}:
                counts.append(f"{len(names)} {title}")
            details += [f"  {title}, {reason}: {listed(names)}" for reason, names in reasons.items()]
        return "\n".join([", ".join(counts), *details])


class Folder:
    """The usable images of a folder as an endless supply for training, see `text_to_image.CaptionedImages`.

    They are held in memory, as bytes: what happens to the files later cannot stop a training.

    Args:
        pixels: (N, 3, size, size) uint8.
        captions: one per image.
        report: what was skipped and converted.
    """

    def __init__(self, pixels: Tensor, captions: Sequence[str], report: Report) -> None:
        self.captions, self.report, self._pixels = list(captions), report, pixels
        self.size, self.period = pixels.shape[-1], len(pixels)
        self._order = list(range(len(pixels)))
        random.Random(0).shuffle(self._order)

    def draw(self, rng: random.Random, count: int) -> Tensor:
        """Return `count` images at random: (count, 3, size, size) in [-1, 1]."""
        return self._floats([rng.randrange(self.period) for _ in range(count)])

    def pixels(self, start: int, stop: int) -> Tensor:
        """Return images start … stop - 1 of a shuffled order that repeats after `period`."""
        return self._floats([self._order[index % self.period] for index in range(start, stop)])

    def wording(self, index: int) -> Wording:
        """Return what words the caption of an image of that order: always the same."""
        return partial(_said, self.captions[self._order[index % self.period]])

    def _floats(self, chosen: list[int]) -> Tensor:
        return self._pixels[chosen].float() / 127.5 - 1


def read_folder(directory: str | Path, size: int) -> Folder:
    """Check and read every image of a folder and of the folders in it, in one pass.

    Images come out upright (EXIF), on white where they are transparent, in 8 bits RGB, of an animation the first frame,
    cropped to the central square and resampled. Memory: 3 · size² bytes per image, 49 KB at 128. Skipped, and named in
    the report, are images that are damaged, over Pillow's limit of pixels (decompression bombs), less than a quarter of
    `size` on a side, without a caption, or of the same name as one before; and rows of `metadata.jsonl` that are not JSON
    objects or name a file outside the folder. Symbolic links are followed.

    Args:
        directory: where `metadata.jsonl` is looked for; without one, captions are `.txt` files.
        size: side of the images, in pixels.

    Raises:
        ValueError: not a folder, one without images, or none of them can be used.
        OSError: the folder cannot be read.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise ValueError(f"{directory} is not a folder: give one that holds images and their captions")
    report = Report()
    found = {path.relative_to(directory).as_posix(): path for path in _image_files(directory)}
    has_metadata = (directory / METADATA).is_file()
    rows = list((_listed if has_metadata else _with_texts)(directory, found, report))
    if not rows and not report.skipped:
        raise ValueError(f"{directory} holds no images: put {', '.join(sorted(SUFFIXES))} files into it")
    pixels = torch.empty(len(rows), 3, size, size, dtype=torch.uint8)
    captions: list[str] = []
    with Progress(len(rows), unit="image", label="reading") as progress:
        for name, path, caption in rows:
            try:
                image = _read(path, size, partial(report.convert, name))
            except _Unusable as reason:
                report.skip(name, str(reason))
            else:
                pixels[len(captions)] = torch.from_numpy(np.array(image)).permute(2, 0, 1)
                captions.append(caption)
            progress.update()
    report.used = len(captions)
    if not captions:
        why = "; ".join(
            f"{reason}: {names[0]}" + f" and {len(names) - 1} more" * (len(names) > 1)
            for reason, names in report.skipped.items()
        )
        fix = f"give each a caption, in {METADATA} or in a .txt beside it"
        raise ValueError(f"none of the images in {directory} can be used ({why}): {fix}")
    return Folder(pixels[: len(captions)], captions, report)


def _image_files(directory: Path) -> Iterator[Path]:
    for path in sorted(directory.rglob("*")):
        hidden = any(part.startswith(".") for part in path.relative_to(directory).parts)
        if path.suffix.lower() in SUFFIXES and not hidden and path.is_file():
            yield path


def _listed(directory: Path, found: dict[str, Path], report: Report) -> Iterator[tuple[str, Path, str]]:
    """Name, path and caption of the images that `metadata.jsonl` lists, each once."""
    seen: set[str] = set()
    for number, line in enumerate((directory / METADATA).read_bytes().splitlines(), start=1):
        if not line.strip():
            continue
        name = f"{METADATA} line {number}"
        try:
            row = json.loads(line.decode("utf-8-sig"))
            if not isinstance(row, dict):
                raise _Unusable("not a JSON object")
            if not isinstance(row.get("file_name"), str) or not row["file_name"]:
                raise _Unusable("no file_name")
            name = row["file_name"]
            path = Path(os.path.normpath(name))
            if path.anchor or path.parts[:1] == (os.pardir,):
                raise _Unusable("outside the folder")
            if path.as_posix() in seen:
                raise _Unusable("duplicate name")
            seen.add(path.as_posix())
            caption = _checked(next((row[key] for key in CAPTION_KEYS if row.get(key) is not None), None))
        except _Unusable as reason:
            report.skip(name, str(reason))
        except (ValueError, RecursionError):
            report.skip(name, "not a JSON object")
        else:
            yield name, directory / path, caption
    for name in found:
        if name not in seen:
            report.skip(name, f"not in {METADATA}")


def _with_texts(directory: Path, found: dict[str, Path], report: Report) -> Iterator[tuple[str, Path, str]]:
    """Name, path and caption of the images that have a `.txt` beside them; of one name with two suffixes, the first."""
    seen: set[Path] = set()
    for name, path in found.items():
        text = path.with_suffix(".txt")
        try:
            if text in seen:
                raise _Unusable("duplicate name")
            seen.add(text)
            yield name, path, _checked(text.read_text(encoding="utf-8-sig") if text.is_file() else None)
        except _Unusable as reason:
            report.skip(name, str(reason))
        except UnicodeDecodeError:
            report.skip(name, "caption is not UTF-8 text")
        except OSError as error:
            report.skip(name, f"caption cannot be read ({error.strerror})")


def _checked(caption: object) -> str:
    """A caption in one line, or why it is none."""
    if caption is None:
        raise _Unusable("no caption")
    if not isinstance(caption, str):
        raise _Unusable("caption is not text")
    try:
        caption.encode()
    except UnicodeEncodeError:  # JSON can write half a surrogate pair, which no tokenizer takes
        raise _Unusable("caption is not UTF-8 text") from None
    caption = " ".join(caption.split())
    if not caption:
        raise _Unusable("empty caption")
    return caption


def _read(path: Path, size: int, note: Callable[[str], None]) -> Image.Image:
    """Read an image as a square of `size` pixels; `note` is told of what had to be converted."""
    try:
        if not path.is_file():
            raise _Unusable("no such file")
        with open_image(path) as image:
            if min(image.size) * ENLARGED < size:
                raise _Unusable(f"less than {-(-size // ENLARGED)} pixels on a side")
            notes = [] if min(image.size) >= size else ["enlarged"]
            if image.format != "MPO" and getattr(image, "is_animated", False):  # phones put previews into MPO files
                notes.append("first frame of an animation")
            if image.mode == "CMYK":
                notes.append("from CMYK")
            if image.mode.startswith("I") or any(";16" in str(tile) for tile in getattr(image, "tile", ())):
                notes.append("from 16 bits")
            with image_errors(str(path)):
                image.draft(None, (2 * size, 2 * size))  # JPEG at a fraction of its size, for a fraction of the time
                image.load()
                if image.has_transparency_data and image.convert("RGBA").getchannel("A").getextrema() != (255, 255):
                    notes.append("transparent, laid on white")
            square = ImageOps.fit(as_seen(image, str(path)), (size, size), Image.Resampling.LANCZOS)
    except ValueError as error:
        raise _Unusable(why_unusable(error, str(path))) from None
    except OSError as error:
        raise _Unusable(f"cannot be read ({error.strerror})") from None
    for each in notes:
        note(each)
    return square


def _said(caption: str, rng: random.Random) -> str:
    return caption


def _printable(name: str) -> str:
    return name if name.isprintable() and len(name) <= VALUE else quoted(name)

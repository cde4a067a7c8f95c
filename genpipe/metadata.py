"""What an image's file says of itself: written into its texts, and read from them.

PNGs carry what made them twice: as A1111's text under "parameters", for people and the tools that read it, and as JSON
under "genpipe", from which `read_request` gives the `Request` back. JPEG and WebP files are written as plain images; of
those that other programs wrote A1111's text is read, from where they keep it.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from PIL import ExifTags, Image

import genpipe
from genpipe.dialects.a1111 import parameters_text, parse_parameters
from genpipe.fields import settings_of
from genpipe.images import image_errors, open_image
from genpipe.messages import quoted
from genpipe.request import Request
from genpipe.spec import ModelSpec

# What an image says of itself besides its request: the fields of `ModelSpec`, and these.
BESIDES = ("version", "best_of")


def annotate(
    image: Image.Image,
    request: Request,
    made_by: Mapping[str, Any],
    *,
    sampler: str | None = None,
    prompts: tuple[str, str] | None = None,
) -> None:
    """Write into `image.info` what made the image.

    Args:
        image: written to.
        request: what was asked for.
        made_by: of the model: its path, hub id or "embedded" under "model", and the other fields of `ModelSpec` that
            images depend on.
        sampler: the sampler that ran, where the request leaves it to the checkpoint.
        prompts: prompt and negative prompt with the alternatives that were chosen, for A1111, which knows no others.
    """
    made = {**request.to_dict(), **made_by, "version": genpipe.__version__}
    image.info["genpipe"] = json.dumps(made, ensure_ascii=False)
    named = request if request.sampler else replace(request, sampler=sampler)
    if prompts is not None:
        named = replace(named, prompt=prompts[0], negative_prompt=prompts[1])
    image.info["parameters"] = parameters_text(named, made_by["model"])


def annotate_choice(image: Image.Image, scores: Sequence[Mapping[str, Any]]) -> None:
    """Add to what `annotate` wrote, under "best_of", the scores of all the images that this one was chosen from."""
    image.info["genpipe"] = json.dumps(
        {**json.loads(image.info["genpipe"]), "best_of": list(scores)}, ensure_ascii=False
    )


class Made(NamedTuple):
    """What a file says of how to draw its image again.

    Attributes:
        request: settings of `Request`, by name: all of them where genpipe wrote the file.
        model: options of `ModelSpec`, by name; none where another program wrote it.
        unread: what else the file says that genpipe cannot take, by that program's names.
    """

    request: dict[str, Any]
    model: dict[str, Any]
    unread: dict[str, str]


def read_made(source: str | Path | Image.Image) -> Made:
    """Read how to draw an image again, from a PNG that genpipe wrote, or from a file with A1111's text.

    Raises:
        ValueError: not an image; one that does not say what made it, or whose text is damaged.
        OSError: the file cannot be read.
    """
    with _opened(source) as (name, image):
        if "genpipe" not in image.info:
            text = _a1111_text(image)
            if text is None:
                raise ValueError(
                    f"{name} does not say what made it: give a PNG that genpipe wrote, or one of A1111's files"
                )
            settings, model, unread = parse_parameters(text)
            # A name says nothing of where the checkpoint lies.
            return Made(settings, {}, {**({"Model": model} if model else {}), **unread})
        request, spec = split_metadata(read_metadata(image))
    return Made(request.to_dict(), spec.to_dict(), {})


def read_metadata(source: str | Path | Image.Image) -> dict[str, Any]:
    """Read what an image of genpipe's says of itself: the fields of `Request` and `ModelSpec`, and `BESIDES`.

    Raises:
        ValueError: not an image, or one without a readable `genpipe` text (it was not made by genpipe, or has been
            saved again by a program that drops such texts).
        OSError: the file cannot be read.
    """
    with _opened(source) as (name, image):
        text = image.info.get("genpipe")
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
    """Read the request that made an image, from a PNG that genpipe wrote. Errors as in `read_metadata`."""
    return split_metadata(read_metadata(source))[0]


def split_metadata(made: Mapping[str, Any]) -> tuple[Request, ModelSpec]:
    """Give what `read_metadata` read as the request and the model that made the image.

    Raises:
        ValueError: a key is unknown, or a value is out of its range.
    """
    of_model = settings_of(ModelSpec)
    request = {key: value for key, value in made.items() if key not in of_model and key not in BESIDES}
    request.setdefault("prompt_syntax", "plain")  # a file that does not say is older than the others
    return Request.from_dict(request), ModelSpec.from_dict({key: made[key] for key in of_model if key in made})


@contextmanager
def _opened(source: str | Path | Image.Image) -> Iterator[tuple[str, Image.Image]]:
    """A name for messages and the image, which is closed if it had to be opened."""
    if isinstance(source, Image.Image):
        yield "this image", source
        return
    if not isinstance(source, str | Path):
        raise ValueError(f"{quoted(source)} is not an image: give a PIL image, or the path of a file")
    with open_image(source) as image:
        yield str(source), image


def _a1111_text(image: Image.Image) -> str | None:
    """The text of a PNG under "parameters"; of JPEG and WebP the comment of their EXIF data."""
    text = image.info.get("parameters")
    if isinstance(text, str):
        return text
    comment = None
    with image_errors("this image"), suppress(Exception):  # of damaged EXIF data nothing is read
        comment = image.getexif().get_ifd(ExifTags.IFD.Exif).get(ExifTags.Base.UserComment)
    if not isinstance(comment, bytes):
        return None
    kind, data, encoding = comment[:8], comment[8:], "utf-8"
    if kind == b"UNICODE\0":
        # UTF-16, of which the standard does not say which half comes first: in most texts zeros tell.
        encoding = "utf-16-le" if data[1::2].count(0) > data[::2].count(0) else "utf-16-be"
    text = data.decode(encoding, "replace")
    return text if "Steps:" in text else None  # cameras write comments too

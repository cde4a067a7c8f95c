"""What an image's file says of itself: written into its texts, and read from them.

PNGs carry what made them twice: as A1111's text under "parameters", for people and the tools that read it, and as JSON
under "genpipe", from which `read_request` gives the `Request` back. JPEG and WebP files are plain images.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError

import genpipe
from genpipe.dialects.a1111 import parameters_text
from genpipe.fields import settings_of
from genpipe.request import Request
from genpipe.spec import ModelSpec

# What an image says of itself besides its request: the fields of `ModelSpec`, and these.
BESIDES = ("version", "best_of")


def annotate(image: Image.Image, request: Request, made_by: Mapping[str, Any], *, sampler: str | None = None) -> None:
    """Write into `image.info` what made the image.

    Args:
        image: written to.
        request: what was asked for.
        made_by: of the model: its path, hub id or "embedded" under "model", and the other fields of `ModelSpec` that
            images depend on.
        sampler: the sampler that ran, where the request leaves it to the checkpoint.
    """
    made = {**request.to_dict(), **made_by, "version": genpipe.__version__}
    image.info["genpipe"] = json.dumps(made, ensure_ascii=False)
    named = request if request.sampler else replace(request, sampler=sampler)
    image.info["parameters"] = parameters_text(named, made_by["model"])


def annotate_choice(image: Image.Image, scores: Sequence[Mapping[str, Any]]) -> None:
    """Add to what `annotate` wrote, under "best_of", the scores of all the images that this one was chosen from."""
    image.info["genpipe"] = json.dumps(
        {**json.loads(image.info["genpipe"]), "best_of": list(scores)}, ensure_ascii=False
    )


def read_metadata(source: str | Path | Image.Image) -> dict[str, Any]:
    """Read what an image says of itself: the fields of `Request` and `ModelSpec`, and `BESIDES`.

    Raises:
        ValueError: not an image, or one without a readable `genpipe` text (it was not made by genpipe, or has been
            saved again by a program that drops such texts).
        OSError: the file cannot be read.
    """
    try:
        if isinstance(source, Image.Image):
            name, text = "this image", source.info.get("genpipe")
        else:
            with Image.open(source) as image:
                name, text = str(source), image.info.get("genpipe")
    except (UnidentifiedImageError, Image.DecompressionBombError):
        raise ValueError(f"{source} is not an image: give a PNG that genpipe wrote") from None
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
    return Request.from_dict(request), ModelSpec.from_dict({key: made[key] for key in of_model if key in made})

"""What a picture's file says of itself: written into its texts, and read from them.

PNGs carry what made them twice: as A1111's text under "parameters", for people and the tools that read it, and as JSON
under "genpipe", from which `read_request` gives the `Request` back. JPEG and WebP files are plain pictures.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError

import genpipe
from genpipe.dialects.a1111 import parameters_text
from genpipe.request import Request

# What a picture says of itself besides its request.
NOT_REQUESTED = ("model", "version", "dtype", "int8", "best_of")


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

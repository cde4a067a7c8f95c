"""From what a body says to the requests that are drawn. No path and no address in it ever reaches the disk or the network."""

import base64
import binascii
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from PIL import Image

from genpipe.fields import Choice, Flag, Number, Pair, Sides, Text, Whole, settings_of
from genpipe.fit import ignored
from genpipe.images import open_image, upright
from genpipe.imprint import MADE, texts_in
from genpipe.inputs import ControlList, ImageInput, LoraList
from genpipe.lora_tags import named_in
from genpipe.messages import Notice, listed, quoted
from genpipe.metadata import Made, read_made
from genpipe.prompts.reading import read_prompts
from genpipe.request import Request
from genpipe.seeds import random_seed, seeds_for, varied
from genpipe.server.limits import Limits
from genpipe.workers.messages import Model
from genpipe.workers.settings import complete

# What a body says beside the fields of `Request`.
MODEL, FORMAT, PRIORITY, SECONDS = "model", "format", "priority", "seconds"
OWN = {
    MODEL: Text(),
    "n": Whole(1, 100_000, "it is the number of images"),
    FORMAT: Choice(("png", "jpg", "webp"), {"jpeg": "jpg"}),
    PRIORITY: Choice(("normal", "low")),
    SECONDS: Number(86400.0, "its images are of no more use after them", low=0.001),
}
_KINDS = {name: described.kind for name, described in settings_of(Request).items()}
# Files that a request would name by a path: they come as data, or not at all.
_CARRIED = {name for name, kind in _KINDS.items() if isinstance(kind, ImageInput | ControlList | LoraList)}


@dataclass(frozen=True)
class Asked:
    """What a body asks for.

    Attributes:
        requests: one per image, in the order of their seeds.
        model: the name of the model.
        suffix: of the files.
        low: whether they give way to others' images.
        seconds: after which they are of no more use.
        warnings: what has no effect, or is not read.
    """

    requests: list[Request]
    model: str
    suffix: str
    low: bool
    seconds: float
    warnings: tuple[Notice, ...]


def read_asked(
    values: Mapping[str, Any], models: Mapping[str, Model], limits: Limits, *, lora_dir: str | None = None
) -> Asked:
    """Read what a body asks for.

    Args:
        values: what it says: fields of `Request` and `OWN`. Numbers may be texts; images are base64, bytes or PIL images.
        models: those of this server, the default one first.
        limits: what it may ask for.
        lora_dir: where LoRAs are that prompts name.

    Raises:
        ValueError: a key is unknown, or a value is not one that this server draws.
    """
    known = [*_KINDS.keys() - {"loras"}, *OWN]
    if unknown := [str(key) for key in values if key not in known]:
        hint = (
            ": name LoRAs in the prompt, as <lora:name:0.8>"
            if "loras" in unknown
            else f": its keys are {listed(sorted(known), 50, 500)}"
        )
        raise ValueError(f"a request has no {listed(unknown, 5, 60)}{hint}")
    given = {name: _read(name, value, limits) for name, value in values.items() if value is not None}
    own = {name: given.pop(name) for name in OWN if name in given}
    name = own.get(MODEL) or next(iter(models))
    if name not in models:
        raise ValueError(f"there is no model {quoted(name)} here: there is {listed(models)}")
    if "prompt" not in given:
        raise ValueError("the request has no prompt: say what to draw")
    given["prompt"], loras = _with_loras(given["prompt"], lora_dir)
    count = own.get("n", 1)
    if count > limits.images:
        raise ValueError(f"n may be up to {limits.images} on this server, not {count}: ask again for more")
    if own.get(SECONDS, 0) > limits.seconds:
        raise ValueError(f"seconds may be up to {limits.seconds:g} on this server, not {own[SECONDS]:g}")
    seed = given.pop("seed", None)
    first = complete({**given, "loras": loras}, models[name])
    limits.check(first)
    # What cannot be read is refused at once, and not only by the worker.
    read_prompts(first.prompt, first.negative_prompt, seed=first.seed, steps=first.steps, syntax=first.prompt_syntax)
    seeds = seeds_for(random_seed() if seed is None else seed, count)
    requests = varied(replace(first, seed=seeds[0] if first.vary else each) for each in seeds)
    return Asked(
        requests,
        name,
        f".{own.get(FORMAT, 'png')}",
        own.get(PRIORITY) == "low",
        own.get(SECONDS, limits.seconds),
        tuple(ignored([first], models[name].traits)),
    )


def _read(name: str, value: Any, limits: Limits) -> Any:
    if name in _CARRIED:
        return _carried(name, value, limits)
    kind = OWN.get(name) or _KINDS[name]
    if isinstance(value, str) and isinstance(kind, Whole | Number | Pair | Sides | Flag):
        value = kind.read(name, value)  # of a form, or a seed that JavaScript would round
    return kind.check(name, value)


def _carried(name: str, value: Any, limits: Limits) -> Any:
    def pixels(value: Any) -> Image.Image:
        image = read_image(name, value, limits)
        image.info = {}  # what its file says travels no further
        return image

    if isinstance(_KINDS[name], ImageInput):
        return _KINDS[name].check(name, pixels(value))
    made = []
    for control in value if isinstance(value, list) else [value]:
        said = dict(control) if isinstance(control, Mapping) else {"image": control}
        made.append({**said, "image": pixels(said.get("image"))})
    return _KINDS[name].check(name, made)


def read_image(name: str, value: Any, limits: Limits) -> Image.Image:
    """Read an image from base64, with or without "data:image/png;base64," before it, or from the bytes of a file.

    Its `info` has the texts of the file.

    Raises:
        ValueError: it is not an image of a known format, or has too many pixels.
    """
    if isinstance(value, str):
        _, comma, data = value.partition(";base64,")
        try:
            value = base64.b64decode(data if comma else value, validate=True)
        except (binascii.Error, ValueError):
            raise ValueError(f"{name} must be an image's file in base64, not {quoted(value)}") from None
    if isinstance(value, bytes):
        with open_image(io.BytesIO(value)) as image:
            if image.width * image.height > limits.given_pixels:
                raise ValueError(
                    f"{name} is {image.width}x{image.height}, and this server takes {limits.given_pixels} pixels: make it smaller"
                )
            made = upright(image, name)
            made.info = {**texts_in(image)}
            return made
    if isinstance(value, Image.Image):
        return value
    raise ValueError(f"{name} must be an image's file in base64, not {quoted(value)}")


def settings_in(image: Image.Image) -> Made:
    """Give what an image's file says it was made with, but for the files that it names, which are not looked at.

    Raises:
        ValueError: it says nothing of it.
    """
    texts = image.info
    made = Made(_ours(texts[MADE]), {}, {}) if MADE in texts else read_made(image)
    found = {name: made.request[name] for name in _KINDS if name not in _CARRIED and made.request.get(name) is not None}
    checked = {name: _KINDS[name].check(name, value) for name, value in found.items()}
    files = {name: "a file" for name in _CARRIED if made.request.get(name)}
    return made._replace(request=checked, unread={**made.unread, **files})


def _ours(text: str) -> dict[str, Any]:
    try:
        made = json.loads(text)
    except (ValueError, RecursionError):
        made = None
    if not isinstance(made, dict):
        raise ValueError("the image's file holds a damaged genpipe text: draw it anew")
    made.setdefault("prompt_syntax", "plain")  # a file that does not say is older than the others
    return made


def _with_loras(prompt: str, folder: str | None) -> tuple[str, tuple[Any, ...]]:
    try:
        return named_in(prompt, folder)
    except ValueError as error:
        if folder is None:
            raise ValueError("the prompt names a LoRA, and this server has none: leave <lora:…> out") from None
        raise ValueError(str(error).replace(folder, "this server's folder")) from None

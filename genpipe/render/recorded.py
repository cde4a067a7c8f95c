"""Requests as a journal holds them."""

import math
import re
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from genpipe.fields import settings_of
from genpipe.inputs import Control, ControlList, ImageInput, InputImage, Lora, LoraList
from genpipe.request import Request

_INPUTS = [
    name for name, one in settings_of(Request).items() if isinstance(one.kind, ImageInput | LoraList | ControlList)
]
_SHA256 = re.compile(r"[0-9a-f]{64}")


def recorded_request(settings: Mapping[str, Any], prompt: str = "", seed: int = 0) -> Request:
    """Make the request of settings that `Request.to_dict` gave.

    The files of its images and LoRAs are not looked at: they may have changed or gone since, which matters only to who
    draws them again.

    Raises:
        ValueError: a setting is not what `to_dict` gives.
    """
    values = dict(settings)
    for name, described in settings_of(Request).items():
        value = values.get(name)
        if isinstance(described.kind, ImageInput) and value is not None:
            values[name] = _image(name, value)
        elif isinstance(described.kind, LoraList) and value:
            values[name] = tuple(_lora(name, one) for one in value) if isinstance(value, list) else value
        elif isinstance(described.kind, ControlList) and value:
            values[name] = tuple(_control(name, one) for one in value) if isinstance(value, list) else value
    return Request.from_dict({**values, "prompt": prompt, "seed": seed})


def inputs_are_as_recorded(settings: Mapping[str, Any]) -> bool:
    """Tell whether the files of recorded images and LoRAs are there and hold what they held."""
    given = {name: value for name in _INPUTS if (value := settings.get(name))}
    try:
        for name, value in given.items():
            settings_of(Request)[name].kind.check(name, value)
    except ValueError:
        return False
    return True


def _image(name: str, value: Any) -> InputImage:
    known = _known(value, {"path", "sha256"}) and isinstance(value["path"], str | None)
    if not known:
        raise ValueError(f"{name} is not the record of an image")
    return InputImage(value["sha256"], value["path"])


def _control(name: str, value: Any) -> Control:
    others = {one.name for one in fields(Control)} - {"image"}
    if not isinstance(value, dict) or not others <= value.keys():
        raise ValueError(f"{name} is not the record of an image to control with")
    image = _image(name, {key: item for key, item in value.items() if key not in others})
    return Control.of({"image": image, **{key: value[key] for key in others}})


def _lora(name: str, value: Any) -> Lora:
    own = {"text_strength"} & value.keys() if isinstance(value, dict) else set()
    known = _known(value, {"path", "sha256", "strength", *own}) and isinstance(value["path"], str)
    strengths: list[Any] = [value[key] for key in ("strength", *own)] if known else [None]
    if not all(type(one) in (int, float) and math.isfinite(one) for one in strengths):
        raise ValueError(f"{name} is not the record of a LoRA")
    return Lora(value["sha256"], value["strength"], value["path"], value.get("text_strength"))


def _known(value: Any, keys: set[str]) -> bool:
    return isinstance(value, dict) and value.keys() == keys and _SHA256.fullmatch(str(value["sha256"])) is not None

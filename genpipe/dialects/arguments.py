"""Settings as one JSON object under diffusers' or A1111's API's names: what programs on diffusers write into files."""

import json
from typing import Any

from genpipe.dialects.parameters import Parameters
from genpipe.dialects.spellings import asks_for_nothing, setting_name
from genpipe.fields import settings_of
from genpipe.request import Request
from genpipe.sizes import parse_size

_MODELS = ("model", "model_name", "model_id", "base_model", "checkpoint")
_SIZES = ("size", "resolution")
_SAMPLERS = ("scheduler", "sampler_index")
# Those that carry a file with them, which a name alone does not give.
_FILES = ("image", "mask", "loras")


def parse_arguments(text: str) -> Parameters | None:
    """Read such an object; None for a text that is none, or names no prompt."""
    try:
        said = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(said, dict) or not any(setting_name(str(key)) == "prompt" for key in said):
        return None
    found = Parameters({}, next((said[key] for key in _MODELS if isinstance(said.get(key), str)), None), {})
    for key, value in said.items():
        _take(found, key, value)
    return found


def _take(found: Parameters, key: str, value: Any) -> None:
    name = setting_name(key)
    if key in _MODELS and isinstance(value, str):
        return
    if name in _SIZES and isinstance(value, str):
        try:
            found.settings["width"], found.settings["height"] = parse_size(value)
        except ValueError:
            found.leave(key, value)
    elif name in settings_of(Request) and name not in _FILES:
        found.take(name, value, called=key)
    elif name in _SAMPLERS:
        found.take("sampler", value, called=key)
    elif value is not None and not asks_for_nothing(value):
        found.leave(key, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))

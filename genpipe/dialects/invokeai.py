"""InvokeAI: the JSON that its files carry under "invokeai_metadata", and before version 3 under "sd-metadata"."""

import json
import re
from collections.abc import Mapping
from typing import Any

from genpipe.dialects.parameters import Parameters
from genpipe.dialects.spellings import asks_for_nothing
from genpipe.sampling.names import canonical_name

# InvokeAI's names of settings, and ours.
_NAMES = {
    "positive_prompt": "prompt",
    "negative_prompt": "negative_prompt",
    "seed": "seed",
    "steps": "steps",
    "cfg_scale": "guidance_scale",
    "cfg_rescale_multiplier": "guidance_rescale",
    "width": "width",
    "height": "height",
    "clip_skip": "clip_skip",
    "strength": "strength",
}
# For SDXL's second text encoder, which is mostly told the same.
_STYLES = {"positive_style_prompt": "positive_prompt", "negative_style_prompt": "negative_prompt"}
# What says nothing of how to draw the image again.
_ASIDE = {"app_version", "generation_mode", "rand_device", "type", "postprocessing", "model_hash", "model"}
_SOLVERS = {"kdpm_2": "dpm2", "kdpm_2_a": "dpm2_a", "dpmpp_2": "dpmpp_2m", "dpmpp_2s": "dpmpp_2s_a", "dpm_2": "dpm2"}
# A sign of InvokeAI's own prompt syntax: a weight after a word or a bracket, or a call.
_COMPEL = re.compile(r"[\w)][+-]+(?=\W|$)|\)\d|\)\.(?:swap|blend|and)\(")


def parse_metadata(text: str) -> Parameters | None:
    """Read the JSON of version 3 and later; None for a text that is none."""
    said = _object(text)
    if said is None or not ("positive_prompt" in said or "seed" in said):
        return None
    model = said.get("model")
    return _parameters(said, model.get("name", model.get("model_name")) if isinstance(model, dict) else model)


def parse_old_metadata(text: str) -> Parameters | None:
    """Read the JSON of before version 3; None for a text that is none."""
    said = _object(text)
    image = None if said is None else said.get("image")
    if said is None or not isinstance(image, dict):
        return None
    prompt = image.get("prompt")
    if isinstance(prompt, list):  # one text in the place of several with weights
        parts = [part.get("prompt") for part in prompt if isinstance(part, dict)]
        prompt = parts[0] if len(parts) == 1 else None
    renamed = {"scheduler" if key == "sampler" else key: value for key, value in image.items() if key != "prompt"}
    found = _parameters({"positive_prompt": prompt, **renamed}, said.get("model_weights"))
    if prompt is None:
        found.leave("prompt", image.get("prompt"))
    if "[" in str(prompt):
        found.leave("[]", "in InvokeAI what stands in them is led away from")
    return found


def _object(text: str) -> dict[str, Any] | None:
    try:
        said = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return said if isinstance(said, dict) else None


def _parameters(said: Mapping[str, Any], model: Any) -> Parameters:
    found = Parameters({}, model if isinstance(model, str) else None, {})
    for key, value in said.items():
        if key in _STYLES and value == said.get(_STYLES[key]):
            continue
        if key in _NAMES:
            found.take(_NAMES[key], value, called=key)
        elif key == "scheduler":
            _sampler(found, value)
        elif key not in _ASIDE and value is not None and not asks_for_nothing(value):
            found.leave(key, json.dumps(value, ensure_ascii=False))
    if any(_COMPEL.search(str(found.settings.get(name, ""))) for name in ("prompt", "negative_prompt")):
        found.leave("weights", "InvokeAI's signs, word+ and (words)1.2, are text here")
    return found


def _sampler(found: Parameters, value: Any) -> None:
    name = str(value).removeprefix("k_")
    name, karras = name.removesuffix("_k"), name.endswith("_k")
    name = _SOLVERS.get(name, name)
    try:
        found.settings["sampler"] = canonical_name(f"{name}_karras" if karras else name)
    except ValueError:
        found.leave("scheduler", value)

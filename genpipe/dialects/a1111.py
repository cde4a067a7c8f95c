"""A1111's web UI: the text that its files carry under "parameters", written and read."""

import json
import re
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import genpipe
from genpipe.dialects.parameters import Parameters, setting_value
from genpipe.messages import quoted
from genpipe.request import UPSCALE_STRENGTH, Request
from genpipe.sampling.names import SOLVERS, SPACINGS, canonical_name, split_name

_NEGATIVE = "Negative prompt:"
# A1111's names of settings, and ours; those of two values or of other numbers are read one by one.
_NAMES = {
    "Steps": "steps",
    "CFG scale": "guidance_scale",
    "Guidance rescale": "guidance_rescale",
    "Seed": "seed",
    "Tiling": "tile",
    "Variation seed": "vary_seed",
    "Variation seed strength": "vary",
    "Hires upscale": "upscale",
    "Hires strength": "upscale_strength",
    "Hires CFG Scale": "upscale_guidance_scale",
}
# What is enlarged, and an upscaler of A1111's that does.
UPSCALERS = {"pixels": "Lanczos", "latents": "Latent"}
# What says nothing of how to draw the image again.
_ASIDE = {"Version", "Model hash"}
# The spacing that A1111 takes for "Automatic".
_AUTOMATIC = {
    **dict.fromkeys(("dpmpp_2m", "dpmpp_sde", "dpmpp_2s_a", "dpm2", "dpm2_a"), "karras"),
    **dict.fromkeys(("dpmpp_2m_sde", "dpmpp_2m_sde_heun", "dpmpp_3m_sde"), "exponential"),
}
_JSON = json.JSONDecoder()
_BEGIN, _END = re.compile(r'\s*(["{\[])'), re.compile(r"\s*(,|$)")
# What would not be read as it stands.
_AWKWARD = re.compile(r'[,:"\0\r\n\[\]{}]|^\s|\s$')
_KEY = re.compile(r"\w[\w /-]{0,63}")


def parameters_text(
    request: Request, model: str, *, sampler: str | None = None, prompts: tuple[str, str] | None = None
) -> str:
    """Write what made an image in the form that A1111's web UI writes and reads.

    The prompt keeps its line breaks; its NULs, which would end the text for many readers, become U+FFFD.

    Args:
        model: its name.
        sampler: the one that ran, where the request leaves it to the checkpoint.
        prompts: prompt and negative prompt that were drawn, where they are not quite the request's.
    """
    prompt, negative = (request.prompt, request.negative_prompt) if prompts is None else prompts
    sampler = request.sampler or sampler
    if request.prompt_syntax == "plain":  # A1111 reads every bracket that has no backslash
        prompt, negative = (re.sub(r"[()\[\]\\]", r"\\\g<0>", text) for text in (prompt, negative))
    strength = request.strength if request.image is not None else None
    if request.upscale > 1:  # A1111 has one for both
        strength = UPSCALE_STRENGTH if request.upscale_strength is None else request.upscale_strength
    lines = [prompt]
    if negative:
        lines.append(f"{_NEGATIVE} {negative}")
    settings: dict[str, Any] = {
        "Steps": request.steps,
        "Sampler": None if sampler is None else sampler_label(sampler),
        "CFG scale": f"{request.guidance_scale:.12g}",
        "Guidance rescale": f"{request.guidance_rescale:.12g}" if request.guidance_rescale else None,
        "Seed": request.seed,
        "Size": f"{request.width}x{request.height}",
        # A1111 counts the layer that is read, so its 1 skips none.
        "Clip skip": request.clip_skip + 1 if request.clip_skip else None,
        "Denoising strength": f"{strength:.12g}" if strength is not None else None,
        "Variation seed": request.variation[0] if request.variation else None,
        "Variation seed strength": f"{request.vary:.12g}" if request.vary else None,
        "Tiling": True if request.tile else None,
        "Hires upscale": f"{request.upscale:.12g}" if request.upscale > 1 else None,
        "Hires CFG Scale": None
        if request.upscale == 1 or request.upscale_guidance_scale is None
        else f"{request.upscale_guidance_scale:.12g}",
        "Hires upscaler": UPSCALERS[request.upscale_by] if request.upscale > 1 else None,
        "Model": model,
        "Version": f"genpipe {genpipe.__version__}",
    }
    lines.append(", ".join(f"{key}: {_written(str(value))}" for key, value in settings.items() if value is not None))
    text = "\n".join(lines).replace("\r\n", "\n").replace("\r", "\n")
    return text.replace("\0", "\N{REPLACEMENT CHARACTER}")


def parse_parameters(text: str) -> Parameters:
    """Read what made an image from the text that A1111's web UI writes: the inverse of `parameters_text`.

    The settings stand in the last line that begins with "Steps:", or in the last line if it is a list of three settings or
    more; a text without such a line is a prompt alone. Nothing is refused: what cannot be taken is in `unread`.
    """
    lines = text.replace("\r\n", "\n").replace("\r", "\n").rstrip("\n").split("\n")
    at = next((index for index in range(len(lines) - 1, -1, -1) if lines[index].lstrip().startswith("Steps:")), None)
    if at is None and len([key for key, value in _pairs(lines[-1]) if value and _KEY.fullmatch(key)]) >= 3:
        at = len(lines) - 1
    end = len(lines) if at is None else at
    split = next((index for index in range(end) if lines[index].lstrip().startswith(_NEGATIVE)), end)
    settings: dict[str, Any] = {"prompt": "\n".join(lines[:split])}
    if split < end:
        first = lines[split].lstrip().removeprefix(_NEGATIVE).removeprefix(" ")
        settings["negative_prompt"] = "\n".join([first, *lines[split + 1 : end]])
    said = dict(_pairs(lines[at])) if at is not None else {}
    unread = {key.strip(): value.strip() for line in lines[end + 1 :] for key, _, value in [line.partition(":")]}
    model = said.pop("Model", None) or None
    if "Sampler" in said:
        settings |= _sampler(said, unread)
    if "Hires upscale" in said and "Denoising strength" in said:
        said["Hires strength"] = said.pop("Denoising strength")
    for key, value in said.items():
        try:
            settings |= _setting(key, value)
        except (ValueError, KeyError):
            if key not in _ASIDE:
                unread[key] = value
    return Parameters(settings, model, unread)


def sampler_label(name: str) -> str:
    """A1111's name of a sampler, by ours: "dpmpp_2m_karras" is "DPM++ 2M Karras". One that A1111 lacks keeps its name."""
    solver, spacing = split_name(name)
    label = SOLVERS[solver].a1111 if solver in SOLVERS else None
    return " ".join([label or solver, *([SPACINGS[spacing].a1111] if spacing else [])])


def _setting(key: str, value: str) -> dict[str, Any]:
    """The settings of ours that one of A1111's is; ValueError if there is none, or not with this value."""
    if key == "Size":
        width, _, height = value.partition("x")
        return {"width": setting_value("width", width), "height": setting_value("height", height)}
    if key == "Hires upscaler":
        return {"upscale_by": {name: by for by, name in UPSCALERS.items()}[value]}
    if key == "Clip skip":
        return {"clip_skip": max(0, setting_value("clip_skip", value) - 1)}
    if key not in _NAMES:
        raise ValueError(f"genpipe has no {quoted(key)}")
    return {_NAMES[key]: setting_value(_NAMES[key], value)}


def _sampler(said: dict[str, str], unread: dict[str, str]) -> dict[str, str]:
    """Take "Sampler" and "Schedule type" out of what is said; what of them has no equal goes to `unread`."""
    label, schedule = said.pop("Sampler"), said.pop("Schedule type", None)
    try:
        name = canonical_name(label)
    except ValueError:
        unread["Sampler"] = label
        if schedule is not None:
            unread["Schedule type"] = schedule
        return {}
    # Before 1.9 the schedule stood in the sampler's name, where it still has the last word.
    if schedule is None or split_name(name)[1] is not None:
        return {"sampler": name}
    if schedule == "Automatic":
        return {"sampler": f"{name}_{_AUTOMATIC[name]}" if name in _AUTOMATIC else name}
    try:
        return {"sampler": canonical_name(f"{label} {schedule}")}
    except ValueError:
        unread["Schedule type"] = schedule
        return {"sampler": name}


def _pairs(line: str) -> Iterator[tuple[str, str]]:
    """The names and values of a line of settings; a value with commas stands in quotes, or is JSON."""
    at, colon = 0, line.find(":")
    while at < len(line):
        if 0 <= colon < at:  # looked for once each, however many pieces come before it
            colon = line.find(":", at)
        comma = line.find(",", at)
        if colon < 0 or 0 <= comma < colon:  # a piece without a value
            end = len(line) if comma < 0 else comma
            key, value = line[at:end], ""
        else:
            key = line[at:colon]
            value, end = _value(line, colon + 1)
        if key.strip():
            yield key.strip(), value
        at = end + 1


def _value(line: str, start: int) -> tuple[str, int]:
    """The value that begins here, and where it ends: at a comma or at the end of the line."""
    begun = _BEGIN.match(line, start)
    if begun is not None:
        with suppress(ValueError, RecursionError):
            found, end = _JSON.raw_decode(line, begun.end(1) - 1)
            value = found if isinstance(found, str) else line[begun.start(1) : end]
            if ended := _END.match(line, end):
                return value, ended.start(1)
    end = line.find(",", start)
    end = len(line) if end < 0 else end
    return line[start:end].strip(), end


def _written(value: str) -> str:
    return json.dumps(value, ensure_ascii=False) if _AWKWARD.search(value) else value

"""A1111's web UI: the text that its files carry under "parameters", and its names of samplers."""

import json
import re
from typing import Any

import genpipe
from genpipe.request import Request
from genpipe.sampling.names import SOLVERS, SPACINGS, split_name


def parameters_text(request: Request, model: str) -> str:
    """What made an image, in the form that A1111's web UI writes and reads.

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


def _a1111_sampler(name: str | None) -> str | None:
    if name is None:
        return None
    solver, spacing = split_name(name)
    label = SOLVERS[solver].a1111 if solver in SOLVERS else None
    return " ".join([label or solver, *([SPACINGS[spacing].a1111] if spacing else [])])


def _quoted(value: str) -> str:
    return json.dumps(value, ensure_ascii=False) if re.search(r'[,:"\n]', value) else value

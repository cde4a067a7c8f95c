"""What a sampler may be called. Imports no torch, so that a command line can check a name before anything heavy loads."""

import difflib
import re

# Canonical solver name -> the diffusers class that it stands for, whose defaults and numbers it takes.
SOLVER_CLASSES = {
    "pndm": "PNDMScheduler",
    "ddim": "DDIMScheduler",
    "euler": "EulerDiscreteScheduler",
    "euler_a": "EulerAncestralDiscreteScheduler",
    "heun": "HeunDiscreteScheduler",
    "dpmpp_2m": "DPMSolverMultistepScheduler",
    "dpmpp_2m_sde": "DPMSolverMultistepScheduler",
    "lcm": "LCMScheduler",
    "flow_euler": "FlowMatchEulerDiscreteScheduler",
}
# The solvers whose noise levels can also follow Karras et al. (arXiv 2206.00364, eq. 5) or be evenly spaced in log sigma.
SPACINGS = ("karras", "exponential")
RESPACED = ("euler", "heun", "dpmpp_2m", "dpmpp_2m_sde", "flow_euler")

SAMPLERS: tuple[str, ...] = tuple(
    name
    for solver in SOLVER_CLASSES
    for name in (solver, *(f"{solver}_{spacing}" for spacing in SPACINGS if solver in RESPACED))
)

_ALIASES = {"plms": "pndm", "euler_ancestral": "euler_a", "dpmpp2m": "dpmpp_2m"}
# dpmpp_2m precedes its SDE form in the table, and the class's own default is the former.
_CLASS_NAMES = {name.lower(): solver for solver, name in reversed(SOLVER_CLASSES.items())}
_OTHER_CLASS = re.compile(r"[A-Z][A-Za-z0-9]*Scheduler")


def canonical_name(name: str) -> str:
    """The canonical name of a sampler, from any of its spellings.

    Takes, in any case, the names in `SAMPLERS`, A1111's ("Euler a", "DPM++ 2M SDE Karras", "PLMS") and the diffusers
    classes in `SOLVER_CLASSES`. The exact class name of any other diffusers scheduler is returned unchanged.

    Raises ValueError, with the nearest names, for anything else.
    """
    text = name.strip() if isinstance(name, str) else ""
    key = re.sub(r"[^a-z0-9]+", "_", text.lower().replace("++", "pp")).strip("_")
    key = _ALIASES.get(key, key)
    if key in SAMPLERS:
        return key
    if text.lower() in _CLASS_NAMES:
        return _CLASS_NAMES[text.lower()]
    if _OTHER_CLASS.fullmatch(text):
        return text
    near = difflib.get_close_matches(key, SAMPLERS, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"choose one of {', '.join(SAMPLERS)}"
    raise ValueError(f"unknown sampler {name!r:.60}: {hint}")


def split_name(canonical: str) -> tuple[str, str | None]:
    """A canonical name's solver and its spacing: "euler_karras" -> ("euler", "karras"), "ddim" -> ("ddim", None)."""
    solver, _, spacing = canonical.rpartition("_")
    return (solver, spacing) if spacing in SPACINGS else (canonical, None)

"""Names of samplers. Imports no torch, so that a command line can check a name before anything heavy loads.

A name is a solver, and after it the spacing of its noise levels if that is not the checkpoint's own: "dpmpp_2m",
"dpmpp_2m_karras".
"""

import difflib
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from genpipe.messages import quoted

_NOTHING: Mapping[str, Any] = MappingProxyType({})
_RESPACINGS = ("karras", "exponential", "beta", "trailing")


class Solver(NamedTuple):
    """One solver.

    Attributes:
        class_name: the diffusers class that it stands for. genpipe has its own solver for some; the others run in
            diffusers.
        a1111: its name in A1111's web UI, where that has it.
        insists: settings of the class that make it this solver, whatever the checkpoint's scheduler_config.json says.
        spacings: the keys of `SPACINGS` that it can follow.
    """

    class_name: str
    a1111: str | None = None
    insists: Mapping[str, Any] = _NOTHING
    spacings: tuple[str, ...] = _RESPACINGS


_MULTISTEP = "DPMSolverMultistepScheduler"
_STOCHASTIC = {"algorithm_type": "sde-dpmsolver++", "solver_order": 2, "solver_type": "midpoint"}
# Which class stands for which of A1111's names is told by diffusers' page on schedulers. Two of them come near only:
# DPM++ SDE and DPM++ 2S a draw noise in A1111, and DPMSolverSinglestepScheduler draws none.
SOLVERS: dict[str, Solver] = {
    "pndm": Solver("PNDMScheduler", "PLMS", {"skip_prk_steps": True}, ("trailing",)),
    "ddim": Solver("DDIMScheduler", "DDIM", spacings=("trailing",)),
    "euler": Solver("EulerDiscreteScheduler", "Euler"),
    "euler_a": Solver("EulerAncestralDiscreteScheduler", "Euler a", spacings=("trailing",)),
    "heun": Solver("HeunDiscreteScheduler", "Heun"),
    "dpmpp_2m": Solver(
        _MULTISTEP, "DPM++ 2M", {"algorithm_type": "dpmsolver++", "solver_order": 2, "solver_type": "midpoint"}
    ),
    "dpmpp_2m_sde": Solver(_MULTISTEP, "DPM++ 2M SDE", _STOCHASTIC),
    "dpmpp_2m_sde_heun": Solver(_MULTISTEP, "DPM++ 2M SDE Heun", {**_STOCHASTIC, "solver_type": "heun"}),
    "dpmpp_3m_sde": Solver(_MULTISTEP, "DPM++ 3M SDE", {**_STOCHASTIC, "solver_order": 3}),
    "dpmpp_2s_a": Solver("DPMSolverSinglestepScheduler", "DPM++ 2S a"),
    "dpmpp_sde": Solver("DPMSolverSinglestepScheduler", "DPM++ SDE"),
    "dpm2": Solver("KDPM2DiscreteScheduler", "DPM2"),
    "dpm2_a": Solver("KDPM2AncestralDiscreteScheduler", "DPM2 a"),
    "lms": Solver("LMSDiscreteScheduler", "LMS"),
    "unipc": Solver("UniPCMultistepScheduler", "UniPC"),
    "deis": Solver("DEISMultistepScheduler", "DEIS"),
    "ddpm": Solver("DDPMScheduler", "DDPM", spacings=("trailing",)),
    "lcm": Solver("LCMScheduler", "LCM", spacings=()),
    "tcd": Solver("TCDScheduler", "TCD", spacings=()),
    "flow_euler": Solver("FlowMatchEulerDiscreteScheduler", spacings=("karras", "exponential", "beta")),
}


class Spacing(NamedTuple):
    """One spacing of the noise levels: what A1111 calls it ("Schedule type"), and the settings that ask for it."""

    a1111: str
    settings: Mapping[str, Any]


# No spacing but the one that is asked for.
NO_RESPACING: dict[str, Any] = {f"use_{name}_sigmas": False for name in ("karras", "exponential", "beta")}
SPACINGS: dict[str, Spacing] = {
    "karras": Spacing("Karras", {**NO_RESPACING, "use_karras_sigmas": True}),  # arXiv 2206.00364, eq. 5
    "exponential": Spacing("Exponential", {**NO_RESPACING, "use_exponential_sigmas": True}),  # even in log sigma
    "beta": Spacing("Beta", {**NO_RESPACING, "use_beta_sigmas": True}),  # arXiv 2407.12173; needs scipy
    "trailing": Spacing("SGM Uniform", {**NO_RESPACING, "timestep_spacing": "trailing"}),  # arXiv 2305.08891, table 2
}

SAMPLERS: tuple[str, ...] = tuple(
    name
    for solver, row in SOLVERS.items()
    for name in (solver, *(f"{solver}_{spacing}" for spacing in SPACINGS if spacing in row.spacings))
)

# Other words for the solver of a name, and for the spacing at the end of it; "" is the spacing that needs no word.
_ALIASES = {"plms": "pndm", "euler_ancestral": "euler_a", "dpmpp2m": "dpmpp_2m"}
_SPACING_ALIASES = {
    "sgm_uniform": "trailing",
    "simple": "trailing",
    "turbo": "trailing",
    "polyexponential": "exponential",  # whose exponent is 1 unless told otherwise
    "uniform": "",
    "normal": "",
}
# Of A1111's names those that neither genpipe nor diffusers has a solver for, each with the nearest that there is.
_ABSENT = {"dpm_fast": "dpmpp_2m", "dpm_adaptive": "dpmpp_2m", "restart": "heun", "ddim_cfgpp": "ddim"}
_ABSENT_SPACINGS = {"kl_optimal": "karras", "align_your_steps": "karras"}
# Of several solvers of one class the first is what the class is by default. Two are the singlestep class itself, so that
# its name says more than theirs.
_BY_CLASS = {row.class_name.lower(): solver for solver, row in reversed(SOLVERS.items())}
del _BY_CLASS["dpmsolversinglestepscheduler"]
_OTHER_CLASS = re.compile(r"[A-Z][A-Za-z0-9]*Scheduler")


def canonical_name(name: str) -> str:
    """The canonical name of a sampler, from any of its spellings.

    Takes, in any case, the names in `SAMPLERS`, A1111's ("Euler a", "DPM++ 2M SDE Karras", "UniPC") and the diffusers
    classes in `SOLVERS`. The exact class name of any other diffusers scheduler is returned unchanged.

    Raises:
        ValueError: anything else; the line has the nearest names.
    """
    text = name.strip() if isinstance(name, str) else ""
    key = re.sub(r"[^a-z0-9]+", "_", text.lower().replace("++", "pp")).strip("_")
    key = _renamed(_respelled(key, _SPACING_ALIASES), _ALIASES)
    if key in SAMPLERS:
        return key
    if text.lower() in _BY_CLASS:
        return _BY_CLASS[text.lower()]
    if _OTHER_CLASS.fullmatch(text):
        return text
    nearest = _renamed(_respelled(key, _ABSENT_SPACINGS), _ABSENT)
    if nearest != key and nearest in SAMPLERS:
        raise ValueError(
            f"the sampler {quoted(name, 60)} is neither in genpipe nor in diffusers: the nearest is {nearest}"
        )
    near = difflib.get_close_matches(key, SAMPLERS, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"choose one of {', '.join(SOLVERS)}"
    raise ValueError(f"unknown sampler {quoted(name, 60)}: {hint}")


def split_name(canonical: str) -> tuple[str, str | None]:
    """A canonical name's solver and its spacing: "euler_karras" -> ("euler", "karras"), "ddim" -> ("ddim", None)."""
    solver, _, spacing = canonical.rpartition("_")
    return (solver, spacing) if spacing in SPACINGS else (canonical, None)


def _renamed(key: str, solvers: Mapping[str, str]) -> str:
    """The key, with its solver by another name."""
    solver, spacing = split_name(key)
    return "_".join(filter(None, (solvers.get(solver, solver), spacing)))


def _respelled(key: str, spacings: Mapping[str, str]) -> str:
    """The key, with the spacing at its end in our word for it."""
    for ending, spacing in spacings.items():
        if key.endswith(f"_{ending}"):
            solver = key.removesuffix(f"_{ending}")
            return f"{solver}_{spacing}" if spacing else solver
    return key

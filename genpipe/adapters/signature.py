"""What the `__call__` of a pipeline of diffusers takes, read from its signature, and how a request's settings go into it.

Imports no diffusers: a class is looked at, and never named.
"""

import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from genpipe.adapters.controls import END, SCALE, START
from genpipe.fields import defaults_of
from genpipe.inputs import Argument
from genpipe.messages import listed, quoted
from genpipe.request import Request

# What settings of a request are called by pipelines, the first that a pipeline has. Others have the same name in both.
_STEPS = ("num_inference_steps", "decoder_num_inference_steps")
_GUIDANCE = (
    "guidance_scale",
    "true_cfg_scale",
    "decoder_guidance_scale",
    "prior_guidance_scale",
    "distilled_guidance_scale",
)
_SAME = ("negative_prompt", "height", "width", "guidance_rescale", "clip_skip", "strength")
# What genpipe gives itself, or what is no number or text.
_OURS = {"prompt", "generator", "output_type", "return_dict", "num_images_per_prompt", "latents", *_SAME}
_OURS |= {SCALE, START, END}
_KINDS = (bool, int, float, str)


@dataclass(frozen=True)
class Signature:
    """What one class of pipelines takes.

    Attributes:
        parameters: those of its `__call__`, by name.
        steps, guidance: what it calls `Request.steps` and `Request.guidance_scale`; None where it takes none.
    """

    parameters: Mapping[str, inspect.Parameter]
    steps: str | None
    guidance: str | None

    @classmethod
    def of(cls, kind: type) -> "Signature":
        """Read the signature of a class."""
        parameters = dict(inspect.signature(kind.__call__).parameters)
        parameters.pop("self", None)
        steps = next((name for name in _STEPS if name in parameters), None)
        # One that is off by default, as Stable Cascade's second, is not the one that people turn.
        guidance = next((name for name in _GUIDANCE if _number(parameters.get(name)) > 0), None)
        return cls(parameters, steps, guidance)

    @property
    def takes(self) -> tuple[str, ...]:
        """The settings of a request that it takes, besides the seed."""
        own = {"steps": self.steps, "guidance_scale": self.guidance}
        return (
            *(name for name, there in own.items() if there),
            *(name for name in ("prompt", *_SAME) if name in self.parameters),
            "arguments",
        )

    @property
    def batches(self) -> bool:
        """Whether it takes several prompts, and a generator for each."""
        return all("list" in str(self._annotation(name)).lower() for name in ("prompt", "generator"))

    def default(self, name: str | None) -> Any:
        """The default of a parameter; None where there is none."""
        found = None if name is None else self.parameters.get(name)
        return None if found is None or found.default is inspect.Parameter.empty else found.default

    def needs(self) -> list[str]:
        """The parameters that have to be given, besides the prompt."""
        kinds = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
        return [
            name
            for name, one in self.parameters.items()
            if one.default is inspect.Parameter.empty and one.kind not in kinds and name != "prompt"
        ]

    def settable(self) -> dict[str, Any]:
        """The parameters that `Request.arguments` may give, with their defaults: numbers, texts and flags."""
        known = {self.steps, self.guidance, *_OURS}
        found = {}
        for name, one in self.parameters.items():
            if name not in known and "callback" not in name and (isinstance(one.default, _KINDS) or _is_plain(one)):
                found[name] = one.default
        return found

    def check(self, arguments: Sequence[Argument]) -> None:
        """Raise ValueError unless each argument is one that the pipeline takes."""
        settable = self.settable()
        for name, value in arguments:
            if name not in settable:
                raise ValueError(
                    f"arguments: this model takes no {quoted(name)}: it takes {listed(settable, 20, 300) or 'none'}"
                )
            default = settable[name]
            if isinstance(default, bool) != isinstance(value, bool):
                raise ValueError(f"arguments: {name} must be true or false, not {quoted(value)}")
            if _is_number(default) and not _is_number(value):
                raise ValueError(f"arguments: {name} must be a number, not {quoted(value)}: {default} is its default")
            if isinstance(default, str) and not isinstance(value, str):
                raise ValueError(f"arguments: {name} must be a text, not {quoted(value)}")

    def keywords(self, request: Request) -> dict[str, Any]:
        """What `__call__` is given of a request's settings; prompts and generators aside."""
        given: dict[str, Any] = dict(request.arguments)
        if self.steps is not None:
            given[self.steps] = request.steps
        if self.guidance is not None:
            given[self.guidance] = request.guidance_scale
        standing = defaults_of(Request)
        for name in _SAME:
            value = getattr(request, name)
            if name in self.parameters and name != "negative_prompt" and value != standing.get(name):
                given[name] = value
        return given

    def single_steps(self, given: Mapping[str, Any]) -> list[str]:
        """The numbers of steps that are 1 for these keywords, which schedulers as of unCLIP cannot share out."""
        names = [name for name in self.parameters if name.endswith("num_inference_steps")]
        return [name for name in names if given.get(name, self.default(name)) == 1]

    def step_count(self, given: Mapping[str, Any]) -> int:
        """How many steps all stages together take about, for these keywords."""
        names = [name for name in self.parameters if name.endswith("num_inference_steps")]
        counts = {name: given.get(name, self.default(name)) for name in names}
        strength = given.get("strength", self.default("strength"))
        if self.steps is not None and strength is not None and _is_number(counts[self.steps]):
            counts[self.steps] = min(int(counts[self.steps] * strength), counts[self.steps])
        return max(1, sum(int(count) for count in counts.values() if _is_number(count)))

    def _annotation(self, name: str) -> Any:
        one = self.parameters.get(name)
        return "" if one is None else one.annotation


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_plain(parameter: inspect.Parameter) -> bool:
    """Whether a parameter may be a number, a text or a flag, by its annotation."""
    if isinstance(parameter.annotation, str):
        return not {kind.__name__ for kind in _KINDS}.isdisjoint(map(str.strip, parameter.annotation.split("|")))
    return not set(_KINDS).isdisjoint(get_args(parameter.annotation) or (parameter.annotation,))


def _number(parameter: inspect.Parameter | None) -> float:
    """The default of a parameter, 0 where it is no number."""
    return float(parameter.default) if parameter is not None and _is_number(parameter.default) else 0.0

"""The pipelines that one loaded pipeline of diffusers is drawn with: of text alone, over an image, over a part of it, and with
control networks.

They share their networks, so that nothing is loaded twice.
"""

from collections.abc import Sequence
from functools import cached_property
from inspect import signature
from typing import Any

from genpipe.adapters.signature import Signature
from genpipe.adapters.skipping import Cache, cache_of
from genpipe.request import Request


class Form:
    """One of them.

    Args:
        kind: its class.
        base: the loaded pipeline, whose parts it has.
        draws: what of a request it draws: "text", "image", "mask" or "control".
        controls: the control networks of the last.
    """

    def __init__(self, kind: type, base: Any, draws: str, controls: Sequence[Any] = ()) -> None:
        self.kind, self.draws, self._base, self._controls = kind, draws, base, list(controls)
        self.signature = Signature.of(kind)
        self.cache: Cache | None = cache_of(kind, base)

    @cached_property
    def pipe(self) -> Any:
        """The pipeline, made when it is first wanted."""
        if type(self._base) is self.kind:
            return self._base
        if self.draws == "control":
            return self._with_controls()
        from diffusers.pipelines.auto_pipeline import AutoPipelineForImage2Image, AutoPipelineForInpainting

        made = {"image": AutoPipelineForImage2Image, "mask": AutoPipelineForInpainting}[self.draws].from_pipe(
            self._base
        )
        made.set_progress_bar_config(disable=True)
        return made

    def _with_controls(self) -> Any:
        """The pipeline of the loaded one's parts and of the control networks."""
        own = {**self._base.config, **self._base.components}
        given = {name: own[name] for name in signature(self.kind.__init__).parameters if name in own}
        made = self.kind(**given, controlnet=self._controls[0] if len(self._controls) == 1 else self._controls)
        made.set_progress_bar_config(disable=True)
        return made


def forms_of(pipe: Any, controls: Sequence[Any] = ()) -> dict[str, Form]:
    """The forms of a pipeline, by what they draw.

    Args:
        pipe: the loaded one.
        controls: control networks beside it.

    Raises:
        ValueError: diffusers has no pipeline of it that takes control networks.
    """
    import diffusers
    from diffusers.pipelines.auto_pipeline import (
        AUTO_IMAGE2IMAGE_PIPELINES_MAPPING,
        AUTO_INPAINT_PIPELINES_MAPPING,
        _get_task_class,
    )

    kind = type(pipe)
    own = Signature.of(kind)
    found = {} if "image" in own.needs() or "prompt" not in own.parameters else {"text": kind}
    if "image" in own.parameters:
        found["image"] = kind
    for draws, mapping in (("image", AUTO_IMAGE2IMAGE_PIPELINES_MAPPING), ("mask", AUTO_INPAINT_PIPELINES_MAPPING)):
        twin = _get_task_class(mapping, kind.__name__, throw_error_if_not_exist=False)
        if twin is not None:
            found.setdefault(draws, twin)
    if "mask" in found and (shown := _is_shown_masks(pipe)) is not None:
        found = {draws: twin for draws, twin in found.items() if (draws == "mask") == shown}
    if controls:  # of the name that diffusers gives such pipelines
        name = kind.__name__.replace("Pipeline", "ControlNetPipeline")
        if not isinstance(twin := getattr(diffusers, name, None), type):
            raise ValueError(f"control_model is not for this model: diffusers has no {name}; leave it out")
        found["control"] = twin
    return {draws: Form(each, pipe, draws, controls) for draws, each in found.items()}


def _is_shown_masks(pipe: Any) -> bool | None:
    """Whether the U-Net of one of Kandinsky's is shown a mask by further channels, and draws nothing else then; None of others."""
    unet = getattr(pipe, "unet", None)
    return unet.config.in_channels > unet.config.out_channels if hasattr(pipe, "movq") and unet is not None else None


def form_for(request: Request, forms: dict[str, Form]) -> Form:
    """Choose the form that draws a request.

    Raises:
        ValueError: there is none.
    """
    wanted = "text" if request.image is None else "mask" if request.mask is not None else "image"
    if request.control:
        if request.image is not None:
            raise ValueError("control over an image is not for models that diffusers draws: leave out image or control")
        wanted = "control"
    if wanted in forms:
        if request.speed != "exact" and forms[wanted].cache is None:
            raise ValueError(f"speed {request.speed!r} is not for this model's {wanted}: leave it out")
        return forms[wanted]
    if list(forms) == ["mask"]:
        raise ValueError("this model draws over a part of an image: give both (--image, --mask)")
    if wanted == "text":
        raise ValueError("this model draws from an image: give one (--image)")
    raise ValueError(f"{wanted} is not for this model: diffusers has no pipeline of it that takes one; leave it out")


def taken_by(forms: dict[str, Form]) -> tuple[str, ...]:
    """The settings that one form or another takes."""
    names = [name for form in forms.values() for name in form.signature.takes]
    names += [name for name in ("image", "mask", "control") if name in forms or (name == "image" and "mask" in forms)]
    names += ["speed"] if any(form.cache for form in forms.values()) else []
    return tuple(dict.fromkeys(names))

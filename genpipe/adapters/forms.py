"""The pipelines that one loaded pipeline of diffusers is drawn with: of text alone, over an image, and over a part of it.

They share their networks, so that nothing is loaded twice.
"""

from functools import cached_property
from typing import Any

from genpipe.adapters.signature import Signature
from genpipe.request import Request


class Form:
    """One of them.

    Args:
        kind: its class.
        base: the loaded pipeline, whose parts it has.
        draws: what of a request it draws: "text", "image" or "mask".
    """

    def __init__(self, kind: type, base: Any, draws: str) -> None:
        self.kind, self.draws, self._base = kind, draws, base
        self.signature = Signature.of(kind)

    @cached_property
    def pipe(self) -> Any:
        """The pipeline, made when it is first wanted."""
        if type(self._base) is self.kind:
            return self._base
        from diffusers.pipelines.auto_pipeline import AutoPipelineForImage2Image, AutoPipelineForInpainting

        made = {"image": AutoPipelineForImage2Image, "mask": AutoPipelineForInpainting}[self.draws].from_pipe(
            self._base
        )
        made.set_progress_bar_config(disable=True)
        return made


def forms_of(pipe: Any) -> dict[str, Form]:
    """The forms of a pipeline, by what they draw."""
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
        if twin is not None and not (draws == "mask" and _shows_masks_to_others(pipe)):
            found.setdefault(draws, twin)
    return {draws: Form(each, pipe, draws) for draws, each in found.items()}


def _shows_masks_to_others(pipe: Any) -> bool:
    """Whether it is one of Kandinsky's, which are shown a mask by further channels, and its network has not been taught that."""
    unet = getattr(pipe, "unet", None)
    return hasattr(pipe, "movq") and unet is not None and unet.config.in_channels <= unet.config.out_channels


def form_for(request: Request, forms: dict[str, Form]) -> Form:
    """Choose the form that draws a request.

    Raises:
        ValueError: there is none.
    """
    wanted = "text" if request.image is None else "mask" if request.mask is not None else "image"
    if wanted in forms:
        return forms[wanted]
    if wanted == "text":
        raise ValueError("this model draws from an image: give one (--image)")
    raise ValueError(f"{wanted} is not for this model: diffusers has no pipeline of it that takes one; leave it out")


def taken_by(forms: dict[str, Form]) -> tuple[str, ...]:
    """The settings that one form or another takes."""
    names = [name for form in forms.values() for name in form.signature.takes]
    names += [name for name in ("image", "mask") if name in forms]
    return tuple(dict.fromkeys(names))

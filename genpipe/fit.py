"""How requests fit a model: what completes them, what it cannot draw, and what of them has no effect there."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from genpipe.fields import defaults_of, refuse_unknown, settings_of
from genpipe.inputs import ControlList, InputImage
from genpipe.messages import Notice
from genpipe.request import SETTINGS, Request, check_size

_OF_IMAGES = ("strength", "outpaint", "only_masked")
_SECOND_PASS = ("upscale_strength", "upscale_guidance_scale", "upscale_by")


@dataclass(frozen=True, kw_only=True)
class Traits:
    """What a model can draw, on which depend a request's size and the settings that have no effect.

    Attributes:
        factor: what sides of images are multiples of, in pixels: those of one latent pixel.
        tile_factor: the same of images without edges.
        layers: of the text encoder with the fewest.
        distilled: whether the network takes the scale of guidance as an input, and is never led away from a prompt.
        sizes: how many numbers the network takes of sizes and crops: 6 (SDXL), 5 without the target's (its refiner), or 0.
        refines: whether there is a refiner.
        controls: how many control networks there are: one for each control image.
        refers: whether there is an IP-Adapter.
        shown: what the network is shown beside the latents: "mask", "image" or "depth"; None for nothing.
        takes: the settings that a pipeline of diffusers takes; None for genpipe's own networks, which take all.
    """

    factor: int
    tile_factor: int
    layers: int
    distilled: bool = False
    sizes: int = 0
    refines: bool = False
    controls: int = 0
    refers: bool = False
    shown: str | None = None
    takes: tuple[str, ...] | None = None


def complete(settings: Mapping[str, Any], traits: Traits, defaults: Mapping[str, Any]) -> Request:
    """Complete the settings of a request to a model.

    Args:
        settings: those that are given, by name; None is as if left out.
        traits: of the model.
        defaults: of the model, for settings that are not given.

    Returns:
        The request; its prompt is "" and its seed 0 where they are not given.

    Raises:
        ValueError: a setting is unknown, out of its range, or not for this model.
    """
    refuse_unknown(Request, settings, "a request")
    given = {name: value for name, value in settings.items() if value is not None}
    if traits.takes is None or "height" in traits.takes:
        given = size_of_image(given, traits.tile_factor if given.get("tile") else traits.factor) | given
    request = Request(**{"prompt": "", "seed": 0, **_defaults_for(given, defaults), **given})
    if traits.takes is not None:
        check_taken(request, traits.takes, defaults)
    elif request.arguments:
        raise ValueError("arguments are for models that diffusers draws, and genpipe draws this one: leave them out")
    check_fits(request, traits)
    return request


def check_taken(request: Request, takes: Sequence[str], usual: Mapping[str, Any]) -> None:
    """Raise ValueError if a request asks for something that a pipeline of diffusers does not take.

    Args:
        takes: names of the settings that it takes.
        usual: its defaults.
    """
    standing = {**defaults_of(Request), **usual}
    for name in SETTINGS:
        value = getattr(request, name)
        if name in takes or name == "negative_prompt" or value == standing.get(name, value):
            continue
        only = f": it draws {standing[name]} alone" if name in ("height", "width") else ""
        fix = "give its network (control_model), or leave it out" if name == "control" else "leave it out"
        raise ValueError(f"{name} is not for this model, a pipeline of diffusers that takes none{only}; {fix}")


def ignored(requests: Sequence[Request], traits: Traits) -> list[Notice]:
    """Name the settings of requests that have no effect with a model, one notice each."""
    if traits.takes is not None:
        idle = [name for name in ("prompt", "negative_prompt") if name not in traits.takes]
        idle = [name for name in idle if any(getattr(request, name) for request in requests)]
        without = traits.controls and not all(request.control for request in requests)
        return [*map(_untold, idle), *([_needs("control", "control_model")] if without else [])]
    found, usual = dict[str, Notice](), defaults_of(Request)
    unread = {6: (), 5: ("target_size",)}.get(traits.sizes, ("original_size", "crop", "target_size"))

    def needs(other: str, *names: str) -> None:
        found.update({name: _needs(other, name) for name in names})

    for request in requests:
        if request.image is None:
            needs("image", *(name for name in _OF_IMAGES if getattr(request, name) is not None))
        if request.image_guidance_scale is not None and traits.shown != "image":
            found["image_guidance_scale"] = Notice(
                "image_guidance_scale is for models that edit by instruction: leave it out"
            )
        if request.depth is not None and traits.shown != "depth":
            found["depth"] = Notice(
                "depth is for models that are shown a map of it, which this one is not: leave it out"
            )
        if request.strength is not None and traits.shown == "image":
            found["strength"] = Notice("strength has no effect: this model draws every step, see image_guidance_scale")
        if request.vary_seed is not None and not request.vary:
            needs("vary", "vary_seed")
        if request.upscale == 1:
            needs("upscale", *(name for name in _SECOND_PASS if getattr(request, name) != usual[name]))
        if request.refiner_start is not None and not traits.refines:
            needs("refiner", "refiner_start")
        if not request.control:
            needs("control", *(["control_model"] if traits.controls else []), *(["guess"] if request.guess else []))
        if request.reference is None:
            needs("reference", *(["ip_adapter"] if traits.refers else []))
            needs("reference", *(["ip_scale"] if request.ip_scale != usual["ip_scale"] else []))
        found.update({name: _untold(name) for name in unread if getattr(request, name) is not None})
        guides = [name for name in ("negative_prompt", "guidance_rescale") if getattr(request, name)]
        if traits.distilled:
            found.update({name: _untold(name) for name in guides})
        elif request.guidance_scale <= 1:
            form = "{name} has no effect at a {other} of {scale}: raise it above 1, or leave {name} out"
            scale = f"{request.guidance_scale:g}"
            found.update({name: Notice(form, name=name, other="guidance_scale", scale=scale) for name in guides})
    return list(found.values())


def _needs(other: str, name: str) -> Notice:
    return Notice("{name} has no effect without {other}: give that too, or leave it out", name=name, other=other)


def _untold(name: str) -> Notice:
    return Notice("{name} has no effect (this model takes none): leave it out", name=name)


def _defaults_for(settings: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Give a model's defaults that apply to settings: those of a second pass only where there is one.

    Raises:
        ValueError: upscale is no number, or out of its range.
    """
    upscale = settings_of(Request)["upscale"].kind.check("upscale", settings.get("upscale") or 1)
    return {name: value for name, value in defaults.items() if upscale > 1 or name not in _SECOND_PASS}


def check_fits(request: Request, traits: Traits) -> None:
    """Raise ValueError unless a model can draw a request of this size, with these layers left out and these images."""
    check_guides(request, traits)
    check_size(request.height, request.width, traits.tile_factor if request.tile else traits.factor)
    if traits.takes is None and request.clip_skip >= traits.layers:
        raise ValueError(f"clip_skip {request.clip_skip} is out of range: 0 to {traits.layers - 1} for this model")


def check_guides(request: Request, traits: Traits) -> None:
    """Raise ValueError unless a model has what a request's control images and its reference are shown to."""
    if request.reference is not None and not traits.refers:
        raise ValueError("reference is for an IP-Adapter, and the model has none: give one (--ip-adapter)")
    images, controls = len(request.control), traits.controls
    if images and request.tile:
        raise ValueError("tile joins edges, of which control networks know nothing: leave out tile or control")
    if images and images != controls:
        fix = "give a control_model for each (--control-model)" if images > controls else "give an image for each"
        raise ValueError(f"control is {images} image(s), and the model has {controls} control model(s): {fix}")


def size_of_image(settings: Mapping[str, Any], factor: int) -> dict[str, int]:
    """Give the size that an image to begin from, or else the first to control with, asks for where settings say no size.

    It is the image's own, in multiples of `factor`.

    Raises:
        ValueError: the image cannot be used.
    """
    if not settings.get("height") is settings.get("width") is None or settings.get("only_masked") is not None:
        return {}
    if settings.get("image") is not None:
        image = InputImage.of("image", settings["image"])
    elif settings.get("control"):
        image = ControlList().check("control", settings["control"])[0].image
    else:
        return {}
    width, height = image.open().size
    if settings.get("image") is not None and settings.get("outpaint") is not None:
        kind = settings_of(Request)["outpaint"].kind
        left, top, right, bottom = kind.check("outpaint", settings["outpaint"])
        width, height = left + width + right, top + height + bottom
    return {"height": max(factor, height // factor * factor), "width": max(factor, width // factor * factor)}

"""Requests to a model that only its workers load: completed and checked by what the model says of itself."""

from collections.abc import Mapping, Sequence
from typing import Any

from genpipe.fit import check_fits, defaults_for, ignored, size_of_image
from genpipe.request import Request
from genpipe.workers.messages import Model


def complete(settings: Mapping[str, Any], model: Model) -> Request:
    """Complete the settings of a request to a model.

    Args:
        settings: those that are given, by name; prompt and seed may be missing.
        model: whose defaults hold for the others.

    Returns:
        The request; its prompt is "" and its seed 0 where they are not given.

    Raises:
        ValueError: a setting is unknown, out of its range, or not for this model.
    """
    sampler = Request.check_settings(settings).sampler
    factor = model.tile_factor or model.factor if settings.get("tile") else model.factor
    settings = size_of_image(settings, factor) | dict(settings)
    defaults = model.defaults.get(sampler or "", model.defaults[""])
    request = Request(**{"prompt": "", "seed": 0, **defaults_for(settings, defaults), **settings})
    check_fits(request, factor=factor, layers=model.layers, controls=model.controls, refers=model.refers)
    return request


def unheeded(requests: Sequence[Request], model: Model) -> list[str]:
    """Name the settings of requests that have no effect with a model, one line each."""
    return ignored(requests, distilled=model.distilled, sizes=model.sizes, refines=model.refines, shown=model.shown)

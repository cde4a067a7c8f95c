"""Requests to a model that only its workers load: completed and checked by what the model says of itself."""

from collections.abc import Mapping
from typing import Any

from genpipe import fit
from genpipe.request import Request
from genpipe.workers.messages import Model


def complete(settings: Mapping[str, Any], model: Model) -> Request:
    """Complete the settings of a request to a model, see `genpipe.fit.complete`; prompt and seed may be missing."""
    sampler = Request.check_settings(settings).sampler
    return fit.complete(settings, model.traits, model.defaults.get(sampler or "", model.defaults[""]))

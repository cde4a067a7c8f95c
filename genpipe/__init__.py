"""genpipe turns text into images.

    from genpipe import generate
    generate("pirate ship").save("ship.png")

Importing this package loads neither torch nor diffusers: the names below are resolved when first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

from genpipe.moved import install

if TYPE_CHECKING:
    from genpipe.client import Client
    from genpipe.pipeline import Pipeline, generate
    from genpipe.render import render
    from genpipe.request import Request

__version__ = "0.2.0"
__all__ = ["Client", "Pipeline", "Request", "__version__", "generate", "render"]

_HOMES = {
    "Client": "genpipe.client",
    "Pipeline": "genpipe.pipeline",
    "Request": "genpipe.request",
    "generate": "genpipe.pipeline",
    "render": "genpipe.render",
}

install()


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'genpipe' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)

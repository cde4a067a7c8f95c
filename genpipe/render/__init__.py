"""Batch rendering: long lists of prompts, on every device there is, with nothing lost.

    for image in genpipe.render(["pirate ship", "ship"], out="renders"):
        print(image.path)

The module itself can be called, so that `genpipe.render(...)` is the function `render` whatever has been imported. Its
names are resolved when first used, as those of `genpipe` are.
"""

import importlib
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from genpipe.render.api import render
    from genpipe.render.options import Options
    from genpipe.render.rendered import Rendered
    from genpipe.render.run import Run
    from genpipe.workers.engines import Engine, LocalEngine

__all__ = ["Engine", "LocalEngine", "Options", "Rendered", "Run", "render"]

_HOMES = {
    "Engine": "genpipe.workers.engines",
    "LocalEngine": "genpipe.workers.engines",
    "Options": "genpipe.render.options",
    "Rendered": "genpipe.render.rendered",
    "Run": "genpipe.render.run",
    "render": "genpipe.render.api",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'genpipe.render' has no attribute {name!r}")


class _Callable(ModuleType):
    def __call__(self, *args: Any, **kwargs: Any) -> "Iterator[Rendered]":
        return __getattr__("render")(*args, **kwargs)


sys.modules[__name__].__class__ = _Callable

"""Modules and names that have moved: the old ones keep working until 0.3, each with a DeprecationWarning.

`install` is called when genpipe is first imported. It costs nothing until a name is asked for that no file has.
"""

import importlib
import sys
import warnings
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

# Each old module with the modules that hold its names now; a name is looked for in this order.
MODULES: dict[str, tuple[str, ...]] = {
    "genpipe.best_of": ("genpipe.pipeline.best_of",),
    "genpipe.denoising": ("genpipe.pipeline.denoising",),
    "genpipe.models.cpu_attention": ("genpipe.models.cpu.attention",),
    "genpipe.models.forms": ("genpipe.models.cpu.forms",),
    "genpipe.models.inference": ("genpipe.models.prepare",),
    "genpipe.models.packed": ("genpipe.models.cpu.packed",),
    "genpipe.models.quantised": ("genpipe.models.cpu.quantised",),
    "genpipe.models.winograd": ("genpipe.models.cpu.winograd",),
    "genpipe.preview": ("genpipe.pipeline.preview",),
    "genpipe.prompt_encoder": ("genpipe.prompts.encoder",),
    "genpipe.render.command": ("genpipe.cli.render",),
    "genpipe.render.engines": ("genpipe.workers.engines",),
    "genpipe.render.messages": ("genpipe.workers.messages",),
    "genpipe.render.names": ("genpipe.filenames",),
    "genpipe.render.process": ("genpipe.workers.process",),
    "genpipe.render.ray_engine": ("genpipe.workers.ray_engine",),
    "genpipe.render.renderer": ("genpipe.workers.renderer",),
    "genpipe.render.storage": ("genpipe.workers.storage",),
    "genpipe.training.command": ("genpipe.cli.vision",),
    "genpipe.vision.blocks": ("genpipe.blocks",),
    "genpipe.vision.clip": ("genpipe.judge.clip",),
    "genpipe.vision.command": ("genpipe.cli.classify", "genpipe.cli.inspect"),
    "genpipe.vision.evaluation": ("genpipe.judge.evaluation",),
    "genpipe.vision.judge": (
        *("genpipe.judge", "genpipe.judge.scene_judge", "genpipe.judge.scores"),
        "genpipe.vision.scene_model",
    ),
    "genpipe.vision.pictures": ("genpipe.vision.reading",),
    "genpipe.vision.scene_segmentation": ("genpipe.judge.scene_segmentation",),
}
# What is called otherwise in the new modules.
RENAMED = {"read_picture": "read_image", "pictures_in": "images_in", "Sight": "Observation", "wish_of": "wanted_scene"}
# Single names that have left a module which is still there.
NAMES: dict[str, dict[str, str]] = {
    "genpipe.images": {
        **dict.fromkeys(("annotate", "annotate_choice", "read_metadata", "read_request"), "genpipe.metadata"),
        "file_stem": "genpipe.filenames",
        "parameters_text": "genpipe.dialects.a1111",
    },
}


def look_up(module: str, name: str) -> Any:
    """Return a name that has left `module`, for that module's `__getattr__`.

    Raises:
        AttributeError: it never was there.
    """
    home = NAMES[module].get(name)
    if home is None:
        raise AttributeError(f"module {module!r} has no attribute {name!r}")
    warnings.warn(
        f"{module}.{name} has moved: import it from {home}; the old name goes in 0.3", DeprecationWarning, stacklevel=3
    )
    return getattr(importlib.import_module(home), name)


def install() -> None:
    """Let Python ask this module for names that it cannot find elsewhere."""
    if not any(isinstance(finder, Finder) for finder in sys.meta_path):
        sys.meta_path.append(Finder())


class Finder:
    """Finds the old names. Python asks it last, and so only for modules that have no file.

    It is finder and loader in one, without the base classes of `importlib.abc`, which take 25 ms to import.
    """

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: Any = None) -> ModuleSpec | None:
        """Return how to make the module `name`; None where it is not in `MODULES`."""
        return ModuleSpec(name, self) if name in MODULES else None  # pyright: ignore[reportArgumentType]

    def create_module(self, spec: ModuleSpec) -> None:
        """Leave it to Python to make the module."""

    def exec_module(self, module: ModuleType) -> None:
        """Fill an old module: with nothing but a look-up in the new ones."""
        old, homes = module.__name__, MODULES[module.__name__]
        warnings.warn(
            f"{old} has moved: import from {homes[0]}; the old name goes in 0.3", DeprecationWarning, stacklevel=2
        )

        def find(name: str) -> Any:
            if not name.startswith("__"):
                for home in homes:
                    for called in (name, RENAMED.get(name, name)):
                        if hasattr(new := importlib.import_module(home), called):
                            return getattr(new, called)
            raise AttributeError(f"module {old!r} has no attribute {name!r}")

        module.__doc__ = f"Moved to {', '.join(homes)}."
        module.__getattr__ = find

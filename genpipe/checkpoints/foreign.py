"""Folders in the diffusers layout whose parts are not genpipe's: what their `model_index.json` says. Imports no diffusers."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from genpipe.checkpoints.families import FAMILIES, text_encoders_in
from genpipe.checkpoints.source import Source, read_json

INDEX = "model_index.json"
# What parts are classes of, most of them; another name may be a file of the repository, with code in it.
LIBRARIES = ("diffusers", "transformers")


@dataclass(frozen=True)
class Foreign:
    """A pipeline that diffusers has to draw.

    Attributes:
        name: the class of the pipeline.
        version: of the diffusers that saved it; None where it does not say.
        parts: (library, class) of each part that it has, by its folder.
        code: files of code that come with it, and would run.
        own_class: whether the class of the pipeline is in one of them, and not in diffusers.
    """

    name: str
    version: str | None
    parts: Mapping[str, tuple[str, str]]
    code: tuple[str, ...] = ()
    own_class: bool = False


def foreign(source: Source) -> Foreign | None:
    """Read what a folder or a repository asks diffusers for; None where genpipe's own networks draw it, or should.

    Raises:
        CheckpointError: there is no index, or it cannot be read.
    """
    index = read_json(source, INDEX, dict)
    given = index.get("_class_name")
    custom = given if _is_pair(given) else None
    name = given if custom is None else custom[1]
    if not isinstance(name, str) or name in {family.pipeline for family in FAMILIES}:
        return None
    if custom is None:
        try:
            text_encoders_in(index)
            return None
        except ValueError:
            pass
    parts = {
        part: (str(value[0]), str(value[1])) for part, value in index.items() if _is_pair(value) and part[0] != "_"
    }
    code = [] if custom is None else [f"{custom[0]}.py"]
    for part, (library, _) in parts.items():
        file = f"{part}/{library}.py"
        if library not in LIBRARIES and "." not in library and source.find(file, optional=True) is not None:
            code.append(file)
    version = index.get("_diffusers_version")
    return Foreign(name, version if isinstance(version, str) else None, parts, tuple(code), custom is not None)


def _is_pair(value: Any) -> bool:
    """Whether a value of the index is a library, or a module, and a class in it."""
    return isinstance(value, list) and len(value) == 2 and None not in value

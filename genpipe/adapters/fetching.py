"""The files of a repository on the hub that a pipeline of diffusers wants: fetched at the commit whose index was read."""

import re
from collections.abc import Sequence

from genpipe.checkpoints.errors import CheckpointError
from genpipe.checkpoints.foreign import Foreign
from genpipe.checkpoints.hub import Repository
from genpipe.checkpoints.source import Folder
from genpipe.spec import ModelSpec

_SMALL = (".json", ".txt", ".model", ".jinja")
_WEIGHTS = re.compile(r"[^.]+?(\.(?P<variant>[^.]+?))?(-\d+-of-\d+)?\.(?P<kind>safetensors|bin)")


def fetched(source: Repository, wanted: Foreign, spec: ModelSpec, *, without: Sequence[str] = ()) -> Folder:
    """Fetch the files of a pipeline, and give the folder that they are in.

    Args:
        wanted: what its index says.
        spec: variant, allow_pickle and trust_remote_code say which files are wanted.
        without: parts of which configs alone are wanted, and no weights.

    Raises:
        CheckpointError: a file cannot be fetched.
    """
    for part in wanted.parts:
        names = source.listing(part)
        weights = [] if part in without else chosen_weights(names, spec)
        for name in [*(name for name in names if name.endswith(_SMALL)), *weights]:
            if source.find(f"{part}/{name}") is None:
                raise CheckpointError(source.lacks(f"{part}/{name}"))
    for name in ("README.md", *(wanted.code if spec.trust_remote_code else ())):  # the page names a prior's repository
        source.find(name)
    return Folder(source.root)


def chosen_weights(names: Sequence[str], spec: ModelSpec) -> list[str]:
    """Choose of the files in a folder those of the weights: of the variant, or the plain ones where there is none."""
    found = [(name, match) for name in names if (match := _WEIGHTS.fullmatch(name))]
    kinds = ("safetensors", "bin") if spec.allow_pickle else ("safetensors",)
    for kind in kinds:
        for variant in dict.fromkeys((spec.variant, None)):
            chosen = [name for name, match in found if (match["kind"], match["variant"]) == (kind, variant)]
            if chosen:
                return chosen
    return []

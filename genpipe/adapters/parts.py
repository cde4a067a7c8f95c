"""Parts of a pipeline of diffusers that are loaded one by one."""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from genpipe.adapters.classes import is_stray, own_part
from genpipe.messages import listed
from genpipe.spec import ModelSpec


def load_strays(
    folder: Path, kind: type, parts: Mapping[str, tuple[str, str]], spec: ModelSpec, given: Mapping[str, Any]
) -> dict[str, Any]:
    """Load the parts that diffusers does not find where the index says: those of pipelines that it has moved since.

    Args:
        folder: of the pipeline.
        kind: its class.
        parts: (library, class) of each part.
        spec: variant counts.
        given: how `from_pretrained` is to read them.
    """
    return {
        part: own.from_pretrained(folder / part, variant=_variant(folder / part, spec), **given)
        for part, (library, name) in parts.items()
        if is_stray(library, name) and (own := own_part(kind, name)) is not None
    }


def load_text_encoders(
    folder: Path, parts: Mapping[str, tuple[str, str]], spec: ModelSpec, given: Mapping[str, Any]
) -> dict[str, Any]:
    """Load the networks of transformers, with a warning of tensors that they lack: transformers puts random ones there.

    Args:
        folder, parts, spec, given: as of `load_strays`.
    """
    import transformers

    found = {}
    for part, (library, name) in parts.items():
        kind = getattr(transformers, name, None) if library == "transformers" else None
        if isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel):
            read: Any = kind.from_pretrained
            found[part], told = read(
                folder / part, variant=_variant(folder / part, spec), output_loading_info=True, **given
            )
            if missing := sorted(told["missing_keys"]):
                warnings.warn(
                    f"{folder / part} lacks {listed(missing)}: random numbers stand there, download it again",
                    stacklevel=2,
                )
    return found


def _variant(folder: Path, spec: ModelSpec) -> str | None:
    """The variant of a spec where a part has weights of it."""
    wanted = f".{spec.variant}."
    return spec.variant if any(wanted in path.name.replace("-", ".") for path in folder.iterdir()) else None

"""Whether the networks that diffusers loaded have all of their numbers."""

from collections.abc import Mapping
from typing import Any

from genpipe.checkpoints.errors import CheckpointError
from genpipe.messages import listed


def check_whole(parts: Mapping[str, Any], source: str) -> None:
    """Raise CheckpointError where a network of diffusers has tensors without numbers: those that its files lack.

    Args:
        parts: of a loaded pipeline.
        source: what the message calls it.
    """
    for part, network in parts.items():
        named = getattr(network, "named_parameters", None)
        if named is not None and (missing := [name for name, one in named() if one.is_meta]):
            raise CheckpointError(f"{source}: its {part} lacks {listed(missing)}: download it again")

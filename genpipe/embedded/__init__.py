"""The model that ships; README.md beside this file is its card."""

import json
from functools import cache
from pathlib import Path

EMBEDDED = Path(__file__).parent
JUDGES = EMBEDDED / "judge"


@cache
def learned_concepts() -> tuple[str, ...]:
    """The concepts of `genpipe.scenes` that the embedded model was trained on."""
    return tuple(json.loads((EMBEDDED / "genpipe.json").read_text(encoding="utf-8"))["concepts"])

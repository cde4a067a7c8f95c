"""What files say of themselves, without where the server's own files lie."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from genpipe.imprint import MADE
from genpipe.spec import FILES


def without_paths(info: Mapping[Any, Any]) -> dict[str, str]:
    """Give the text of an image's `info` that says what made it, with names of files in place of their paths."""
    if MADE not in info:
        return {}
    made = json.loads(info[MADE])
    for name in FILES:  # the model itself is called by the server's name for it
        if name in made:
            made[name] = _short(made[name])
    for lora in made.get("loras") or ():
        lora["path"] = _short(lora["path"])
    return {MADE: json.dumps(made, ensure_ascii=False)}


def _short(value: Any) -> Any:
    if isinstance(value, list):
        return [_short(each) for each in value]
    return ",".join(Path(part).name for part in value.split(",")) if isinstance(value, str) else value

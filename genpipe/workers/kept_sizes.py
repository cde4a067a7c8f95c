"""Batch sizes that were found, kept on disk, so that they are not measured by every run."""

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from genpipe.files import atomic_write, cache_folder

# Findings that are kept; the oldest go first.
MOST = 1000
LARGEST = 2**20


class KeptSizes:
    """A JSON file of findings. What stands in it is only believed where it can be true.

    Each is kept under all that it depends on, as a text: its size, and for how many images it was searched for, or null
    where the search ended because larger ones would not have been faster, however many images there were.

    Args:
        path: of the file; by default in the user's cache folder.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = cache_folder() / "batch_sizes.json" if path is None else path

    def get(self, depends_on: Mapping[str, Any], waiting: float) -> int | None:
        """Give the size that was found, for so many images; None where it has to be found first."""
        found = self._read().get(_key(depends_on))
        if found is None or (found[1] is not None and waiting > found[1]):
            return None
        return found[0]

    def keep(self, depends_on: Mapping[str, Any], size: int, waiting: float | None) -> None:
        """Keep a finding. A file that cannot be written is left as it is: it only saves time."""
        known = self._read()
        known.pop(_key(depends_on), None)
        known[_key(depends_on)] = (size, waiting)
        text = json.dumps(dict(list(known.items())[-MOST:]), indent=0)
        with suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(self._path) as part:
                part.write_text(text, encoding="utf-8")

    def _read(self) -> dict[str, tuple[int, float | None]]:
        try:
            found = json.loads(self._path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return {}
        if not isinstance(found, dict):
            return {}
        return {key: (value[0], value[1]) for key, value in found.items() if _is_finding(value)}


def _key(depends_on: Mapping[str, Any]) -> str:
    return json.dumps(depends_on, sort_keys=True, ensure_ascii=False)


def _is_finding(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 2
        and type(value[0]) is int
        and 1 <= value[0] <= LARGEST
        and (value[1] is None or (type(value[1]) in (int, float) and value[1] > 0))
    )

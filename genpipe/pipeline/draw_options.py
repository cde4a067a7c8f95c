"""The keyword arguments of drawing."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from genpipe.pipeline.progress import Progress
from genpipe.settings import Settings

if TYPE_CHECKING:
    from genpipe.judge import Scorer


class DrawOptions(Settings, total=False):
    """What `Pipeline.__call__` takes besides prompt, n and seeds."""

    seed: int | None
    deterministic: bool
    best_of: int
    judge: "str | Path | Scorer | None"
    progress: bool
    callback: Callable[[Progress], None] | None

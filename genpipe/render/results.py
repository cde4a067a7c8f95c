"""Files that a run leaves for others: metadata.jsonl (read by Hugging Face's ImageFolder), failures.jsonl, report.json."""

import json
import math
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import genpipe
from genpipe.files import atomic_write
from genpipe.render.folder import image_path
from genpipe.render.journal import DONE, FAILED, Entry, Journal
from genpipe.workers.messages import Result

# Where a worker's time goes; "measure" finds out how large a batch should be.
STAGES = ("measure", "text", "denoise", "decode", "judge", "encode", "write")


def image_row(entry: Entry, settings: dict[str, Any], suffix: str) -> dict[str, Any]:
    """Make the line of metadata.jsonl of an image. A row's field that is named like one of ours gets "row_" before it."""
    judged = entry.judged
    own = {
        "file_name": image_path(entry, suffix),
        "prompt": entry.prompt,
        **settings,
        "seed": entry.seed if judged is None else judged.get("seed", entry.seed),
        "id": entry.id.hex(),
        "line": entry.line,
    }
    if judged is not None:
        own |= {"score": judged.get("total"), "score_parts": judged.get("score")}
    return own | {f"row_{key}" if key in own else key: value for key, value in entry.carried.items()}


def write_metadata(journal: Journal, root: Path, suffix: str) -> None:
    """Write metadata.jsonl: one line per image that is there, those of former plans too."""

    def rows() -> Iterator[dict[str, Any]]:
        for window in journal.windows(state=DONE, plan=False):
            for entry in window:
                yield image_row(entry, journal.settings(entry.settings), suffix)

    write_lines(root / "metadata.jsonl", map(as_line, rows()))


def write_failures(journal: Journal, root: Path, suffix: str) -> None:
    """Write failures.jsonl: the rows that cannot be drawn, then the images that failed, each with its "error"."""

    def rows() -> Iterator[dict[str, Any]]:
        for line, reason, text in journal.rejects():
            yield {"line": line, "error": reason, "row": text}
        for window in journal.windows(state=FAILED):
            for entry in window:
                yield {**image_row(entry, journal.settings(entry.settings), suffix), "error": entry.detail}

    write_lines(root / "failures.jsonl", map(as_line, rows()))


def as_line(value: dict[str, Any]) -> str:
    """Make one line of JSON, in UTF-8."""
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    except ValueError:  # NaN, of a judge of somebody's, is not JSON
        text = json.dumps(_finite(value), ensure_ascii=False)
    # Half a surrogate pair, which JSON can hold, is no UTF-8.
    return text.encode("utf-8", "replace").decode() + "\n"


def _finite(value: Any) -> Any:
    """Put None for numbers that are not finite."""
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_lines(path: Path, lines: Iterable[str]) -> None:
    """Write a text file, which appears whole or not at all."""
    # One renderer at a time has the folder.
    with (
        atomic_write(path, part=path.with_name(f".{path.name}.part"), durable=True) as part,
        part.open("w", encoding="utf-8") as file,
    ):
        file.writelines(lines)


@dataclass
class Report:
    """What a run took: images, batches, bytes of memory, and seconds of each stage; all of this run alone.

    Attributes:
        batch_sizes: a line on each size of a batch that was found, and why.
    """

    pictures: int = 0
    failed: int = 0
    workers: int = 0
    startup: float = 0.0
    planning: float = 0.0
    drawing: float = 0.0
    stages: dict[str, float] = field(default_factory=dict)
    peak: int = 0
    batches: int = 0
    lost_workers: int = 0
    batch_sizes: list[str] = field(default_factory=list)

    def add(self, result: Result) -> None:
        """Add what one batch took."""
        self.batches += 1
        self.pictures += len(result.drawn)
        self.failed += len(result.failed)
        self.peak = max(self.peak, result.peak)
        if result.said is not None:
            self.batch_sizes.append(result.said)
        for stage, seconds in result.seconds.items():
            self.stages[stage] = self.stages.get(stage, 0.0) + seconds

    @property
    def utilisation(self) -> float:
        """The share of the time while drawing in which the workers' devices had work, 0 … 1."""
        time = self.drawing * self.workers
        return min(1.0, self.stages.get("busy", 0.0) / time) if time else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Give the report as JSON has it: seconds, bytes, images per second."""
        return {
            "genpipe": genpipe.__version__,
            "python": sys.version.split()[0],
            "pictures": self.pictures,
            "failed": self.failed,
            "pictures_per_second": self.pictures / self.drawing if self.drawing else 0.0,
            "workers": self.workers,
            "lost_workers": self.lost_workers,
            "batches": self.batches,
            "batch_sizes": self.batch_sizes,
            "device_utilisation": self.utilisation,
            "seconds": {
                "startup": self.startup,
                "planning": self.planning,
                "drawing": self.drawing,
                **{stage: self.stages.get(stage, 0.0) for stage in STAGES},
            },
            "peak_memory_bytes": self.peak or None,
        }


def write_report(report: dict[str, Any], root: Path) -> None:
    """Write report.json."""
    write_lines(root / "report.json", [json.dumps(report, indent=2, ensure_ascii=False) + "\n"])

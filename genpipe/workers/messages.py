"""What the coordinator and its workers say to each other: plain values, since it travels between processes."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from genpipe.fit import Traits
from genpipe.spec import ModelSpec

# Images that are larger than this get a small copy of this size, for the gallery.
THUMBNAIL = 256
# Of an image on the disk: its number, bytes, SHA-256 in hex, and {"seed", "total", "score"} where it was judged.
Drawn = tuple[int, int, str, dict[str, Any] | None]


@dataclass(frozen=True)
class Job:
    """What the workers of a run have to know.

    Attributes:
        out: the run's folder, or an fsspec URL.
        spec: the model; each worker has a device of its own.
        deterministic: bitwise the same images in any batch.
        best_of: images drawn for one that is kept, by the judge's word.
        judged: whether a judge scores the images.
        judge: which, see `genpipe.judge.choose_judge`.
        sign: what the files are signed with, see `genpipe.signing`; None signs none.
    """

    out: str
    spec: ModelSpec = field(default_factory=ModelSpec)
    deterministic: bool = False
    best_of: int = 1
    judged: bool = False
    judge: str | None = None
    sign: str | None = None

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Job":
        """Make the job that `dataclasses.asdict` gave."""
        return cls(**{**values, "spec": ModelSpec.from_dict(values["spec"])})


@dataclass(frozen=True)
class Model:
    """What the coordinator has to know of a checkpoint that only its workers load.

    Attributes:
        name: for people.
        fingerprint: SHA-256 of its files; "" where nobody asks for it.
        dtype: of the networks.
        defaults: settings where a row gives none; those for the sampler "lcm" under its name, all others' under "".
        traits: what it can draw.
        depth: batches that a worker has at a time, those that it prepares and writes among them.
        pixels: of a batch, where no better size of it has been found; None where the worker does not say.
    """

    name: str
    fingerprint: str
    dtype: str
    defaults: dict[str, dict[str, Any]]
    traits: Traits
    depth: int = 2
    pixels: int | None = None

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Model":
        """Make the model that `dataclasses.asdict` gave."""
        return cls(**{**values, "traits": Traits(**values["traits"])})


@dataclass(frozen=True)
class Task:
    """One image to draw: its number in the journal, its id, its path below the run's folder, the request."""

    number: int
    id: str
    path: str
    request: dict[str, Any]


@dataclass(frozen=True)
class Work:
    """A batch that a worker is to draw.

    Attributes:
        key: by which the coordinator knows it.
        tasks: its images.
        shape: what they have in common, as a text.
        waiting: how many images of this shape there are to draw, if the best size of a batch is to be found first; else 0.
        alone: draw it while nothing else is at the device, so that it is known which batch a worker dies over.
    """

    key: int
    tasks: Sequence[Task]
    shape: str = ""
    waiting: int = 0
    alone: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Give it as plain values; those of the requests are not copied, as `dataclasses.asdict` would."""
        return {**vars(self), "tasks": [vars(task) for task in self.tasks]}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Work":
        """Make the work that `to_dict` gave."""
        return cls(**{**values, "tasks": [Task(**task) for task in values["tasks"]]})


@dataclass
class Result:
    """What became of a batch.

    Attributes:
        drawn: the images that are on the disk.
        failed: (number, reason) of the others.
        seconds: by stage; "encode" and "write", summed over threads, run beside the networks. "busy" are those in which
            the device had work, of any batch, since the worker's last result.
        peak: of the memory that the worker has ever held, in bytes.
        size: how many images of this shape a batch should take, where that was found out.
        said: a line on how it was found.
    """

    drawn: list[Drawn] = field(default_factory=list)
    failed: list[tuple[int, str]] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    peak: int = 0
    size: int | None = None
    said: str | None = None


def thumbnail_path(identifier: str) -> str:
    """Where an image's small copy is, below the run's folder; in a folder that ImageFolder does not look into."""
    return f".genpipe/thumbnails/{identifier}.jpg"

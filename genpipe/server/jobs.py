"""What the server draws, and what becomes of it: plain values, since they travel between processes."""

from dataclasses import dataclass, field

from genpipe.messages import Notice
from genpipe.request import Request

# Images that a worker has at a time, and that go through its networks together, while nothing else is known.
USUAL = 8


@dataclass(frozen=True)
class Job:
    """One image to draw.

    Attributes:
        id: of the job; no two have the same.
        request: what is drawn.
        model: the name of the model that draws it.
        client: whom it is for; clients take turns.
        low: whether it gives way to jobs that are not low.
        suffix: of the file that is made: ".png", ".jpg" or ".webp".
        previews: whether a small image of every step is wanted.
        deadline: when it is of no more use, by the engine's clock; None is never.
    """

    id: str
    request: Request
    model: str
    client: str = ""
    low: bool = False
    suffix: str = ".png"
    previews: bool = False
    deadline: float | None = None


@dataclass(frozen=True)
class Stepped:
    """A step of a job is done.

    Attributes:
        id: the job's.
        step, steps: how many steps are done, and how many there are.
        preview: a small JPEG file of it; None where none is wanted.
    """

    id: str
    step: int
    steps: int
    preview: bytes | None = None


@dataclass(frozen=True)
class Drawn:
    """A job is done.

    Attributes:
        id: the job's.
        data: the image's file.
        warnings: what the person who asked has to know.
    """

    id: str
    data: bytes = field(repr=False)
    warnings: tuple[Notice, ...] = ()


@dataclass(frozen=True)
class Failed:
    """There is no image.

    Attributes:
        id: the job's.
        reason: why, in one line.
        kind: "refused" where the request is at fault, "cancelled", "late" past its deadline, or "failed".
    """

    id: str
    reason: str
    kind: str = "failed"


# What becomes of a job: any number of `Stepped`, then one of the others.
News = Stepped | Drawn | Failed

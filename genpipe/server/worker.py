"""A worker: a process of its own that holds the models and draws. The server's own process loads no torch.

It is spoken to over a connection. In: `Start`, then `Job`s, and `Cancel`s. Out: `Opened` or `Refused`; then `Told`, with what
became of the jobs. When the connection ends, so does the process.
"""

import contextlib
import os
import queue
import signal
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING

from genpipe.messages import one_line
from genpipe.server.jobs import Job, News
from genpipe.spec import ModelSpec
from genpipe.workers.messages import Model

if TYPE_CHECKING:
    from genpipe.server.batches import Batches


@dataclass(frozen=True)
class Start:
    """What a worker is to be.

    Attributes:
        specs: the models that it holds, by name.
        device: that it uses; None is the best there is.
        most: images that go through a network together.
        deterministic: whether images are bitwise the same whatever else is drawn: one at a time, on one thread.
    """

    specs: Mapping[str, ModelSpec]
    device: str | None = None
    most: int = 8
    deterministic: bool = False


@dataclass(frozen=True)
class Cancel:
    """A job is of no more use."""

    id: str


@dataclass(frozen=True)
class Opened:
    """The models are loaded, and one image was drawn with each.

    Attributes:
        models: by name.
        device: that the worker uses.
        cards: CUDA devices of the machine.
        concepts: of the models of the scenes' world, by their names, what they have learned.
    """

    models: Mapping[str, Model]
    device: str
    cards: int
    concepts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Refused:
    """The worker cannot be.

    Attributes:
        reason: why, in one line.
        usage: whether what was asked for is at fault.
    """

    reason: str
    usage: bool


@dataclass(frozen=True)
class Told:
    """What one evaluation brought.

    Attributes:
        news: what became of jobs.
        images: how many were evaluated together.
        gone: ids of the jobs that were cancelled.
    """

    news: tuple[News, ...]
    images: int = 0
    gone: tuple[str, ...] = ()


def main(connection: Connection) -> None:
    """Load the models and draw until the connection ends: what the process runs."""
    # Ctrl-C reaches the whole group; the server says when to stop.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    start = connection.recv()
    try:
        batches, opened = _open(start)
    except (ValueError, OSError, RuntimeError, MemoryError, ImportError) as error:
        connection.send(Refused(one_line(str(error)) or type(error).__name__, isinstance(error, ValueError)))
        return
    connection.send(opened)
    serve(connection, batches)
    os._exit(0)  # what writes files at this moment writes for nobody


def _open(start: Start) -> "tuple[Batches, Opened]":
    import torch
    from PIL import Image

    from genpipe.pipeline import Pipeline
    from genpipe.server.batches import Batches
    from genpipe.workers.described import describe

    if start.deterministic:
        torch.set_num_threads(1)
    pipelines, models = {}, {}
    for name, spec in start.specs.items():
        pipelines[name] = pipeline = Pipeline.from_pretrained(replace(spec, device=start.device or spec.device))
        pipeline.name = name  # what images say of their model is not where it lies
        models[name] = describe(pipeline)
        paints = pipeline.traits.shown is not None
        size = (models[name].defaults[""]["width"], models[name].defaults[""]["height"])
        image = Image.new("RGBA", size) if paints else None  # transparent: all of it is to change
        pipeline("", seed=0, steps=2, image=image, progress=False)
    batches = Batches(pipelines, most=1 if start.deterministic else start.most)
    concepts = {
        name: tuple(pipeline.checkpoint.defaults.get("concepts", ()))
        for name, pipeline in pipelines.items()
        if not pipeline.is_wrapped and pipeline.checkpoint.defaults.get("prompt") == "scenes"
    }
    device = str(next(iter(pipelines.values())).device)
    return batches, Opened(models, device, torch.cuda.device_count(), concepts)


def serve(connection: Connection, batches: "Batches") -> None:
    """Draw what is asked for over a connection, until it ends."""
    inbox: queue.SimpleQueue[Job | Cancel | None] = queue.SimpleQueue()
    # A thread of its own reads, so that whoever sends a large job never waits for an evaluation.
    threading.Thread(target=_listen, args=(connection, inbox), daemon=True).start()
    while True:
        news: list[News] = []
        gone: list[str] = []
        while not inbox.empty() or not (len(batches) or news or gone):
            message = inbox.get()
            if message is None:
                return
            if isinstance(message, Job):
                news += batches.add(message)
            else:
                batches.cancel(message.id)
                gone.append(message.id)
        told, images = batches.tick()
        news += told
        try:
            if news or gone or images:
                connection.send(Told(tuple(news), images, tuple(gone)))
        except OSError:  # nobody listens any more
            return


def _listen(connection: Connection, inbox: "queue.SimpleQueue[Job | Cancel | None]") -> None:
    with contextlib.suppress(EOFError, OSError):
        while True:
            inbox.put(connection.recv())
    inbox.put(None)

"""A worker: a process of its own that holds the models and draws. The server's own process loads no torch.

It is spoken to over a connection. In: `Start`, then tuples of `Job`s, and `Cancel`s. Out: `Opened` or `Refused`; then `Told`, with what
became of the jobs, and `Sized`. When the connection ends, so does the process.
"""

import contextlib
import gc
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING

from genpipe.messages import one_line
from genpipe.server.jobs import Job, News, Stepped
from genpipe.spec import ModelSpec
from genpipe.workers.devices import environment_for
from genpipe.workers.messages import Model

if TYPE_CHECKING:
    from genpipe.models.tokenizer import Tokenizer
    from genpipe.server.batches import Batches

# Seconds that steps without anything to see wait for others: telling each of them takes time from drawing.
PATIENCE = 0.1
# Seconds without work after which sizes are measured where that was given up for work before.
REST = 5.0


@dataclass(frozen=True)
class Start:
    """What a worker is to be.

    Attributes:
        specs: the models that it holds, by name.
        device: that it uses; None is the best there is.
        others: devices of the workers that follow, which have to be there, too.
        most: images that go through a network together; None measures how many.
        deterministic: whether images are bitwise the same whatever else is drawn: one at a time, on one thread.
    """

    specs: Mapping[str, ModelSpec]
    device: str | None = None
    others: tuple[str, ...] = ()
    most: int | None = None
    deterministic: bool = False


@dataclass(frozen=True)
class Cancel:
    """A job is of no more use."""

    id: str


# What comes in; None is the end of the connection.
Inbox = queue.SimpleQueue[tuple[Job, ...] | Cancel | None]
# What goes out; None ends the thread that sends.
Outbox = queue.SimpleQueue["Told | Sized | None"]


@dataclass(frozen=True)
class Opened:
    """The models are loaded, and one image was drawn with each.

    Attributes:
        models: by name.
        device: that the worker uses.
        cards: CUDA devices of the machine.
        concepts: of the models of the scenes' world, by their names, what they have learned.
        tokenizers: of the models' text encoders, by name.
    """

    models: Mapping[str, Model]
    device: str
    cards: int
    concepts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    tokenizers: "Mapping[str, tuple[Tokenizer, ...]]" = field(default_factory=dict)


@dataclass(frozen=True)
class Sized:
    """A worker has found how many images it wants to have at a time."""

    most: int


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
    """What evaluations brought.

    Attributes:
        news: what became of jobs.
        images: how many were evaluated together, each time.
        gone: ids of the jobs that were cancelled.
    """

    news: tuple[News, ...]
    images: tuple[int, ...] = ()
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
    # What is there by now stays, and need not be looked through for garbage again and again.
    gc.collect()
    gc.freeze()
    serve(connection, batches)
    os._exit(0)  # what writes files at this moment writes for nobody


def _open(start: Start) -> "tuple[Batches, Opened]":
    environment, device = environment_for(start.device)
    os.environ.update(environment)
    import torch

    from genpipe.hardware import choose_device
    from genpipe.pipeline import Pipeline
    from genpipe.server.batches import Batches
    from genpipe.server.sizes import Sizes, first_request
    from genpipe.workers.described import describe
    from genpipe.workers.process import SWITCH

    for other in start.others:
        if not environment_for(other)[0]:  # one that needs an environment of its own is not seen from here
            choose_device(other)
    sys.setswitchinterval(SWITCH)
    if start.deterministic:
        torch.set_num_threads(1)
    pipelines, models = {}, {}
    for name, spec in start.specs.items():
        pipelines[name] = pipeline = Pipeline.from_pretrained(replace(spec, device=device or spec.device))
        pipeline.name = name  # what images say of their model is not where it lies
        models[name] = describe(pipeline)
        first = replace(first_request(pipeline), steps=2)
        for state in pipeline.stream([first]):
            latents = state.latents
        pipeline.decode(latents, [first])
    batches = Batches(pipelines, Sizes(pipelines, most=1 if start.deterministic else start.most))
    concepts = {
        name: pipeline.checkpoint.concepts or ()
        for name, pipeline in pipelines.items()
        if not pipeline.is_wrapped and pipeline.checkpoint.defaults.get("prompt") == "scenes"
    }
    used = str(next(iter(pipelines.values())).device)
    tokenizers = {name: pipeline.tokenizers for name, pipeline in pipelines.items() if not pipeline.is_wrapped}
    return batches, Opened(models, used, torch.cuda.device_count(), concepts, tokenizers)


def serve(connection: Connection, batches: "Batches") -> None:
    """Draw what is asked for over a connection, until it ends."""
    inbox: Inbox = queue.SimpleQueue()
    outbox: Outbox = queue.SimpleQueue()
    # A thread of its own reads, so that whoever sends a large job never waits for an evaluation; and one sends, so that no
    # evaluation waits until files have been taken.
    came = threading.Event()
    threading.Thread(target=_listen, args=(connection, inbox, came), daemon=True).start()
    threading.Thread(target=_send, args=(connection, outbox), daemon=True).start()
    try:
        _draw(inbox, outbox, came, batches)
    finally:
        outbox.put(None)


def _draw(inbox: Inbox, outbox: Outbox, came: threading.Event, batches: "Batches") -> None:
    news: list[News] = []
    evaluated: list[int] = []
    told = rest = 0.0
    while True:
        gone: list[str] = []
        if batches.sizes.unknown and not len(batches) and _is_idle(inbox, came, rest):
            found = batches.sizes.measure(lambda: not inbox.empty())
            rest = 0.0 if found else REST
            outbox.put(Sized(batches.sizes.largest))
        while not inbox.empty() or not (len(batches) or news or gone):
            message = inbox.get()
            if message is None:
                return
            if isinstance(message, Cancel):
                batches.cancel(message.id)
                gone.append(message.id)
                continue
            for job in message:
                news += batches.add(job)
        brought, images = batches.tick()
        news += brought
        if images:
            evaluated.append(images)
        late = not len(batches) or time.monotonic() - told > PATIENCE
        if not (news or gone or evaluated) or not (late or gone or any(map(_presses, news))):
            continue
        outbox.put(Told(tuple(news), tuple(evaluated), tuple(gone)))
        news, evaluated, told = [], [], time.monotonic()


def _presses(news: News) -> bool:
    """Whether somebody waits for it: for a file, for what can be seen, to begin at all, or for the place of an image."""
    return not isinstance(news, Stepped) or news.preview is not None or news.step == 1 or news.step >= news.steps - 1


def _is_idle(inbox: Inbox, came: threading.Event, seconds: float) -> bool:
    """Whether nothing comes for so long."""
    came.clear()
    if inbox.empty():
        came.wait(seconds)
    return inbox.empty()


def _send(connection: Connection, outbox: Outbox) -> None:
    with contextlib.suppress(OSError):  # nobody listens any more, which ends the worker, too
        while (message := outbox.get()) is not None:
            connection.send(message)


def _listen(connection: Connection, inbox: Inbox, came: threading.Event) -> None:
    with contextlib.suppress(EOFError, OSError):
        while True:
            inbox.put(connection.recv())
            came.set()
    inbox.put(None)
    came.set()

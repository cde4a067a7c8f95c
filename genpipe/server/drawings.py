"""What clients have asked for, step by step, and the files that are kept for them: in memory, and in nobody's folder."""

import asyncio
import base64
import contextlib
import secrets
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from genpipe.messages import Notice
from genpipe.server.engine import Engine
from genpipe.server.jobs import Drawn, Failed, Job, News, Stepped
from genpipe.server.reading import Asked

# Bytes of finished images that are kept, and for how many seconds.
KEPT_BYTES, KEPT_SECONDS = 256 * 2**20, 3600.0
MEDIA_TYPES = {".png": "image/png", ".jpg": "image/jpeg", ".webp": "image/webp"}

# The name of an event, and what it says, ready for JSON.
Event = tuple[str, dict[str, Any]]


@dataclass
class Image:
    """One image of a drawing.

    Attributes:
        job: what is drawn.
        step, steps: how many steps are done, of how many; 0 of 0 while it waits.
        preview: of the last step, a JPEG file.
        data: the image's file; None until it is done.
        failed: why there is none; None where there may be one.
        warnings: what the person who asked has to know.
    """

    job: Job
    step: int = 0
    steps: int = 0
    preview: bytes | None = None
    data: bytes | None = None
    failed: Failed | None = None
    warnings: tuple[Notice, ...] = ()

    @property
    def done(self) -> bool:
        """Whether nothing more will come of it."""
        return self.data is not None or self.failed is not None


@dataclass(eq=False)
class Drawing:
    """Images that a client asked for together. To be touched by the event loop's thread alone.

    Attributes:
        id: known to nobody who was not told it.
        client: whom it is for.
        images: in the order of their seeds.
        created: when it was asked for, in seconds since 1970.
    """

    id: str
    client: str
    images: list[Image]
    created: float = field(default_factory=time.time)
    _followers: list[asyncio.Queue[Event]] = field(default_factory=list)
    _ended: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self._places = {image.job.id: index for index, image in enumerate(self.images)}
        self._left = len(self.images)

    @property
    def done(self) -> bool:
        """Whether nothing more will come of any image."""
        return self._left == 0

    def state(self) -> dict[str, Any]:
        """Say how far it is, ready for JSON."""
        return {
            "id": self.id,
            "done": self.done,
            "images": [said for index in range(len(self.images)) for _, said in [self._event(index)]],
        }

    async def follow(self) -> AsyncIterator[Event]:
        """Give what has become of each image so far, and then all that becomes of it, until everything is done."""
        queue: asyncio.Queue[Event] = asyncio.Queue()
        self._followers.append(queue)
        try:
            for index in range(len(self.images)):
                queue.put_nowait(self._event(index))
            if self.done:
                queue.put_nowait(("done", {}))
            while True:
                event = await queue.get()
                yield event
                if event[0] == "done":
                    return
        finally:
            self._followers.remove(queue)

    async def wait(self) -> None:
        """Wait until everything is done."""
        await self._ended.wait()

    def hear(self, news: list[News]) -> None:
        """Take up what became of its jobs."""
        for one in news:
            self._take_up(one)

    def _take_up(self, news: News) -> None:
        index = self._places[news.id]
        image = self.images[index]
        self._left -= not isinstance(news, Stepped)
        if isinstance(news, Stepped):
            image.step, image.steps, image.preview = news.step, news.steps, news.preview
        elif isinstance(news, Drawn):
            image.data, image.preview = news.data, None
            image.warnings = tuple(dict.fromkeys((*image.warnings, *news.warnings)))
        else:
            image.failed, image.preview = news, None
        for follower in self._followers:
            follower.put_nowait(self._event(index))
            if self.done:
                follower.put_nowait(("done", {}))
        if self.done:
            self._ended.set()

    def _event(self, index: int) -> Event:
        image = self.images[index]
        # As text: JavaScript rounds numbers of 64 bits.
        said: dict[str, Any] = {"image": index, "seed": str(image.job.request.seed)}
        if image.failed is not None:
            return "failed", {**said, "error": image.failed.reason, "kind": image.failed.kind}
        if image.data is not None:
            name = f"{self.id}-{index}{image.job.suffix}"
            return "image", {
                **said,
                "url": f"/files/{name}",
                "warnings": [{"text": str(each), "form": each.form, "values": each.values} for each in image.warnings],
            }
        if not image.steps:
            return "queued", said
        shown = {} if image.preview is None else {"preview": base64.b64encode(image.preview).decode()}
        return "step", {**said, "step": image.step, "steps": image.steps, **shown}


class Drawings:
    """All drawings that are not done, and those done last.

    Args:
        engine: draws them.
        kept_bytes, kept_seconds: how much is kept of what is done, and for how long.
    """

    def __init__(self, engine: Engine, *, kept_bytes: int = KEPT_BYTES, kept_seconds: float = KEPT_SECONDS) -> None:
        self._engine = engine
        self._kept_bytes, self._kept_seconds = kept_bytes, kept_seconds
        self._drawings: dict[str, Drawing] = {}  # the oldest first

    def begin(self, asked: Asked, client: str, *, previews: bool = False) -> Drawing:
        """Have images drawn.

        Raises:
            QueueFull, Closing: as `Engine.submit`.
        """
        identifier = secrets.token_urlsafe(12).replace("-", "_")
        jobs = [
            Job(
                f"{identifier}-{index}",
                request,
                asked.model,
                client,
                asked.low,
                asked.suffix,
                previews,
                time.monotonic() + asked.seconds,
            )
            for index, request in enumerate(asked.requests)
        ]
        drawing = Drawing(identifier, client, [Image(job, warnings=asked.warnings) for job in jobs])
        loop = asyncio.get_running_loop()

        def listen(news: list[News]) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended, and with it everybody who would hear
                loop.call_soon_threadsafe(drawing.hear, news)

        self._engine.submit(jobs, listen)
        self._prune()
        self._drawings[identifier] = drawing
        return drawing

    def get(self, identifier: str) -> Drawing | None:
        """Give a drawing that is not done, or is still kept."""
        return self._drawings.get(identifier)

    def of(self, client: str) -> list[Drawing]:
        """Give the drawings of a client that are not done, the oldest first."""
        return [one for one in self._drawings.values() if one.client == client and not one.done]

    def file(self, name: str) -> tuple[bytes, str] | None:
        """Give a kept file by its name, and its media type."""
        identifier, _, rest = name.rpartition("-")
        number, _, suffix = rest.partition(".")
        drawing = self._drawings.get(identifier)
        if drawing is None or not (number.isascii() and number.isdecimal()) or int(number[:6]) >= len(drawing.images):
            return None
        image = drawing.images[int(number[:6])]
        if image.data is None or image.job.suffix != f".{suffix}":
            return None
        return image.data, MEDIA_TYPES[image.job.suffix]

    def cancel(self, drawing: Drawing) -> None:
        """Let go of what is not done."""
        for image in drawing.images:
            if not image.done:
                self._engine.cancel(image.job.id)

    def forget(self, drawing: Drawing) -> None:
        """Keep a drawing no longer, whose files were sent to whoever asked."""
        self._drawings.pop(drawing.id, None)

    def _prune(self) -> None:
        """Forget the oldest of what is done, where it is too old or too much."""
        old = time.time() - self._kept_seconds
        done = [drawing for drawing in self._drawings.values() if drawing.done]
        size = sum(len(image.data or b"") for drawing in done for image in drawing.images)
        for drawing in done:
            if drawing.created >= old and size <= self._kept_bytes:
                break
            size -= sum(len(image.data or b"") for image in drawing.images)
            del self._drawings[drawing.id]

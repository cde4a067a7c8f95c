"""What the APIs share: reading bodies, beginning drawings, and waiting for them as long as somebody listens."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from fastapi import Request
from starlette.concurrency import run_in_threadpool

from genpipe.server.drawings import Drawing, Drawings, Event
from genpipe.server.engine import Closing, Engine
from genpipe.server.errors import ApiError
from genpipe.server.limits import Limits
from genpipe.server.queue import QueueFull
from genpipe.server.reading import Asked, read_asked
from genpipe.server.words import notices_of, read_tokens, unknown_in
from genpipe.workers.messages import Model

# Seconds after which a stream says that it is still there.
HEARTBEAT = 15.0
# Characters of the name that a client gives itself.
MOST_NAME = 64


@dataclass(frozen=True)
class Served:
    """A server's parts.

    Attributes:
        engine: draws.
        drawings: what was asked for.
        limits: of requests.
        lora_dir: where LoRAs are that prompts name; None for none.
        log: told what is drawn, prompts and all.
    """

    engine: Engine
    drawings: Drawings
    limits: Limits
    lora_dir: str | None = None
    log: Callable[[Drawing], None] = lambda drawing: None

    @property
    def models(self) -> Mapping[str, Model]:
        """The models, the default one first.

        Raises:
            ApiError: they are not loaded yet.
        """
        if not self.engine.models:
            raise ApiError(503, "the model is still being loaded: try again in a moment", retry_after=2)
        return self.engine.models

    async def begin(
        self, request: Request, values: Mapping[str, Any], *, previews: bool = False, client: str | None = None
    ) -> Drawing:
        """Have drawn what a body says; see `genpipe.server.reading.read_asked` for what it may say.

        Raises:
            ValueError: it says what cannot be drawn.
            ApiError: there is no room, or the server ends.
        """
        asked = await run_in_threadpool(self._read, values)
        try:
            drawing = self.drawings.begin(asked, client_of(request, client), previews=previews)
        except QueueFull as error:
            raise ApiError(429, str(error), retry_after=self.engine.retry_after(len(asked.requests))) from None
        except Closing as error:
            raise ApiError(503, str(error), retry_after=10) from None
        self.log(drawing)
        return drawing

    def _read(self, values: Mapping[str, Any]) -> Asked:
        asked = read_asked(values, self.models, self.limits, lora_dir=self.lora_dir)
        learned = self.engine.concepts.get(asked.model)
        said = () if learned is None else notices_of(asked.requests[0], learned)
        return replace(asked, warnings=(*asked.warnings, *said))

    def tokens(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Say what a model reads of the prompt of a body: see `read_tokens`; "unknown" are the words it has not learned.

        Raises:
            ValueError: it says what cannot be drawn.
        """
        asked = read_asked(values, self.models, self.limits, lora_dir=self.lora_dir)
        request, learned = asked.requests[0], self.engine.concepts.get(asked.model)
        read = read_tokens(
            request.prompt,
            self.engine.tokenizers.get(asked.model, ()),
            seed=request.seed,
            steps=request.steps,
            syntax=request.prompt_syntax,
        )
        return {**read, "unknown": {} if learned is None else unknown_in(request.prompt, learned)}

    async def events(self, request: Request, drawing: Drawing, *, cancels: bool) -> AsyncIterator[Event | None]:
        """Give the events of a drawing while the client listens, and None now and then where nothing happens.

        Args:
            cancels: whether what is not done is let go of when the client stops listening.
        """
        gone = asyncio.ensure_future(_disconnected(request))
        following = drawing.follow()
        following_next: asyncio.Future[Event] | None = None
        try:
            while True:
                if following_next is None:
                    following_next = asyncio.ensure_future(anext(following))
                done, _ = await asyncio.wait(
                    {gone, following_next}, timeout=HEARTBEAT, return_when=asyncio.FIRST_COMPLETED
                )
                if following_next in done:
                    event, following_next = following_next.result(), None
                    yield event
                    if event[0] == "done":
                        return
                elif gone in done:
                    return
                else:
                    yield None
        finally:
            gone.cancel()
            if following_next is not None:
                following_next.cancel()
            if cancels:
                self.drawings.cancel(drawing)

    async def finished(self, request: Request, drawing: Drawing) -> None:
        """Wait for all images of a drawing; they are let go of where the client goes away.

        Raises:
            ApiError: there is no image, and why.
        """
        waiting = {asyncio.ensure_future(one) for one in (_disconnected(request), drawing.wait())}
        try:
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for one in waiting:
                one.cancel()
            self.drawings.cancel(drawing)
        if not drawing.done:
            raise ApiError(499, "the client stopped listening")
        for image in drawing.images:
            if image.failed is not None:
                status = {"refused": 400, "late": 504, "cancelled": 409}.get(image.failed.kind, 500)
                raise ApiError(status, image.failed.reason)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def client_of(request: Request, name: str | None = None) -> str:
    """Say whom a request is from, as far as it says so: clients take turns by it, and are trusted with nothing more."""
    name = name or request.headers.get("x-client")
    host = request.client.host if request.client else ""
    return f"{host} {name[:MOST_NAME]}" if name else host


async def read_json(request: Request) -> dict[str, Any]:
    """Read a body that is a JSON object.

    Raises:
        ValueError: it is none.
    """
    try:
        values = json.loads(await request.body() or b"{}")
    except (ValueError, RecursionError):  # UnicodeDecodeError is a ValueError
        raise ValueError("the body is not JSON in UTF-8") from None
    if not isinstance(values, dict):
        raise ValueError('the body must be a JSON object, as in {"prompt": "pirate ship"}')
    return values


def sse(name: str, said: Mapping[str, Any]) -> bytes:
    """Write a server-sent event."""
    return f"event: {name}\ndata: {json.dumps(said)}\n\n".encode()

"""The server's own API: a body asks for images, and every step of them can be followed."""

from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, Request, Response
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse, StreamingResponse

from genpipe.fields import defaults_of, settings_of
from genpipe.prompts.styles import presets
from genpipe.request import Request as Drawn
from genpipe.sampling.names import SAMPLERS
from genpipe.server.drawings import Drawing
from genpipe.server.errors import ApiError
from genpipe.server.reading import read_image, settings_in
from genpipe.server.schema import body, drawing_schema, schema_of
from genpipe.server.served import Served, read_json, sse


def api_router(served: Served) -> APIRouter:
    """Make the routes under /api."""
    router = APIRouter(prefix="/api", tags=["genpipe"])

    def found(identifier: str) -> Drawing:
        drawing = served.drawings.get(identifier)
        if drawing is None:
            raise ApiError(404, "there is no such drawing, or it is no longer kept: ask for it again")
        return drawing

    def stream(request: Request, drawing: Drawing, *, cancels: bool) -> StreamingResponse:
        async def lines() -> AsyncIterator[bytes]:
            yield sse("drawing", {"id": drawing.id})
            async for event in served.events(request, drawing, cancels=cancels):
                yield b": still here\n\n" if event is None else sse(*event)

        return StreamingResponse(lines(), media_type="text/event-stream", headers={"Cache-Control": "no-store"})

    @router.post(
        "/drawings",
        status_code=202,
        openapi_extra=body(drawing_schema(), {"prompt": "pirate ship", "n": 2, "seed": 7}),
        summary="Have images drawn",
    )
    async def begin(request: Request) -> Response:
        """With the header `Accept: text/event-stream` the answer is every event up to the images, and what is not done when
        you stop listening is let go of. Else it is an id, to follow or to ask after, and the images are drawn in any case."""
        streams = "text/event-stream" in request.headers.get("accept", "")
        values = await read_json(request)
        previews = values.pop("previews", True)
        if not isinstance(previews, bool):
            raise ValueError("previews must be true or false")
        drawing = await served.begin(request, values, previews=previews)
        if streams:
            return stream(request, drawing, cancels=True)
        return JSONResponse(drawing.state(), 202, {"Location": f"/api/drawings/{drawing.id}"})

    @router.get("/drawings/{identifier}", summary="Ask how far it is")
    async def state(identifier: str) -> dict[str, Any]:
        return found(identifier).state()

    @router.get("/drawings/{identifier}/events", summary="Follow every step")
    async def events(request: Request, identifier: str) -> StreamingResponse:
        """Server-sent events: `queued`, `step` with a preview, `image` with the address of the file, `failed`, and `done`."""
        return stream(request, found(identifier), cancels=False)

    @router.delete("/drawings/{identifier}", summary="Let go of what is not done")
    async def cancel(identifier: str) -> dict[str, Any]:
        drawing = found(identifier)
        served.drawings.cancel(drawing)
        return drawing.state()

    @router.get("/models", summary="List the models")
    async def models() -> list[dict[str, Any]]:
        """The first draws where a request names none; `defaults` hold for the settings that a request leaves out."""
        return [
            {"name": name, "defaults": model.defaults[""], "multiple_of": model.traits.factor}
            for name, model in served.models.items()
        ]

    @router.get("/settings", summary="List the settings of an image")
    async def settings() -> dict[str, Any]:
        defaults = defaults_of(Drawn)
        fields = {
            name: {"help": described.help, "schema": schema_of(described.kind), "default": plain(defaults.get(name))}
            for name, described in settings_of(Drawn).items()
        }
        styles = {name: style._asdict() for name, style in presets().items()}
        return {"fields": fields, "samplers": list(SAMPLERS), "styles": styles, "limits": vars(served.limits)}

    @router.post(
        "/tokens", openapi_extra=body(drawing_schema(), {"prompt": "a (red:1.3) castle"}), summary="Read a prompt"
    )
    async def tokens(request: Request) -> dict[str, Any]:
        """The tokens that the model would read of this drawing's prompt, as `genpipe tokens` lists them, how many have room,
        and the words that the model has not learned, each with known ones that come near. Nothing is drawn."""
        return await run_in_threadpool(served.tokens, await read_json(request))

    @router.post("/read", summary="Read what made an image")
    async def read(request: Request) -> dict[str, Any]:
        """The body is `{"image": base64}`. The answer has the settings that its file says, the program that wrote it, and
        what cannot be taken from it, by that program's names."""
        sent = (await read_json(request)).get("image")
        made = settings_in(await run_in_threadpool(read_image, "image", sent, served.limits))
        settings = {name: plain(value) for name, value in made.request.items()}
        return {"settings": settings, "program": made.program, "unread": made.unread}

    return router


def plain(value: Any) -> Any:
    """Give a value as JSON can hold it without loss for JavaScript; what has no such form is None."""
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 2**53:
        return str(value)
    return value if isinstance(value, str | int | float | list) else None

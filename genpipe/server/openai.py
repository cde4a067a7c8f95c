"""OpenAI's API of images: what its official clients call."""

import base64
import io
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any

from fastapi import APIRouter, Request, Response
from PIL import Image, ImageChops
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile
from starlette.responses import JSONResponse, StreamingResponse

from genpipe.fields import Choice, Flag, Text, Whole
from genpipe.images import encode_image
from genpipe.messages import quoted
from genpipe.request import Request as Drawn
from genpipe.server.drawings import Drawing
from genpipe.server.drawings import Image as Kept
from genpipe.server.errors import ApiError
from genpipe.server.reading import read_image, settings_in
from genpipe.server.schema import body, drawing_schema, schema_of
from genpipe.server.served import Served, read_json, sse
from genpipe.sizes import parse_size

# How much a variation changes, where the request does not say.
VARIATION = 0.6
# How much is left out, by the word for how good an image is to be.
_SPEEDS = {"low": "draft", "medium": "balanced"}
_KINDS = {
    "size": Text(),
    "quality": Choice(("auto", "low", "medium", "high", "standard", "hd")),
    "response_format": Choice(("b64_json", "url")),
    "output_format": Choice(("png", "jpeg", "webp")),
    "output_compression": Whole(100, 100, "files are not made smaller here: leave it out"),
    "background": Choice(("auto", "opaque")),
    "moderation": Choice(("auto", "low")),
    "stream": Flag(),
    "partial_images": Whole(0, 3, "it is how many are sent before each image is done"),
    "user": Text(),
    "safety_identifier": Text(),
}


def openai_router(served: Served) -> APIRouter:
    """Make the routes under /v1."""
    router = APIRouter(prefix="/v1", tags=["OpenAI"])
    schema = drawing_schema()
    schema["properties"] |= {name: schema_of(kind) for name, kind in _KINDS.items()}

    async def answer(request: Request, values: dict[str, Any], event: str) -> Response:
        said, values = _split(values)
        streams = said.get("stream", False)
        client = said.get("safety_identifier") or said.get("user")
        partial = said.get("partial_images", 0) if streams else 0
        drawing = await served.begin(request, values, previews=partial > 0, client=client)
        if streams:
            lines = _streamed(served, request, drawing, said, partial, event)
            return StreamingResponse(lines, media_type="text/event-stream", headers={"Cache-Control": "no-store"})
        await served.finished(request, drawing)
        base = str(request.base_url).rstrip("/")
        data = [_image(drawing, index, said, base) for index in range(len(drawing.images))]
        if said.get("response_format") != "url":
            served.drawings.forget(drawing)
        return JSONResponse({"created": int(drawing.created), "data": data, **_form(drawing.images[0], said)})

    @router.post(
        "/images/generations", openapi_extra=body(schema, {"prompt": "pirate ship"}), summary="Draw images of a prompt"
    )
    async def generations(request: Request) -> Response:
        """Beside OpenAI's parameters it takes every setting of `/api/drawings` (`extra_body` in the Python client)."""
        return await answer(request, await read_json(request), "image_generation")

    @router.post("/images/edits", summary="Change an image, or the part of it where a mask is transparent")
    async def edits(request: Request) -> Response:
        values, files = await _form_of(request)
        image, mask = _one(files, "image"), files.pop("mask", [None])[0]
        _no_other(files)
        values["image"] = await run_in_threadpool(read_image, "image", image, served.limits)
        if mask is not None:
            values["mask"] = await run_in_threadpool(_changes, mask, served)
        return await answer(request, values, "image_edit")

    @router.post("/images/variations", summary="Draw others like an image")
    async def variations(request: Request) -> Response:
        """What is drawn is what the image's file says, if genpipe or A1111 wrote it."""
        values, files = await _form_of(request)
        image = await run_in_threadpool(read_image, "image", _one(files, "image"), served.limits)
        _no_other(files)
        try:
            made = settings_in(image).request
        except ValueError:
            made = {}
        said = {name: made[name] for name in ("prompt", "negative_prompt", "prompt_syntax") if name in made}
        return await answer(
            request, {"prompt": "", "strength": VARIATION, **said, **values, "image": image}, "image_edit"
        )

    @router.get("/models", summary="List the models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [_model(name) for name in served.models]}

    @router.get("/models/{name}", summary="Describe a model")
    async def model(name: str) -> dict[str, Any]:
        if name not in served.models:
            raise ApiError(404, f"there is no model {quoted(name)} here: there is {', '.join(served.models)}")
        return _model(name)

    return router


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "genpipe"}


def _split(values: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """OpenAI's own parameters, checked, and what is read as everywhere, in our words."""
    said: dict[str, Any] = {}
    rest: dict[str, Any] = {}
    for name, value in values.items():
        if name not in _KINDS:
            rest[name] = value
        elif value is not None:
            kind = _KINDS[name]
            said[name] = kind.check(name, kind.read(name, value) if isinstance(value, str) else value)
    if said.get("size", "auto") != "auto":
        rest["width"], rest["height"] = parse_size(said["size"])
    if said.get("quality") in _SPEEDS:
        rest.setdefault("speed", _SPEEDS[said["quality"]])
    rest["format"] = said.get("output_format", "png")
    return said, rest


def _form(image: Kept, said: Mapping[str, Any]) -> dict[str, Any]:
    request: Drawn = image.job.request
    return {
        "size": f"{request.width}x{request.height}",
        "quality": said.get("quality", "auto"),
        "background": "opaque",
        "output_format": said.get("output_format", "png"),
    }


def _image(drawing: Drawing, index: int, said: Mapping[str, Any], base: str) -> dict[str, Any]:
    image = drawing.images[index]
    assert image.data is not None
    if said.get("response_format") == "url":
        return {"url": f"{base}/files/{drawing.id}-{index}{image.job.suffix}"}
    return {"b64_json": base64.b64encode(image.data).decode()}


async def _streamed(
    served: Served, request: Request, drawing: Drawing, said: Mapping[str, Any], partial: int, event: str
) -> AsyncIterator[bytes]:
    """The events of OpenAI's streams: some images before each is done, then it."""
    sent = dict.fromkeys(range(len(drawing.images)), 0)
    async for each in served.events(request, drawing, cancels=True):
        if each is None:
            yield b": still here\n\n"
            continue
        name, news = each
        if name == "done":
            return
        image = drawing.images[index := news["image"]]
        form = {**_form(image, said), "created_at": int(time.time())}
        if name == "step" and image.preview is not None:
            # Evenly over the steps, the last of which makes the image itself.
            if sent[index] < partial and news["step"] * (partial + 1) >= news["steps"] * (sent[index] + 1):
                number, sent[index] = sent[index], sent[index] + 1
                data = await run_in_threadpool(_enlarged, image.preview, image.job.request, image.job.suffix)
                kind = f"{event}.partial_image"
                yield sse(kind, {"type": kind, "b64_json": _text(data), "partial_image_index": number, **form})
        elif name == "image" and image.data is not None:
            tokens = {"image_tokens": 0, "text_tokens": 0}
            usage = {"input_tokens": 0, "output_tokens": 0, "total_tokens": 0, "input_tokens_details": tokens}
            kind = f"{event}.completed"
            yield sse(kind, {"type": kind, "b64_json": _text(image.data), "usage": usage, **form})
        elif name == "failed":
            error = {"message": news["error"], "type": "server_error", "param": None, "code": None}
            yield sse("error", {"type": "error", "error": error})
            return


def _enlarged(preview: bytes, request: Drawn, suffix: str) -> bytes:
    with Image.open(io.BytesIO(preview)) as small:
        large = small.convert("RGB").resize((request.width, request.height), Image.Resampling.BICUBIC)
    return encode_image(large, suffix)


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()


async def _form_of(request: Request) -> tuple[dict[str, Any], dict[str, list[bytes]]]:
    """The texts and the files of a multipart body; `image[]` is `image`."""
    values: dict[str, Any] = {}
    files: dict[str, list[bytes]] = {}
    async with request.form(max_files=4, max_fields=64) as form:
        for name, value in form.multi_items():
            if isinstance(value, UploadFile):
                files.setdefault(name.removesuffix("[]"), []).append(await value.read())
            elif name in values:
                raise ValueError(f"{quoted(name)} is there twice: leave one out")
            else:
                values[name] = value
    return values, files


def _one(files: dict[str, list[bytes]], name: str) -> bytes:
    found = files.pop(name, [])
    if len(found) != 1:
        raise ValueError(f"the request has {len(found)} files called {name}: give one")
    return found[0]


def _no_other(files: Mapping[str, Any]) -> None:
    if files:
        raise ValueError(f"a request has no file {quoted(next(iter(files)))}: it has image and mask")


def _changes(mask: bytes, served: Served) -> Image.Image:
    """OpenAI's mask, transparent where the image is to change, as ours, white there."""
    read = read_image("mask", mask, served.limits)
    if read.mode != "RGBA":
        raise ValueError("mask must be transparent where the image is to change, and it is nowhere")
    return ImageChops.invert(read.getchannel("A"))

"""What people write first: diffusers' pipeline behind an endpoint, with a lock around it."""

import asyncio
import base64
import io
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from fastapi import FastAPI, Response
from fastapi.responses import StreamingResponse

from genpipe.embedded import EMBEDDED
from genpipe.hardware import choose_device, choose_dtype
from scripts.benchmark.serving import listening


@contextmanager
def locked_diffusers() -> Iterator[str]:
    """Serve the embedded model by diffusers, and give the address; it answers as far as `serving.draw` asks."""
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline

    device = choose_device()
    pipe: Any = StableDiffusionPipeline.from_pretrained(
        EMBEDDED, torch_dtype=choose_dtype(None, device), safety_checker=None
    ).to(device)
    pipe.set_progress_bar_config(disable=True)
    usual = json.loads((EMBEDDED / "genpipe.json").read_text())
    settings = {"num_inference_steps": usual["steps"], "guidance_scale": usual["guidance_scale"]}
    settings |= {"height": usual["height"], "width": usual["width"]}
    app, lock, files = FastAPI(), asyncio.Lock(), dict[str, bytes]()

    def drawn(body: dict[str, Any]) -> bytes:
        generator = torch.Generator("cpu").manual_seed(int(body["seed"]))
        data = io.BytesIO()
        pipe(body["prompt"], generator=generator, **settings).images[0].save(data, "PNG")
        return data.getvalue()

    @app.post("/api/drawings")
    def drawing(body: dict[str, Any]) -> StreamingResponse:
        async def events() -> AsyncIterator[bytes]:
            async with lock:
                yield b"event: step\ndata: {}\n\n"
                data = await asyncio.to_thread(drawn, body)
            name = base64.urlsafe_b64encode(body["seed"].to_bytes(8, "big")).decode()
            files[name] = data
            yield f"event: image\ndata: {json.dumps({'url': f'/files/{name}'})}\n\n".encode()

        return StreamingResponse(events(), media_type="text/event-stream")

    @app.get("/files/{name}")
    def file(name: str) -> Response:
        return Response(files.pop(name), media_type="image/png")

    with listening(app) as url:
        yield url

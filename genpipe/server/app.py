"""The web application: the APIs, the page, and what operators ask."""

import json
import logging
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import fastapi_offline
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException
from starlette.responses import FileResponse
from starlette.types import ASGIApp

import genpipe
from genpipe.server.api import api_router
from genpipe.server.drawings import Drawing, Drawings
from genpipe.server.engine import Engine
from genpipe.server.errors import ApiError, error_response
from genpipe.server.guard import Guard
from genpipe.server.limits import Limits
from genpipe.server.openai import openai_router
from genpipe.server.sdapi import sdapi_router
from genpipe.server.served import Served

_log = logging.getLogger("genpipe.server")
PAGE = Path(__file__).with_name("page")
# The scripts of the page at /docs, which otherwise come from a CDN.
_DOCS = Path(fastapi_offline.__file__).with_name("static")
# What the page may load: its own parts alone.
_POLICY = "default-src 'self'; img-src 'self' blob: data:; style-src 'self'; frame-ancestors 'none'; base-uri 'none'"


def create_app(
    engine: Engine,
    *,
    limits: Limits | None = None,
    lora_dir: str | None = None,
    key: str | None = None,
    hosts: tuple[str, ...] = (),
    origins: tuple[str, ...] = (),
    json_log: bool = False,
    log_prompts: bool = False,
) -> ASGIApp:
    """Make the application that serves an engine.

    Args:
        engine: draws; whoever opened it closes it.
        limits: of requests; None are the usual ones.
        lora_dir: where LoRAs are that prompts name; None for none.
        key: that clients have to know; None lets everybody in.
        hosts: names that the server is called by beside its addresses and the machine's name.
        origins: of other pages that may speak to the server.
        json_log: log a JSON object per request; else a line.
        log_prompts: log the prompts of each drawing, too.
    """
    limits = Limits() if limits is None else limits
    served = Served(engine, Drawings(engine), limits, lora_dir)
    if log_prompts:
        served = replace(served, log=partial(_log_prompts, json_log=json_log))
    app = FastAPI(title="genpipe", version=genpipe.__version__, docs_url=None, redoc_url=None)
    app.include_router(api_router(served))
    app.include_router(openai_router(served))
    app.include_router(sdapi_router(served))
    _answer_errors(app)
    _add_page(app)

    @app.get("/files/{name}", tags=["genpipe"], summary="Fetch an image")
    async def file(name: str) -> Response:
        """Names are told to those who asked for the images, and to nobody else."""
        found = served.drawings.file(name)
        if found is None:
            raise ApiError(404, "there is no such file, or it is no longer kept: ask for the image again")
        return Response(found[0], media_type=found[1], headers={"Cache-Control": "private, immutable, max-age=3600"})

    @app.get("/healthz", tags=["operations"], summary="Whether the server lives")
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @app.get(
        "/readyz", tags=["operations"], summary="Whether images are drawn: the models are loaded, and have drawn one"
    )
    async def readyz() -> dict[str, str]:
        if not engine.ready:
            raise ApiError(503, "the model is still being loaded, or the server ends", retry_after=2)
        return {"status": "ready"}

    @app.get("/metrics", tags=["operations"], summary="What Prometheus reads")
    async def metrics() -> Response:
        return Response(engine.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    guarded: ASGIApp = app
    if origins:
        from starlette.middleware.cors import CORSMiddleware

        headers = ["Authorization", "Content-Type", "X-Api-Key", "X-Client"]
        guarded = CORSMiddleware(
            app, allow_origins=origins, allow_methods=["GET", "POST", "DELETE"], allow_headers=headers
        )
    return Guard(guarded, key=key, hosts=hosts, origins=origins, body=limits.body, json_log=json_log)


def _log_prompts(drawing: Drawing, *, json_log: bool) -> None:
    requests = [image.job.request for image in drawing.images]
    first = requests[0]
    said = {
        "drawing": drawing.id,
        "client": drawing.client,
        "images": len(requests),
        "model": drawing.images[0].job.model,
    }
    said |= {"prompt": first.prompt, "negative_prompt": first.negative_prompt}
    _log.info(json.dumps(said) if json_log else " ".join(f"{name}={value!a}" for name, value in said.items()))


def _answer_errors(app: FastAPI) -> None:
    @app.exception_handler(ApiError)
    async def api_error(request: Request, error: ApiError) -> Response:
        return error_response(request.url.path, error)

    @app.exception_handler(ValueError)
    async def value_error(request: Request, error: ValueError) -> Response:
        return error_response(request.url.path, ApiError(400, str(error)))

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> Response:
        return error_response(request.url.path, ApiError(error.status_code, str(error.detail)))

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        return error_response(request.url.path, ApiError(400, "the request cannot be read: see /docs"))

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> Response:
        return error_response(request.url.path, ApiError(500, "the server failed: its log says more"))


def _add_page(app: FastAPI) -> None:
    app.mount("/page", StaticFiles(directory=PAGE), name="page")
    app.mount("/static-offline-docs", StaticFiles(directory=_DOCS), name="docs")

    @app.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        return FileResponse(
            PAGE / "index.html", headers={"Content-Security-Policy": _POLICY, "Cache-Control": "no-cache"}
        )

    @app.get("/favicon.ico", include_in_schema=False)
    async def icon() -> FileResponse:
        return FileResponse(PAGE / "icon.svg", media_type="image/svg+xml")

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Any:
        return get_swagger_ui_html(
            openapi_url="/openapi.json",
            title="genpipe",
            swagger_js_url="/static-offline-docs/swagger-ui-bundle.js",
            swagger_css_url="/static-offline-docs/swagger-ui.css",
            swagger_favicon_url="/favicon.ico",
        )

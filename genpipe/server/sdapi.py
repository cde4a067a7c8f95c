"""The HTTP API of A1111's web UI, for the programs that speak to one: as far as genpipe has what it asks for."""

import base64
import json
import time
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request
from PIL import ImageChops
from starlette.concurrency import run_in_threadpool

from genpipe.dialects.a1111 import UPSCALERS, parameters_text, sampler_label
from genpipe.dialects.sdapi import read_body
from genpipe.prompts.styles import apply_styles, presets
from genpipe.sampling.names import SOLVERS, SPACINGS
from genpipe.server.drawings import Drawing
from genpipe.server.reading import read_image, settings_in
from genpipe.server.schema import body
from genpipe.server.served import Served, client_of, read_json

# Clients whose choice of a model is remembered.
MOST_CHOICES = 1000
_PROMPT = {"type": "object", "properties": {"prompt": {"type": "string"}}, "additionalProperties": True}


def sdapi_router(served: Served) -> APIRouter:
    """Make the routes under /sdapi/v1."""
    router = APIRouter(prefix="/sdapi/v1", tags=["A1111"])
    chosen: dict[str, str] = {}

    async def draw(request: Request, values: dict[str, Any]) -> dict[str, Any]:
        given, styles, lines = read_body(values)
        given["prompt"] = given.get("prompt", "")
        if styles:
            given["prompt"], given["negative_prompt"] = apply_styles(
                given["prompt"], given.get("negative_prompt", ""), styles, presets()
            )
        if values.get("inpainting_mask_invert") and given.get("mask") is not None:
            given["mask"] = ImageChops.invert(
                (await run_in_threadpool(read_image, "mask", given["mask"], served.limits)).convert("L")
            )
        client = client_of(request)
        if client in chosen:
            given.setdefault("model", chosen[client])
        drawing = await served.begin(request, given, previews=True)
        await served.finished(request, drawing)
        shown = {name: value for name, value in values.items() if name not in ("init_images", "mask")}
        images = [base64.b64encode(image.data or b"").decode() for image in drawing.images]
        served.drawings.forget(drawing)
        return {"images": images, "parameters": shown, "info": json.dumps(_info(drawing, lines))}

    @router.post("/txt2img", openapi_extra=body(_PROMPT, {"prompt": "pirate ship", "steps": 20}))
    async def txt2img(request: Request) -> dict[str, Any]:
        values = await read_json(request)
        if values.get("init_images"):
            raise ValueError("txt2img takes no init_images: use img2img")
        return await draw(request, values)

    @router.post("/img2img", openapi_extra=body(_PROMPT, {"prompt": "pirate ship", "init_images": ["…"]}))
    async def img2img(request: Request) -> dict[str, Any]:
        values = await read_json(request)
        if not values.get("init_images"):
            raise ValueError("img2img begins from an image: give it as init_images")
        return await draw(request, values)

    @router.get("/progress")
    async def progress(request: Request) -> dict[str, Any]:
        """Tells of the oldest drawing of the client that asks."""
        mine = served.drawings.of(client_of(request))
        state = {"skipped": False, "interrupted": False, "stopping_generation": False, "job": "", "job_count": 0}
        state |= {"job_timestamp": "0", "job_no": 0, "sampling_step": 0, "sampling_steps": 0}
        if not mine:
            return {"progress": 0.0, "eta_relative": 0.0, "state": state, "current_image": None, "textinfo": None}
        images = mine[0].images
        shares = [1.0 if image.done else image.step / max(1, image.steps) for image in images]
        share = sum(shares) / len(shares)
        running = next((image for image in images if image.steps and not image.done), images[0])
        elapsed = time.time() - mine[0].created
        state |= {"job": mine[0].id, "job_count": len(images), "job_no": sum(image.done for image in images)}
        state |= {"sampling_step": running.step, "sampling_steps": running.steps}
        preview = None if running.preview is None else base64.b64encode(running.preview).decode()
        eta = elapsed / share - elapsed if share else 0.0
        return {"progress": share, "eta_relative": eta, "state": state, "current_image": preview, "textinfo": None}

    @router.post("/interrupt")
    @router.post("/skip")
    async def interrupt(request: Request) -> dict[str, Any]:
        """Lets go of the drawings of the client that asks, and of nobody else's."""
        for drawing in served.drawings.of(client_of(request)):
            served.drawings.cancel(drawing)
        return {}

    @router.post("/png-info")
    async def png_info(request: Request) -> dict[str, Any]:
        image = await run_in_threadpool(read_image, "image", (await read_json(request)).get("image"), served.limits)
        texts = {key: text for key, text in image.info.items() if isinstance(text, str)}
        try:
            settings = settings_in(image).request
        except ValueError:
            settings = {}
        return {"info": texts.get("parameters", ""), "items": texts, "parameters": settings}

    @router.get("/options")
    async def options(request: Request) -> dict[str, Any]:
        name = chosen.get(client_of(request), next(iter(served.models)))
        return {"sd_model_checkpoint": name, "samples_format": "png", "CLIP_stop_at_last_layers": 1}

    @router.post("/options")
    async def set_options(request: Request) -> None:
        """Chooses the model of the client that asks."""
        values = await read_json(request)
        name = values.pop("sd_model_checkpoint", None)
        if values:
            raise ValueError(f"the options {', '.join(sorted(values))} cannot be changed here: sd_model_checkpoint can")
        if name not in served.models:
            raise ValueError(f"there is no such model here: there is {', '.join(served.models)}")
        if len(chosen) >= MOST_CHOICES:
            chosen.pop(next(iter(chosen)))
        chosen[client_of(request)] = name

    @router.get("/samplers")
    async def samplers() -> list[dict[str, Any]]:
        return [{"name": sampler_label(name), "aliases": [name], "options": {}} for name in SOLVERS]

    @router.get("/schedulers")
    async def schedulers() -> list[dict[str, Any]]:
        rows = [{"name": "automatic", "label": "Automatic"}]
        rows += [{"name": name, "label": spacing.a1111} for name, spacing in SPACINGS.items()]
        return [{**row, "aliases": None, "default_rho": -1.0, "need_inner_model": False} for row in rows]

    @router.get("/sd-models")
    async def models() -> list[dict[str, Any]]:
        return [
            {"title": name, "model_name": name, "hash": None, "sha256": None, "filename": name, "config": None}
            for name in served.models
        ]

    @router.get("/loras")
    async def loras() -> list[dict[str, Any]]:
        return [{"name": name, "alias": name, "path": name, "metadata": {}} for name in lora_names(served.lora_dir)]

    @router.get("/prompt-styles")
    async def styles() -> list[dict[str, Any]]:
        return [{"name": name, **style._asdict()} for name, style in presets().items()]

    @router.get("/upscalers")
    async def upscalers() -> list[dict[str, Any]]:
        none = {"model_name": None, "model_path": None, "model_url": None, "scale": 4}
        return [{"name": UPSCALERS["pixels"], **none}]

    @router.get("/latent-upscale-modes")
    async def latent_upscalers() -> list[dict[str, Any]]:
        return [{"name": UPSCALERS["latents"]}]

    def nothing(path: str, value: Any) -> None:
        router.add_api_route(f"/{path}", lambda: value, methods=["GET"], summary="Nothing of the kind is here")

    for path in ("sd-vae", "hypernetworks", "face-restorers", "realesrgan-models"):
        nothing(path, [])
    nothing("scripts", {"txt2img": [], "img2img": []})
    nothing("embeddings", {"loaded": {}, "skipped": {}})
    nothing("cmd-flags", {})
    return router


def lora_names(folder: str | None) -> list[str]:
    """Name the LoRAs that prompts can name."""
    if folder is None:
        return []
    return sorted(path.stem for path in Path(folder).expanduser().glob("*.safetensors"))


def _info(drawing: Drawing, lines: list[str]) -> dict[str, Any]:
    """What A1111 says beside the images; what is not done as was asked stands under "extra_generation_params"."""
    requests = [image.job.request for image in drawing.images]
    first, model = requests[0], drawing.images[0].job.model
    warnings = list(dict.fromkeys([*lines, *(str(each) for image in drawing.images for each in image.warnings)]))
    return {
        "prompt": first.prompt,
        "all_prompts": [request.prompt for request in requests],
        "negative_prompt": first.negative_prompt,
        "all_negative_prompts": [request.negative_prompt for request in requests],
        "seed": first.seed,
        "all_seeds": [request.seed for request in requests],
        "width": first.width,
        "height": first.height,
        "sampler_name": None if first.sampler is None else sampler_label(first.sampler),
        "cfg_scale": first.guidance_scale,
        "steps": first.steps,
        "batch_size": len(requests),
        "denoising_strength": first.strength,
        "sd_model_name": model,
        "clip_skip": first.clip_skip + 1,
        "infotexts": [parameters_text(request, model) for request in requests],
        "extra_generation_params": {"warnings": warnings} if warnings else {},
    }

"""webuiapi, a client of A1111's web UI, draws with this server."""

import json
import threading
import time
from typing import Any
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest
from PIL import Image

from genpipe.dialects.sdapi import read_body
from genpipe.pipeline import Pipeline
from genpipe.prompts.styles import presets
from tests.pipeline.drawing import difference
from tests.server.conftest import encoded

webuiapi = pytest.importorskip("webuiapi")
SMALL: dict[str, Any] = {"steps": 3, "cfg_scale": 4.0, "width": 32, "height": 32}


@pytest.fixture
def api(url: str) -> Any:
    return webuiapi.WebUIApi(baseurl=f"{url}/sdapi/v1", sampler="DDIM")


def test_txt2img(api: Any, pipe: Pipeline) -> None:
    result = api.txt2img(prompt="a red cat", negative_prompt="fog", seed=5, n_iter=2, sampler_name="Euler a", **SMALL)
    settings: Any = {
        "steps": 3,
        "guidance_scale": 4.0,
        "sampler": "euler_a",
        "negative_prompt": "fog",
        "progress": False,
    }
    for ours, theirs in zip(result.images, pipe("a red cat", n=2, seed=5, **settings), strict=True):
        assert difference(ours, theirs) <= 2
    assert result.info["all_seeds"] == [5, 6] and "Steps: 3, Sampler: Euler a" in result.info["infotexts"][0]
    assert "parameters" in result.images[0].info


def test_img2img_with_a_mask(api: Any, pipe: Pipeline) -> None:
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8))
    mask = Image.new("L", (32, 32))
    mask.paste(255, (8, 8, 24, 24))
    given: Any = {"prompt": "a dog", "seed": 3, "denoising_strength": 0.7, **SMALL}
    result = api.img2img(images=[image], mask_image=mask, inpaint_full_res=False, **given)
    settings: Any = {"steps": 3, "guidance_scale": 4.0, "sampler": "ddim", "strength": 0.7, "progress": False}
    expected = pipe("a dog", seed=3, image=image, mask=mask, mask_blur=4, **settings)
    assert difference(result.image, expected) <= 2
    inverted = api.img2img(images=[image], mask_image=mask, inpainting_mask_invert=1, **given)
    assert np.array_equal(np.asarray(inverted.image)[12:20, 12:20], np.asarray(image)[12:20, 12:20])
    assert sorted(inverted.info["extra_generation_params"]["warnings"]) == [
        "inpaint_full_res is not available: the image is changed at its own size",
        "inpainting_fill 0 is not available: what is there is what it begins from",
    ]


def test_styles_schedulers_and_models(api: Any) -> None:
    assert [one["name"] for one in api.get_upscalers()] == ["Lanczos"]
    assert [one["name"] for one in api.get_latent_upscale_modes()] == ["Latent"]
    style = next(iter(presets()))
    result = api.txt2img(prompt="a cat", styles=[style], sampler_name="DPM++ 2M", scheduler="karras", **SMALL)
    assert result.info["prompt"] != "a cat" and result.info["sampler_name"] == "DPM++ 2M Karras"
    assert "DDIM" in api.util_get_sampler_names() and "karras" in api.util_get_scheduler_names()
    assert api.util_get_model_names() == ["tiny"] and api.util_get_current_model() == "tiny"
    api.util_set_model("tiny")
    assert api.get_loras() == []


def test_progress_and_interrupt_are_of_ones_own(api: Any, url: str) -> None:
    failed: list[Any] = []

    def draw() -> None:
        try:
            api.txt2img(prompt="a", **{**SMALL, "steps": 150}, n_iter=8)
        except RuntimeError as error:
            failed.append(error)

    thread = threading.Thread(target=draw)
    thread.start()
    progress = api.get_progress()
    while progress["state"]["sampling_step"] < 2:
        time.sleep(0.02)
        progress = api.get_progress()
    assert 0 < progress["progress"] < 1 and progress["state"]["job_count"] == 8 and progress["current_image"]
    other = httpx.get(f"{url}/sdapi/v1/progress", headers={"X-Client": "somebody else"}).json()
    assert other["progress"] == 0
    httpx.post(f"{url}/sdapi/v1/interrupt", headers={"X-Client": "somebody else"})
    assert api.get_progress()["state"]["job_count"] == 8
    api.interrupt()
    thread.join(20)
    assert failed and failed[0].args[0] == 409


def test_png_info(api: Any, pipe: Pipeline, url: str) -> None:
    image = pipe("a red cat", seed=7, steps=2, guidance_scale=4.0, progress=False)
    said = httpx.post(f"{url}/sdapi/v1/png-info", json={"image": encoded(image)}).json()
    assert said["info"] == image.info["parameters"] and said["parameters"]["seed"] == 7
    assert (
        httpx.post(f"{url}/sdapi/v1/png-info", json={"image": encoded(Image.new("RGB", (4, 4)))}).json()["info"] == ""
    )


@pytest.mark.parametrize(
    ("body", "error"),
    [
        ({"restore_faces": True}, "restore_faces True is not available"),
        ({"script_name": "x/y/z plot"}, "the script 'x/y/z plot' is not available"),
        ({"alwayson_scripts": {"ControlNet": {"args": [{"image": "x"}]}}}, "the script 'ControlNet' is not available"),
        ({"override_settings": {"sd_vae": "x"}}, "the setting 'sd_vae' is not available"),
        ({"sampler_name": "eulr"}, "unknown sampler 'eulr'"),
        ({"init_images": ["x"]}, "txt2img takes no init_images"),
        ({"styles": ["no such style"]}, "no such style"),
        ({"batch_size": 0}, "batch_size must be a whole number"),
        ({"nonsense": 1}, "a request has no nonsense"),
    ],
)
def test_what_genpipe_has_not_is_refused(shared_url: str, body: dict[str, Any], error: str) -> None:
    answer = httpx.post(f"{shared_url}/sdapi/v1/txt2img", json={"prompt": "a", **body})
    assert answer.status_code == 400 and error in answer.json()["detail"], answer.text


def test_a_body_is_read_in_our_words() -> None:
    found, styles, lines = read_body(
        {"prompt": "a", "cfg_scale": 5, "seed": -1, "batch_size": 2, "n_iter": 3, "sampler_name": "Euler a", "eta": 1.0}
        | {"scheduler": "Automatic", "denoising_strength": 0.7, "override_settings": {"CLIP_stop_at_last_layers": 2}}
    )
    assert found == {"prompt": "a", "guidance_scale": 5, "n": 6, "sampler": "euler_a", "clip_skip": 1}
    assert styles == lines == []
    varied, _, _ = read_body({"prompt": "a", "subseed": 3, "subseed_strength": 0.2, "enable_hr": True, "hr_scale": 1.5})
    assert varied == {"prompt": "a", "n": 1, "vary": 0.2, "vary_seed": 3, "upscale": 1.5, "upscale_strength": None}
    usual = {"hr_upscaler": "Lanczos", "hr_resize_x": 0, "hr_sampler_name": "Use same sampler", "s_noise": 1}
    assert read_body({"prompt": "a", "enable_hr": True, **usual})[2] == []
    asked = {"hr_upscaler": "R-ESRGAN 4x+", "hr_second_pass_steps": 9, "hr_prompt": "b", "s_churn": 5, "resize_mode": 2}
    assert [line.split()[0] for line in read_body({"prompt": "a", "enable_hr": True, **asked})[2]] == [
        *("s_churn", "resize_mode", "hr_upscaler", "hr_second_pass_steps", "hr_prompt")
    ]
    assert read_body({"prompt": "a", "hr_prompt": "b"})[2] == []  # there is no second pass
    assert read_body({"prompt": "a", "mask": "x", "inpainting_fill": 2})[2][0].startswith("inpainting_fill 2 is not")
    assert urlsplit("http://x").netloc == "x" and json.dumps(found)

import io
import json
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from genpipe.checkpoints import load_checkpoint
from genpipe.models.unet import UNet
from genpipe.pipeline import Pipeline, Progress, generate
from genpipe.pipeline.generate import Warm
from genpipe.pipeline.own import OwnDrawer
from genpipe.request import Request
from genpipe.spec import ModelSpec
from tests.pipeline.drawing import difference, draw


def test_a_picture_can_be_made_again_from_what_it_carries(pipe: Pipeline) -> None:
    image = draw(pipe, negative_prompt="bad", guidance_rescale=0.3, sampler="Euler a", height=32, width=48)
    made = json.loads(image.info["genpipe"])
    assert made["dtype"] == "float32"
    assert "Sampler: Euler a" in image.info["parameters"]
    del made["version"], made["model"], made["dtype"]
    request = Request.from_dict(made)
    assert image.size == (48, 32)
    *_, last = pipe.stream([request])
    assert difference(pipe.decode(last.latents, [request])[0], image) == 0


def test_guidance_off_never_reads_the_negative_prompt(pipe: Pipeline) -> None:
    off = draw(pipe, guidance_scale=1.0)
    assert difference(off, draw(pipe, guidance_scale=1.0, negative_prompt="something else")) == 0
    assert difference(off, draw(pipe, guidance_scale=0.0)) == 0
    assert difference(off, draw(pipe)) > 0


def test_every_step_can_be_looked_at(pipe: Pipeline) -> None:
    seen: list[Progress] = []
    final = draw(pipe, callback=seen.append)
    assert [(state.step, state.steps) for state in seen] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    preview = seen[-1].preview()[0]
    small = final.resize(preview.size, Image.Resampling.BOX)
    assert preview.size == tuple(size // pipe.vae.config.factor for size in final.size)
    correlation = np.corrcoef(np.asarray(preview, dtype=float).ravel(), np.asarray(small, dtype=float).ravel())[0, 1]
    assert correlation > 0.3


def test_a_stream_can_be_left_early(pipe: Pipeline) -> None:
    requests = pipe.requests("a red cat", seed=1, steps=3)
    stream = pipe.stream(requests)
    assert next(stream).step == 1
    del stream
    assert difference(draw(pipe), draw(pipe)) == 0


def test_a_long_prompt_is_cut_with_a_warning_that_quotes_the_rest(pipe: Pipeline) -> None:
    prompt = "cat " * 3000
    with pytest.warns(UserWarning, match="the prompt is cut after"):
        image = draw(pipe, prompt)
    assert difference(image, draw_silently(pipe, "cat " * 500)) == 0


def draw_silently(pipe: Pipeline, prompt: str) -> Image.Image:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return draw(pipe, prompt)


@pytest.mark.parametrize("prompt", ["", " ", "a\0b", "مرحبا بالعالم", "🏴‍☠️🚢", "x" * 10_000])
def test_odd_prompts_draw(pipe: Pipeline, prompt: str) -> None:
    image = draw_silently(pipe, prompt)
    assert np.isfinite(np.asarray(image, dtype=float)).all()
    assert json.loads(image.info["genpipe"])["prompt"] == prompt


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sampler": "eulr"}, "euler"),
        ({"height": 33}, "33"),
        ({"width": 0}, "0"),
        ({"height": 10**6}, "1000000"),
        ({"steps": 0}, "steps must be a whole number from 1 to 1000, not 0"),
        ({"guidance_scale": float("nan")}, "nan"),
        ({"guidance_scale": float("inf")}, "inf"),
        ({"seed": -1}, "-1"),
        ({"seed": 2**64}, str(2**64)),
        ({"n": 0}, "100000, not 0"),
        ({"prompt": 7}, "prompt 7"),
        ({"prompt": []}, "empty list"),
        ({"seeds": [1]}, "seeds holds 1"),
        ({"clip_skip": 99}, "clip_skip 99"),
        ({"speed": "fast"}, "speed must be one of exact, balanced, draft, not 'fast'"),
    ],
)
def test_bad_arguments_get_one_clear_line(pipe: Pipeline, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        draw(pipe, **settings)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_bad_devices_and_dtypes_get_one_clear_line(tiny_checkpoint: Path) -> None:
    wrong: list[dict[str, Any]] = [
        {"device": "gpu"},
        {"device": "cuda:99"},
        {"device": "meta"},
        {"dtype": "fp8"},
        {"dtype": "fp16", "device": "cpu"},
    ]
    for settings in wrong:
        with pytest.raises(ValueError) as caught:
            Pipeline.from_pretrained(tiny_checkpoint, **settings)
        assert "\n" not in str(caught.value)


def test_the_last_pipeline_stays_warm_also_under_threads(tiny_checkpoint: Path) -> None:
    warm, spec = Warm(), ModelSpec(model=str(tiny_checkpoint), device="cpu", dtype="fp32")
    with ThreadPoolExecutor(4) as pool:
        pipelines = list(pool.map(lambda _: warm.pipeline(spec), range(4)))
    assert all(one is pipelines[0] for one in pipelines)
    other = warm.pipeline(replace(spec, dtype="bf16"))
    assert other.dtype == torch.bfloat16 and warm.pipeline(spec) is not pipelines[0]


def test_generate_draws_what_the_pipeline_draws(pipe: Pipeline, tiny_checkpoint: Path) -> None:
    settings: Any = {"steps": 2, "seed": 1, "progress": False}
    image = generate("a red cat", model=tiny_checkpoint, device="cpu", dtype="fp32", **settings)
    assert difference(image, pipe("a red cat", **settings)) == 0
    with pytest.raises(ValueError, match="a request has no stepz: its keys are prompt, seed, steps"):
        generate("a red cat", model=tiny_checkpoint, device="cpu", dtype="fp32", stepz=3)  # type: ignore[call-arg]


def test_pictures_survive_a_png(pipe: Pipeline) -> None:
    image = draw(pipe)
    file = io.BytesIO()
    image.save(file, "PNG")
    assert difference(Image.open(file), image) == 0


def test_defaults_are_those_of_the_checkpoint_else_of_its_kind(pipe: Pipeline, fresh: Pipeline) -> None:
    request = pipe.requests("a", seed=1)[0]
    assert (request.height, request.width, request.steps, request.guidance_scale) == (32, 32, 30, 7.5)
    lcm = pipe.requests("a", seed=1, sampler="lcm")[0]
    assert (lcm.steps, lcm.guidance_scale) == (4, 1.0)
    fresh.checkpoint.defaults.update(steps=9, guidance_scale=0.0, width=48, unknown=1)
    own = fresh.requests("a", seed=1)[0]
    assert (own.height, own.width, own.steps, own.guidance_scale) == (32, 48, 9, 0.0)
    assert fresh.requests("a", seed=1, steps=2)[0].steps == 2


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_draws_what_the_cpu_draws(pipe: Pipeline, tiny_checkpoint: Path) -> None:
    gpu = Pipeline.from_pretrained(tiny_checkpoint, device="cuda", dtype="fp32")
    for sampler in ("dpmpp_2m", "euler_a"):
        assert difference(draw(gpu, sampler=sampler), draw(pipe, sampler=sampler)) <= 2


def test_a_large_image_is_decoded_whole_or_in_tiles_as_asked(pipe: Pipeline, tiny_checkpoint: Path) -> None:
    size: Any = {"height": 320, "width": 32, "steps": 2}
    whole = draw(pipe, **size)
    tiling = Pipeline.from_pretrained(tiny_checkpoint, device="cpu", dtype="fp32", vae_tiling="on")
    tiled = draw(tiling, **size)
    assert tiled.size == whole.size
    error = np.asarray(whole, dtype=float) - np.asarray(tiled, dtype=float)
    assert 0 < np.abs(error).mean() < 25  # near, since a tile's norms see the tile only
    assert json.loads(tiled.info["genpipe"])["vae_tiling"] == "on" and "vae_tiling" not in whole.info["genpipe"]


@pytest.mark.parametrize("sampler", ["ddim", "heun", "pndm", "KDPM2DiscreteScheduler"])
def test_the_last_step_is_the_number_of_steps(pipe: Pipeline, sampler: str) -> None:
    seen: list[Progress] = []
    draw(pipe, sampler=sampler, callback=seen.append)
    assert [state.step for state in seen] == list(range(1, seen[-1].steps + 1))


@pytest.mark.parametrize("channels", [6, 10])
def test_a_network_that_takes_other_channels_is_refused(tiny_checkpoint: Path, tmp_path: Path, channels: int) -> None:
    tiny = load_checkpoint(tiny_checkpoint)
    unet = UNet(replace(tiny.unet.config, in_channels=channels))
    checkpoint = replace(tiny, unet=unet, source="somewhere")
    with pytest.raises(ValueError, match=f"somewhere: its U-Net takes {channels} channels and gives 4"):
        OwnDrawer(checkpoint, device=torch.device("cpu"), dtype=torch.float32)

import gc
import io
import json
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from genpipe.checkpoints import load_checkpoint, save_checkpoint
from genpipe.hardware import instruction_set
from genpipe.judge import Score
from genpipe.metadata import read_request
from genpipe.models.cpu.quantised import QuantisedLayer, can_quantise
from genpipe.models.finite import NonFiniteError
from genpipe.models.text_encoder import TextEncoder
from genpipe.models.unet import UNet
from genpipe.models.vae import VAE
from genpipe.pipeline import BATCH, Pipeline, Progress, generate
from genpipe.pipeline.generate import Warm
from genpipe.pipeline.networks import check_int8
from genpipe.request import Request
from genpipe.sampling.noise import ImageNoise
from genpipe.spec import ModelSpec


@pytest.fixture(scope="module")
def pipe(tiny_checkpoint: Path) -> Pipeline:
    return Pipeline.from_pretrained(tiny_checkpoint, device="cpu", dtype="fp32")


@pytest.fixture(scope="module")
def reference(tiny_checkpoint: Path) -> Any:
    diffusers = pytest.importorskip("diffusers")
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(tiny_checkpoint, safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def fresh(tiny_checkpoint: Path) -> Pipeline:
    """A pipeline to break."""
    return Pipeline.from_pretrained(tiny_checkpoint, device="cpu", dtype="fp32")


def draw(pipe: Pipeline, prompt: Any = "a red cat", **settings: Any) -> Any:
    given: Any = {"seed": 5, "steps": 4, "guidance_scale": 4.0, "progress": False, **settings}
    return pipe(prompt, **given)


def difference(one: Image.Image, other: Image.Image) -> int:
    return int(np.abs(np.asarray(one, dtype=int) - np.asarray(other, dtype=int)).max())


SOLVERS = {
    "pndm": ("PNDMScheduler", {"skip_prk_steps": True}),
    "ddim": ("DDIMScheduler", {}),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler_a": ("EulerAncestralDiscreteScheduler", {}),
    "heun": ("HeunDiscreteScheduler", {}),
    "dpmpp_2m": ("DPMSolverMultistepScheduler", {}),
    "dpmpp_2m_karras": ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
    "dpmpp_2m_sde": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    "lcm": ("LCMScheduler", {}),
    "UniPCMultistepScheduler": ("UniPCMultistepScheduler", {}),
}


@pytest.mark.parametrize("sampler", SOLVERS)
def test_a_seed_gives_the_picture_that_diffusers_gives(pipe: Pipeline, reference: Any, sampler: str) -> None:
    import diffusers

    name, settings = SOLVERS[sampler]
    original = reference.scheduler
    reference.scheduler = getattr(diffusers, name).from_config(original.config, **settings)
    try:
        theirs = reference(
            ["a red cat", "a blue dog"],
            negative_prompt=["bad", "bad"],
            num_inference_steps=4,
            guidance_scale=4.0,
            generator=[torch.Generator("cpu").manual_seed(seed) for seed in (5, 6)],
        ).images
    finally:
        reference.scheduler = original
    ours = draw(pipe, ["a red cat", "a blue dog"], negative_prompt="bad", sampler=sampler)
    assert np.asarray(ours[0]).std() > 5  # a flat picture would agree with anything
    assert difference(ours[0], ours[1]) > 5
    for our, their in zip(ours, theirs, strict=True):
        assert difference(our, their) <= 1


def test_guidance_rescale_as_in_diffusers(pipe: Pipeline, reference: Any) -> None:
    theirs = reference(
        "a red cat",
        num_inference_steps=4,
        guidance_scale=6.0,
        guidance_rescale=0.7,
        generator=torch.Generator("cpu").manual_seed(5),
    ).images[0]
    assert difference(draw(pipe, guidance_scale=6.0, guidance_rescale=0.7), theirs) <= 1
    assert difference(draw(pipe, guidance_scale=6.0), theirs) > 1


def test_clip_skip_reaches_the_text_encoder(pipe: Pipeline) -> None:
    assert torch.equal(
        pipe.prompt_encoder(["a"], clip_skip=1).context, pipe.text_encoders[0](ids(pipe, "a"), clip_skip=1).context
    )
    assert difference(draw(pipe), draw(pipe, clip_skip=1)) > 0


def ids(pipe: Pipeline, prompt: str) -> torch.Tensor:
    return torch.tensor(pipe.tokenizers[0]([prompt]).ids)


@pytest.mark.parametrize("sampler", ["ddim", "euler_a", "dpmpp_2m_sde"])
def test_a_picture_does_not_depend_on_its_batch(pipe: Pipeline, sampler: str) -> None:
    together = draw(pipe, n=3, sampler=sampler)
    for k, image in enumerate(together):
        assert difference(image, draw(pipe, seed=5 + k, sampler=sampler)) <= 2


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_deterministic_is_bitwise_the_same_in_any_batch(tiny_checkpoint: Path, dtype: str) -> None:
    pipe = Pipeline.from_pretrained(tiny_checkpoint, device="cpu", dtype=dtype)
    threads = torch.get_num_threads()
    together = draw(pipe, n=3, deterministic=True, sampler="euler_a")
    alone = [draw(pipe, seed=5 + k, deterministic=True, sampler="euler_a") for k in range(3)]
    assert [difference(a, b) for a, b in zip(together, alone, strict=True)] == [0, 0, 0]
    assert torch.get_num_threads() == threads


def test_bf16_is_close_across_batches(tiny_checkpoint: Path) -> None:
    pipe = Pipeline.from_pretrained(tiny_checkpoint, device="cpu", dtype="bf16")
    together = draw(pipe, n=3)
    for k, image in enumerate(together):
        error = np.asarray(image, dtype=float) - np.asarray(draw(pipe, seed=5 + k), dtype=float)
        assert 10 * np.log10(255**2 / max((error**2).mean(), 1e-9)) >= 40


def test_more_images_than_a_batch_are_drawn_in_turn(pipe: Pipeline) -> None:
    together = draw(pipe, n=BATCH + 1, steps=2)
    assert len(together) == BATCH + 1
    alone = [draw(pipe, seed=5 + k, steps=2) for k in (0, BATCH)]
    assert all(difference(a, b) <= 2 for a, b in zip((together[0], together[BATCH]), alone, strict=True))


def test_seeds_count_up_and_wrap(pipe: Pipeline) -> None:
    images = draw(pipe, n=2, seed=2**64 - 1)
    assert [json.loads(image.info["genpipe"])["seed"] for image in images] == [2**64 - 1, 0]
    listed = draw(pipe, n=2, seed=None, seeds=[9, 5])
    assert difference(listed[1], draw(pipe)) <= 2


def test_a_seed_that_was_drawn_is_printed_and_kept(pipe: Pipeline, capsys: pytest.CaptureFixture[str]) -> None:
    image = draw(pipe, seed=None)
    seed = json.loads(image.info["genpipe"])["seed"]
    assert f"seed {seed}" in capsys.readouterr().err
    assert difference(draw(pipe, seed=seed), image) == 0


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


def test_noise_is_that_of_the_seed_alone() -> None:
    noise = ImageNoise([3, 4], (4, 8, 8), torch.device("cpu"))
    generator = torch.Generator("cpu").manual_seed(4)
    for _ in range(3):
        assert torch.equal(noise()[1], torch.randn((1, 4, 8, 8), generator=generator)[0])


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


def test_a_batch_that_does_not_agree_is_refused(pipe: Pipeline) -> None:
    one, two = (pipe.requests("a", seed=1, steps=steps)[0] for steps in (2, 3))
    with pytest.raises(ValueError, match="differs in steps"):
        next(iter(pipe.stream([one, two])))


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


def middle(pipe: Pipeline) -> torch.nn.Module:
    """The bottom of the U-Net, which every evaluation runs that is not of kept features."""
    assert pipe.unet.middle is not None
    return pipe.unet.middle


def overflowing(module: torch.nn.Module, *, rows: slice) -> list[torch.dtype]:
    """Make `module` give NaN in bf16, for some rows of the batch, as a network that overflows 16 bits does."""
    seen: list[torch.dtype] = []

    def overflow(module: torch.nn.Module, given: Any, output: torch.Tensor) -> torch.Tensor:
        seen.append(next(module.parameters()).dtype)
        if seen[-1] == torch.bfloat16:
            output = output.clone()
            output[rows] = float("nan")
        return output

    module.register_forward_hook(overflow)
    return seen


def test_a_step_that_overflows_is_repeated_in_fp32(tiny_checkpoint: Path) -> None:
    pipe = Pipeline.from_pretrained(tiny_checkpoint, device="cpu", dtype="bf16")
    sound = draw(pipe, n=2)
    # The first picture, both halves.
    seen = overflowing(middle(pipe), rows=slice(0, None, 2))
    images = draw(pipe, n=2)
    assert torch.float32 in seen
    assert difference(images[1], sound[1]) == 0  # its neighbour is as before
    exact = draw(Pipeline.from_pretrained(tiny_checkpoint, device="cpu", dtype="fp32"))
    error = np.asarray(images[0], dtype=float) - np.asarray(exact, dtype=float)
    assert 10 * np.log10(255**2 / max((error**2).mean(), 1e-9)) >= 30
    assert next(pipe.unet.parameters()).dtype == torch.bfloat16


def test_a_decode_that_overflows_is_repeated_in_fp32(tiny_checkpoint: Path) -> None:
    pipe = Pipeline.from_pretrained(tiny_checkpoint, device="cpu", dtype="bf16")
    sound = draw(pipe)
    seen = overflowing(pipe.vae.decoder, rows=slice(None))
    # The parameters that `seen` looks at are the decoder's.
    image = draw(pipe)
    assert seen == [torch.bfloat16, torch.float32]
    error = np.asarray(image, dtype=float) - np.asarray(sound, dtype=float)
    assert 10 * np.log10(255**2 / max((error**2).mean(), 1e-9)) >= 30


@pytest.mark.parametrize("part", ["text_encoder", "unet", "vae"])
def test_weights_that_are_not_finite_are_named(fresh: Pipeline, part: str) -> None:
    module = fresh.checkpoint.networks[part]
    name, weight = [item for item in module.named_parameters() if "encoder." not in item[0] or part == "text_encoder"][
        3
    ]
    with torch.no_grad():
        weight.view(-1)[0] = float("nan")
    with pytest.raises(NonFiniteError) as caught:
        draw(fresh)
    assert "not finite" in str(caught.value)
    assert name.split(".")[-1] in str(caught.value)
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


@pytest.fixture(autouse=True)
def few_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_defaults_are_those_of_the_checkpoint_else_of_its_kind(pipe: Pipeline, fresh: Pipeline) -> None:
    request = pipe.requests("a", seed=1)[0]
    assert (request.height, request.width, request.steps, request.guidance_scale) == (32, 32, 30, 7.5)
    lcm = pipe.requests("a", seed=1, sampler="lcm")[0]
    assert (lcm.steps, lcm.guidance_scale) == (4, 1.0)
    fresh.checkpoint.defaults.update(steps=9, guidance_scale=0.0, width=48, unknown=1)
    own = fresh.requests("a", seed=1)[0]
    assert (own.height, own.width, own.steps, own.guidance_scale) == (32, 48, 9, 0.0)
    assert fresh.requests("a", seed=1, steps=2)[0].steps == 2


def test_a_distilled_network_takes_the_guidance_scale_as_an_input(tiny_checkpoint: Path, tmp_path: Path) -> None:
    diffusers: Any = pytest.importorskip("diffusers")

    tiny = load_checkpoint(tiny_checkpoint)
    torch.manual_seed(1)
    save_checkpoint(
        tmp_path / "lcm",
        text_encoders=tiny.text_encoders,
        tokenizers=tiny.tokenizers,
        unet=UNet(replace(tiny.unet.config, guidance_channels=16)),
        vae=tiny.vae,
        scheduler_config={**tiny.scheduler_config, "_class_name": "LCMScheduler"},
    )
    reference = diffusers.StableDiffusionPipeline.from_pretrained(tmp_path / "lcm", safety_checker=None)
    reference.set_progress_bar_config(disable=True)
    pipe = Pipeline.from_pretrained(tmp_path / "lcm", device="cpu", dtype="fp32")
    seen = []
    for scale in (1.5, 8.5):
        theirs = reference(
            "a red cat",
            num_inference_steps=4,
            guidance_scale=scale,
            generator=torch.Generator("cpu").manual_seed(5),
        ).images[0]
        seen.append(draw(pipe, guidance_scale=scale))
        assert difference(seen[-1], theirs) <= 1
    assert difference(*seen) > 1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_draws_what_the_cpu_draws(pipe: Pipeline, tiny_checkpoint: Path) -> None:
    gpu = Pipeline.from_pretrained(tiny_checkpoint, device="cuda", dtype="fp32")
    for sampler in ("dpmpp_2m", "euler_a"):
        assert difference(draw(gpu, sampler=sampler), draw(pipe, sampler=sampler)) <= 2


def test_a_text_encoder_that_overflows_is_repeated_in_fp32(tiny_checkpoint: Path) -> None:
    pipe = Pipeline.from_pretrained(tiny_checkpoint, device="cpu", dtype="bf16")
    exact = Pipeline.from_pretrained(tiny_checkpoint, device="cpu", dtype="fp32").prompt_encoder(["a red cat"]).context
    overflowing(pipe.text_encoders[0].layers[0], rows=slice(None))
    repeated = pipe.prompt_encoder(["a red cat"]).context
    assert repeated.isfinite().all()
    assert (repeated - exact).abs().max() < 0.1


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


def test_previews_work_where_the_autoencoder_overflows(tiny_checkpoint: Path) -> None:
    pipe = Pipeline.from_pretrained(tiny_checkpoint, device="cpu", dtype="bf16")
    overflowing(pipe.vae.decoder, rows=slice(None))
    sizes = []
    draw(pipe, callback=lambda state: sizes.append(state.preview()[0].size))
    assert sizes == [(8, 8)] * 4


class Brightness:
    """Scores a picture by how bright it is."""

    def check_prompt(self, prompt: str) -> None:
        if prompt == "justice":
            raise ValueError("prompt 'justice' cannot be judged")

    def scores(self, images: Any, prompts: Any) -> list[Score]:
        brightness = [float(np.asarray(image).mean()) / 255 for image in images]
        return [Score(prompt, value) for prompt, value in zip(prompts, brightness, strict=True)]


def test_the_best_of_several_is_kept_with_the_scores_of_all(pipe: Pipeline) -> None:
    drawn = draw(pipe, ["a red cat", "a blue dog"], n=4, seed=3, deterministic=True)
    values = [float(np.asarray(image).mean()) / 255 for image in drawn]
    chosen = draw(pipe, ["a red cat", "a blue dog"], n=2, best_of=2, seed=3, judge=Brightness(), deterministic=True)
    assert len(chosen) == 4
    for index, image in enumerate(chosen):
        pair = values[2 * index : 2 * index + 2]
        best = 2 * index + pair.index(max(pair))
        assert difference(image, drawn[best]) == 0
        made = json.loads(image.info["genpipe"])
        assert [entry["total"] for entry in made["best_of"]] == pytest.approx(pair)
        assert [entry["seed"] for entry in made["best_of"]] == [3 + 2 * index, 4 + 2 * index]
        assert read_request(image) == read_request(drawn[best])


def test_a_prompt_that_the_judge_cannot_read_keeps_its_first_picture_and_says_so(pipe: Pipeline) -> None:
    with pytest.warns(UserWarning, match="the first of 3 images is kept.*: prompt 'justice' cannot be judged"):
        images = draw(pipe, ["justice", "a cat"], n=1, best_of=3, seed=3, judge=Brightness(), steps=1)
    made = [json.loads(image.info["genpipe"]) for image in images]
    assert [one["seed"] for one in made[:1]] == [3] and made[1]["seed"] in (6, 7, 8)
    assert [entry["total"] for entry in made[0]["best_of"]] == [None] * 3
    assert made[0]["best_of"][0]["reason"] == "prompt 'justice' cannot be judged"
    assert all(entry["total"] > 0 for entry in made[1]["best_of"])


def test_given_seeds_are_where_each_choice_begins(pipe: Pipeline) -> None:
    images = draw(pipe, n=2, seed=None, seeds=[9, 2**64 - 1], best_of=2, judge=Brightness(), steps=1)
    seeds = [[entry["seed"] for entry in json.loads(image.info["genpipe"])["best_of"]] for image in images]
    assert seeds == [[9, 10], [2**64 - 1, 0]]
    assert not isinstance(draw(pipe, best_of=2, judge=Brightness(), steps=1), list)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"best_of": 0}, "best_of must be a whole number from 1 to 100, not 0"),
        ({"best_of": 2}, "the embedded judge knows only what the embedded model draws: give a CLIP model as judge"),
        ({"best_of": 2, "judge": "/no/such/folder"}, "judge '/no/such/folder' is not a CLIP model that can be loaded"),
    ],
)
def test_a_choice_that_cannot_be_made_is_refused_before_drawing(
    pipe: Pipeline, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], says: str
) -> None:
    monkeypatch.setattr(Pipeline, "stream", lambda *_: pytest.fail("something was drawn"))
    with pytest.raises(ValueError, match=says):
        draw(pipe, **settings)


def test_the_empty_prompt_is_encoded_once(fresh: Pipeline) -> None:
    encoded: list[torch.Tensor] = []
    fresh.text_encoders[0].register_forward_hook(lambda module, inputs, output: encoded.append(inputs[0]))
    first, again = draw(fresh), draw(fresh, "a blue dog")
    assert [ids.shape for ids in encoded] == [ids(fresh, "").shape] * 3
    assert sum(torch.equal(given, ids(fresh, "")) for given in encoded) == 1
    assert difference(draw(fresh), first) == 0 and difference(first, again) > 0
    draw(fresh, clip_skip=1)  # another context: it is not the one that was kept
    assert torch.equal(
        fresh.prompt_encoder([""], clip_skip=1).context, fresh.text_encoders[0](ids(fresh, ""), clip_skip=1).context
    )


@pytest.mark.parametrize("speed", ["balanced", "draft"])
def test_a_speed_is_part_of_what_makes_a_picture(pipe: Pipeline, speed: str) -> None:
    exact, fast = draw(pipe, steps=8), draw(pipe, steps=8, speed=speed)
    assert json.loads(fast.info["genpipe"])["speed"] == speed
    assert difference(draw(pipe, steps=8, speed=speed), fast) == 0
    error = np.asarray(exact, dtype=float) - np.asarray(fast, dtype=float)
    assert 0 < np.abs(error).mean() < np.abs(np.asarray(exact, dtype=float) - 127).mean()
    together = draw(pipe, steps=8, speed=speed, n=2)
    assert difference(together[0], fast) <= 2


def test_guidance_applies_in_its_interval_alone(fresh: Pipeline) -> None:
    rows: list[int] = []
    fresh.unet.conv_out.register_forward_hook(lambda module, given, output: rows.append(len(output)))
    draw(fresh, steps=8, sampler="ddim", speed="balanced")
    ratios = [step.ratio for step in fresh.sampler("ddim").schedule(8).steps[:-1]]
    assert rows == [2 if 0.28 < ratio <= 5.42 else 1 for ratio in ratios]
    assert {1, 2} == set(rows)


def test_deep_features_are_computed_at_every_other_step(fresh: Pipeline) -> None:
    computed: list[bool] = []
    middle(fresh).register_forward_hook(lambda module, given, output: computed.append(True))
    draw(fresh, steps=8, sampler="ddim", guidance_scale=1.0)
    assert len(computed) == 8
    draw(fresh, steps=8, sampler="ddim", guidance_scale=1.0, speed="balanced")
    assert len(computed) == 8 + 4
    draw(fresh, steps=8, sampler="ddim", guidance_scale=1.0, speed="draft")
    assert len(computed) == 8 + 4 + 2


def test_a_tiny_autoencoder_makes_previews_and_drafts(tiny_checkpoint: Path, tmp_path: Path) -> None:
    diffusers: Any = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    small = {"encoder_block_out_channels": (8,) * 3, "decoder_block_out_channels": (8,) * 3}
    theirs = diffusers.AutoencoderTiny(**small, num_encoder_blocks=(1, 1, 1), num_decoder_blocks=(1, 1, 1))
    theirs.save_pretrained(tmp_path / "taesd")
    pipe = Pipeline.from_pretrained(tiny_checkpoint, device="cpu", dtype="fp32", tiny_vae=tmp_path / "taesd")
    seen: list[Progress] = []
    draft = draw(pipe, speed="draft", callback=seen.append)
    with torch.inference_mode():
        expected = theirs.decode(seen[-1].latents).sample[0].permute(1, 2, 0).add(1).mul(127.5).clamp(0, 255)
    assert np.abs(np.asarray(draft, dtype=float) - expected.numpy()).max() <= 1
    assert difference(seen[-1].preview()[0], draft) == 0
    plain = Pipeline.from_pretrained(tiny_checkpoint, device="cpu", dtype="fp32")
    assert difference(draw(pipe), draw(plain)) == 0


def test_low_memory_draws_the_same_while_only_the_denoiser_is_held(tiny_checkpoint: Path) -> None:
    def networks() -> int:
        gc.collect()
        return sum(type(one) in (TextEncoder, VAE) for one in gc.get_objects())

    usual = Pipeline.from_pretrained(tiny_checkpoint, device="cpu", dtype="fp32")
    pipe = Pipeline.from_pretrained(tiny_checkpoint, device="cpu", dtype="fp32", low_memory=True)
    before, during = networks(), []
    settings: dict[str, Any] = {"seed": 3, "steps": 2, "progress": False}
    image = pipe("a ship", callback=lambda _: during.append(networks()), **settings)
    assert during == [before] * 2  # those that are not read from their files yet
    with pipe.networks.in_memory(pipe.vae) as lent:
        assert lent is not pipe.vae and networks() == before + 1
    assert image.tobytes() == usual("a ship", **settings).tobytes()
    preview, expected = (next(one.stream(one.requests("a ship", seed=3, steps=2))).preview() for one in (pipe, usual))
    assert preview[0].tobytes() == expected[0].tobytes()


needs_int8 = pytest.mark.skipif(
    instruction_set() == "other" or not can_quantise(), reason="this torch or this CPU has no int8 beside bf16"
)


@needs_int8
@pytest.mark.parametrize("low_memory", [False, True])
def test_int8_draws_nearly_the_same_and_says_so(wide_checkpoint: Path, low_memory: bool) -> None:
    settings: dict[str, Any] = {"device": "cpu", "dtype": "bf16", "low_memory": low_memory}
    small = Pipeline.from_pretrained(wide_checkpoint, int8=True, **settings)
    assert any(isinstance(module, QuantisedLayer) for module in small.unet.modules())
    assert not any(isinstance(module, QuantisedLayer) for module in small.vae.modules())
    image, usual = draw(small), draw(Pipeline.from_pretrained(wide_checkpoint, **settings))
    error = np.asarray(image, dtype=float) - np.asarray(usual, dtype=float)
    assert 30 <= 10 * np.log10(255**2 / (error**2).mean()) < 70
    assert json.loads(image.info["genpipe"])["int8"] is True and "int8" not in json.loads(usual.info["genpipe"])
    assert read_request(image) == read_request(usual)


@needs_int8
def test_a_step_that_overflows_in_int8_is_repeated_in_fp32(wide_checkpoint: Path) -> None:
    pipe = Pipeline.from_pretrained(wide_checkpoint, device="cpu", dtype="bf16", int8=True)
    seen = overflowing(middle(pipe), rows=slice(None))
    image = draw(pipe)
    assert torch.float32 in seen
    exact = draw(Pipeline.from_pretrained(wide_checkpoint, device="cpu", dtype="fp32"))
    error = np.asarray(image, dtype=float) - np.asarray(exact, dtype=float)
    assert 10 * np.log10(255**2 / max((error**2).mean(), 1e-9)) >= 30


@needs_int8
def test_int8_that_pays_for_no_layer_is_refused(tiny_checkpoint: Path) -> None:
    with pytest.raises(ValueError, match="too narrow: leave it out"):
        Pipeline.from_pretrained(tiny_checkpoint, int8=True, device="cpu", dtype="bf16")


@pytest.mark.parametrize(
    ("device", "dtype", "native", "says"),
    [
        ("cpu", torch.float32, True, "not with float32: use --dtype bf16"),
        ("cuda", torch.bfloat16, True, "not on cuda: use --device cpu"),
        ("cpu", torch.bfloat16, False, "AVX512-BF16 or AMX"),
    ],
)
def test_int8_where_it_cannot_run_gets_one_clear_line(device: str, dtype: torch.dtype, native: bool, says: str) -> None:
    with pytest.raises(ValueError, match=says) as caught:
        check_int8(torch.device(device), dtype, native=native)
    assert "\n" not in str(caught.value) and "--no-int8" in str(caught.value)


@pytest.mark.parametrize("channels", [5, 8])
def test_a_network_that_takes_more_than_text_is_refused(tiny_checkpoint: Path, tmp_path: Path, channels: int) -> None:
    tiny = load_checkpoint(tiny_checkpoint)
    unet = UNet(replace(tiny.unet.config, in_channels=channels))
    checkpoint = replace(tiny, unet=unet, source="somewhere")
    with pytest.raises(ValueError, match=f"somewhere: its U-Net takes {channels} channels and gives 4"):
        Pipeline(checkpoint, device=torch.device("cpu"), dtype=torch.float32)

"""A1111's text, written and read."""

import random
import time

import pytest

from genpipe.dialects.a1111 import parameters_text, parse_parameters, sampler_label
from genpipe.request import Request
from genpipe.sampling.names import SAMPLERS, canonical_name

# As the web UI wrote it, in several of its versions, and as sites that take such images do.
BEFORE_1_9 = """(masterpiece:1.2), a castle, "old", [fog]
second line, 35mm: sharp
Negative prompt: blurry, (bad:1.4)
lowres
Steps: 28, Sampler: DPM++ 2M Karras, CFG scale: 7.5, Seed: 1234567890, Size: 512x768, Model hash: 6ce0161689, Model: v1-5-pruned-emaonly, Clip skip: 2, Version: v1.6.0"""
SINCE_1_9 = """a fox
Steps: 20, Sampler: Euler a, Schedule type: Automatic, CFG scale: 7, Seed: 3, Size: 1024x1024, Model: sd_xl_base_1.0, Denoising strength: 0.4, Hires upscale: 2, Lora hashes: "style: ab12, other: cd34", Version: v1.10.1"""
OF_A_SITE = """a fox
Negative prompt: easynegative
Steps: 30, Sampler: DPM++ 2M SDE, Schedule type: Exponential, CFG scale: 4, Seed: 9, Size: 832x1216, Clip skip: 1, Created Date: 2024-01-02T03:04:05.6Z, Civitai resources: [{"type":"checkpoint","modelVersionId":1,"modelName":"x, y"}], Civitai metadata: {}
Template: a {fox|cat}"""


def test_a_text_of_before_1_9_is_read() -> None:
    settings, model, unread = parse_parameters(BEFORE_1_9)
    assert settings == {
        "prompt": '(masterpiece:1.2), a castle, "old", [fog]\nsecond line, 35mm: sharp',
        "negative_prompt": "blurry, (bad:1.4)\nlowres",
        "steps": 28,
        "sampler": "dpmpp_2m_karras",
        "guidance_scale": 7.5,
        "seed": 1234567890,
        "width": 512,
        "height": 768,
        "clip_skip": 1,
    }
    assert model == "v1-5-pruned-emaonly" and unread == {}


def test_what_genpipe_does_not_have_is_reported() -> None:
    settings, model, unread = parse_parameters(SINCE_1_9)
    assert settings["sampler"] == "euler_a" and settings["width"] == 1024 and model == "sd_xl_base_1.0"
    assert (settings["upscale"], settings["upscale_strength"]) == (2.0, 0.4)
    assert unread == {"Lora hashes": "style: ab12, other: cd34"}


def test_json_among_the_settings_and_lines_after_them_are_reported_whole() -> None:
    settings, model, unread = parse_parameters(OF_A_SITE)
    assert settings["sampler"] == "dpmpp_2m_sde_exponential" and settings["clip_skip"] == 0 and model is None
    assert settings["negative_prompt"] == "easynegative" and settings["prompt"] == "a fox"
    assert unread == {
        "Created Date": "2024-01-02T03:04:05.6Z",
        "Civitai resources": '[{"type":"checkpoint","modelVersionId":1,"modelName":"x, y"}]',
        "Civitai metadata": "{}",
        "Template": "a {fox|cat}",
    }


@pytest.mark.parametrize(
    ("said", "sampler", "unread"),
    [
        ("Sampler: DPM++ 2M, Schedule type: Karras", "dpmpp_2m_karras", {}),
        ("Sampler: DPM++ 2M, Schedule type: Automatic", "dpmpp_2m_karras", {}),
        ("Sampler: DPM++ 3M SDE, Schedule type: Automatic", "dpmpp_3m_sde_exponential", {}),
        ("Sampler: DPM++ 2M", "dpmpp_2m", {}),
        ("Sampler: Euler, Schedule type: SGM Uniform", "euler_trailing", {}),
        ("Sampler: Euler, Schedule type: Simple", "euler_trailing", {}),
        ("Sampler: Euler, Schedule type: Uniform", "euler", {}),
        ("Sampler: UniPC, Schedule type: Beta", "unipc_beta", {}),
        ("Sampler: DPM++ 2M Karras, Schedule type: Exponential", "dpmpp_2m_karras", {}),
        ("Sampler: Euler a, Schedule type: Karras", "euler_a", {"Schedule type": "Karras"}),
        ("Sampler: Euler, Schedule type: KL Optimal", "euler", {"Schedule type": "KL Optimal"}),
        ("Sampler: DPM fast", None, {"Sampler": "DPM fast"}),
        ("Sampler: Restart, Schedule type: Karras", None, {"Sampler": "Restart", "Schedule type": "Karras"}),
        ("Sampler: Undefined", None, {"Sampler": "Undefined"}),
    ],
)
def test_sampler_and_schedule_type_are_one_sampler(said: str, sampler: str | None, unread: dict) -> None:
    settings, _, rest = parse_parameters(f"x\nSteps: 2, {said}, Seed: 1")
    assert settings.get("sampler") == sampler and rest == unread


def test_every_sampler_is_written_by_a_name_that_leads_back_to_it() -> None:
    for name in (*SAMPLERS, "SASolverScheduler"):
        assert canonical_name(sampler_label(name)) == name


@pytest.mark.parametrize(
    ("said", "key"),
    [
        ("Steps: many", "Steps"),
        ("Steps: 2, Seed: -1", "Seed"),
        ("Steps: 2, Seed: 1e9", "Seed"),
        ("Steps: 2, Size: 512", "Size"),
        ("Steps: 2, Size: 0x512", "Size"),
        ("Steps: 2, CFG scale: nan", "CFG scale"),
        ("Steps: 2, Clip skip: -1", "Clip skip"),
    ],
)
def test_a_value_that_cannot_be_taken_is_reported(said: str, key: str) -> None:
    settings, _, unread = parse_parameters(f"x\n{said}")
    assert list(unread) == [key] and set(settings) <= {"prompt", "steps"}


@pytest.mark.parametrize(
    "text", ["", "a ship", "a ship: big, old", "Negative prompt: fog", "\n\n", "a\nNegative prompt:"]
)
def test_a_text_without_settings_is_a_prompt(text: str) -> None:
    settings, model, unread = parse_parameters(text)
    assert set(settings) <= {"prompt", "negative_prompt"} and model is None and unread == {}
    assert "fog" not in settings["prompt"]


def test_what_is_written_is_read_back() -> None:
    """Whatever the prompts and the model's name hold; the line breaks of other systems become \\n, and NUL U+FFFD."""
    rng = random.Random(0)
    pieces = [
        *(
            "ship",
            " ",
            ", ",
            ": ",
            '"',
            "\\",
            "\n",
            "\r\n",
            "\0",
            "(a:1.2)",
            "[b|c]",
            "<lora:x:1>",
            "{}",
            "[1, 2]",
            "Steps: 3",
        ),
        *("Seed: 1, Size: 2x2", "Negative", "prompt:", "корабль", "🏴‍☠️", "\t", "'", "BREAK", "x" * 50),
    ]
    for _ in range(500):
        prompt, negative, model = ("".join(rng.choices(pieces, k=rng.randrange(8))) for _ in range(3))
        request = Request(
            prompt,
            negative_prompt=negative,
            seed=rng.randrange(2**64),
            steps=rng.randrange(1, 1000),
            guidance_scale=round(rng.uniform(0, 30), 3),
            guidance_rescale=rng.choice([0.0, 0.7]),
            width=8 * rng.randrange(1, 200),
            height=8 * rng.randrange(1, 200),
            sampler=rng.choice(SAMPLERS),
            clip_skip=rng.randrange(4),
        )
        model = model.strip() or "model"
        settings, named, unread = parse_parameters(parameters_text(request, model))
        wanted = {key: value for key, value in request.to_dict().items() if key in settings}
        for key in ("prompt", "negative_prompt"):
            if key in wanted:
                wanted[key] = wanted[key].replace("\r\n", "\n").replace("\r", "\n").replace("\0", "\ufffd")
        assert settings == wanted and unread == {}
        assert named == model
        assert {*settings} >= {"seed", "steps", "guidance_scale", "width", "height", "sampler", "prompt"}
        assert (negative == "") == ("negative_prompt" not in settings)


@pytest.mark.parametrize(
    "text", ["x" * 10**6, "a, " * 300_000, "k: v, " * 200_000, 'k: "v", ' * 150_000, "k: [" * 200_000]
)
def test_a_long_text_takes_no_longer_than_its_length(text: str) -> None:
    started = time.perf_counter()
    parse_parameters(f"Steps: 2, {text}")
    parse_parameters(text)
    assert time.perf_counter() - started < 10

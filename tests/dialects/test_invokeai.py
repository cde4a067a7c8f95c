"""InvokeAI's JSON, of its versions."""

import json
from typing import Any

import pytest

from genpipe.dialects.invokeai import parse_metadata, parse_old_metadata
from genpipe.dialects.parameters import Parameters

USUAL: dict[str, Any] = {
    "app_version": "5.4.2", "generation_mode": "sdxl_txt2img", "rand_device": "cpu", "positive_prompt": "a red cat",
    "negative_prompt": "fog", "positive_style_prompt": "a red cat", "negative_style_prompt": "", "width": 1184,
    "height": 888, "seed": 5, "cfg_scale": 5.0, "cfg_rescale_multiplier": 0.0, "steps": 30, "scheduler": "dpmpp_2m_sde_k",
    "model": {"key": "k", "hash": "blake3:0", "name": "some model", "base": "sdxl", "type": "main"},
    "controlnets": [], "loras": [], "vae": None,
}  # fmt: skip
SETTINGS = {
    "prompt": "a red cat",
    "negative_prompt": "fog",
    "width": 1184,
    "height": 888,
    "seed": 5,
    "guidance_scale": 5.0,
    "guidance_rescale": 0.0,
    "steps": 30,
    "sampler": "dpmpp_2m_sde_karras",
}


def test_the_usual_is_read_whole() -> None:
    assert parse_metadata(json.dumps({**USUAL, "negative_style_prompt": "fog"})) == Parameters(
        SETTINGS, "some model", {}
    )
    old = {key: value for key, value in USUAL.items() if "style" not in key}
    named = {"model_name": "other", "base_model": "sd-1", "model_type": "main"}
    assert parse_metadata(json.dumps({**old, "model": named})) == Parameters(SETTINGS, "other", {})


@pytest.mark.parametrize(
    ("changes", "unread"),
    [
        ({"loras": [{"model": {"name": "style"}, "weight": 0.5}]}, "loras"),
        ({"scheduler": "unheard_of"}, "scheduler"),
        ({"positive_style_prompt": "oil"}, "positive_style_prompt"),
        ({"seamless_x": True}, "seamless_x"),
        ({"seed": -3}, "seed"),
        ({"negative_prompt": "red++ fog", "negative_style_prompt": ""}, "weights"),
        ({"negative_prompt": "a (red cat)1.3", "negative_style_prompt": ""}, "weights"),
    ],
)
def test_what_is_not_read_is_named(changes: dict[str, Any], unread: str) -> None:
    found = parse_metadata(json.dumps({**USUAL, "negative_style_prompt": "fog", **changes}))
    assert found is not None and set(found.unread) == {unread}


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("euler", "euler"),
        ("euler_a", "euler_a"),
        ("euler_k", "euler_karras"),
        ("kdpm_2_a", "dpm2_a"),
        ("unipc", "unipc"),
    ],
)
def test_schedulers_by_their_names_there(theirs: str, ours: str) -> None:
    found = parse_metadata(json.dumps({**USUAL, "scheduler": theirs}))
    assert found is not None and found.settings["sampler"] == ours


def test_the_form_of_before_version_3() -> None:
    image = {"prompt": [{"prompt": "a red cat [fog]", "weight": 1.0}], "steps": 50, "cfg_scale": 7.5, "seed": 5, "width": 512,
             "height": 512, "sampler": "k_euler_a", "type": "txt2img", "variations": [], "seamless": False}  # fmt: skip
    found = parse_old_metadata(json.dumps({"model": "stable diffusion", "model_weights": "sd-1.5", "image": image}))
    assert found is not None and found.model == "sd-1.5" and set(found.unread) == {"[]"}
    assert (found.settings["prompt"], found.settings["sampler"]) == ("a red cat [fog]", "euler_a")
    image["prompt"] = [{"prompt": "a", "weight": 1}, {"prompt": "b", "weight": 1}]
    found = parse_old_metadata(json.dumps({"image": image}))
    assert found is not None and "prompt" not in found.settings and "prompt" in found.unread


@pytest.mark.parametrize("text", ["", "x", "[]", "3", "{}", "[" * 100_000])
def test_other_texts_are_none(text: str) -> None:
    assert parse_metadata(text) is None and parse_old_metadata(text) is None

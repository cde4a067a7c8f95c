"""Settings as one JSON object, by the names of diffusers' arguments."""

import json

import pytest

from genpipe.dialects.arguments import parse_arguments
from genpipe.dialects.parameters import Parameters


def test_the_arguments_of_a_pipeline_are_read() -> None:
    said = {"prompt": "a red cat", "negative_prompt": "fog", "num_inference_steps": 28, "guidance_scale": "7", "seed": 5,
            "resolution": "832 x 1216", "scheduler": "EulerAncestralDiscreteScheduler", "model": "some/model",
            "use_refiner": False, "eta": 0.0, "loras": ["style"], "image": "photo.png", "Sharpen": 2}  # fmt: skip
    settings = {"prompt": "a red cat", "negative_prompt": "fog", "steps": 28, "guidance_scale": 7.0, "seed": 5,
                "width": 832, "height": 1216, "sampler": "euler_a"}  # fmt: skip
    unread = {"loras": '["style"]', "image": "photo.png", "Sharpen": "2"}
    assert parse_arguments(json.dumps(said)) == Parameters(settings, "some/model", unread)


def test_values_that_cannot_be_are_left() -> None:
    found = parse_arguments(json.dumps({"prompt": "a", "steps": 0, "guidance_scale": "much", "size": "wide"}))
    assert found is not None and found.settings == {"prompt": "a"}
    assert found.unread == {"steps": "0", "guidance_scale": "much", "size": "wide"}


@pytest.mark.parametrize("text", ["", "a cat", "[]", "{}", '{"steps": 3}', "[" * 100_000])
def test_other_texts_are_none(text: str) -> None:
    assert parse_arguments(text) is None

"""Fields of rows in every spelling: read, refused, or warned of once by name."""

import math
import warnings
from dataclasses import fields
from typing import Any

import numpy as np
import pytest

from genpipe import Request
from genpipe.render.fields import FRACTIONS, WHOLE, FieldReader


def read(given: dict[Any, Any], *, texts: bool = False) -> dict[str, Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return FieldReader().read(given, 1, texts=texts)


def test_every_number_of_a_request_is_known():
    kinds = {field.name: field.type for field in fields(Request)}
    assert {"seed", "steps", "height", "width", "clip_skip", "n", "batch_size"} <= WHOLE
    assert {"guidance_scale", "guidance_rescale"} <= FRACTIONS
    assert not (WHOLE | FRACTIONS) & {name for name, kind in kinds.items() if kind is str}


@pytest.mark.parametrize(
    ("given", "fields"),
    [
        ({"text": "a", "num_inference_steps": 3, "cfg_scale": 2.0}, {"prompt": "a", "steps": 3, "guidance_scale": 2.0}),
        ({"Prompt": "a", "Negative prompt": "b", "CFG scale": 2.5, "Steps": 3}, {"prompt": "a", "negative_prompt": "b", "guidance_scale": 2.5, "steps": 3}),
        ({"prompt": "a", "seed": 7.0, "width": 64.0}, {"prompt": "a", "seed": 7, "width": 64}),
        ({"prompt": "a", "seed": np.int64(7), "steps": np.float32(3)}, {"prompt": "a", "seed": 7, "steps": 3}),
        ({"prompt": "a", "seed": math.nan, "steps": None, "mood": np.float64("nan")}, {"prompt": "a"}),
        ({"prompt": "a", "seed": -1}, {"prompt": "a"}),
        ({"prompt": "a", "seed": -1.0}, {"prompt": "a"}),
        ({"prompt": "a", "batch_size": 3}, {"prompt": "a", "n": 3}),
        ({"prompt": "a", "batch_size": 3, "n_iter": 2}, {"prompt": "a", "n": 6}),
        ({"prompt": "a", "size": "512x768"}, {"prompt": "a", "width": 512, "height": 768}),
        ({"prompt": "a", "Size": "0000000080x8"}, {"prompt": "a", "width": 80, "height": 8}),
        ({"prompt": "a", "size": "large"}, {"prompt": "a", "size": "large"}),
        ({"prompt": "a", "size": "512x768", "width": 512}, {"prompt": "a", "width": 512, "height": 768}),
        ({"prompt": "a", "sampler_index": "Euler a"}, {"prompt": "a", "sampler": "Euler a"}),
        ({"prompt": "a", "sampler_name": "DPM++ 2M", "scheduler": "Karras"}, {"prompt": "a", "sampler": "DPM++ 2M Karras"}),
        ({"prompt": "a", "sampler": "Euler", "scheduler": "Automatic"}, {"prompt": "a", "sampler": "Euler"}),
        ({"prompt": "a", "scheduler": "EulerDiscreteScheduler"}, {"prompt": "a", "sampler": "EulerDiscreteScheduler"}),
        ({"prompt": "a", "Clip skip": 2}, {"prompt": "a", "clip_skip": 1}),
        ({"prompt": "a", "Clip skip": 1, "clip_skip": 0}, {"prompt": "a", "clip_skip": 0}),
        ({"prompt": "a", "clip-skip": 2}, {"prompt": "a", "clip_skip": 2}),
        ({"prompt": "a", "steps": 3, "num_inference_steps": 3}, {"prompt": "a", "steps": 3}),
        ({"prompt": "a", "subseed": 7, "subseed_strength": 0.2}, {"prompt": "a", "vary_seed": 7, "vary": 0.2}),
        ({"prompt": "a", "tiling": False, "subseed": -1, "styles": []}, {"prompt": "a", "tile": False, "styles": []}),
        ({"prompt": "a", " mood ": [1], 5: "x"}, {"prompt": "a", "mood": [1], "5": "x"}),
    ],
)  # fmt: skip
def test_spellings_are_read(given, fields):
    found = read(given)
    assert found == fields
    assert [type(found[name]) for name in found.keys() & WHOLE] == [int] * len(found.keys() & WHOLE)


@pytest.mark.parametrize(
    ("text", "number"),
    [("7", 7), ("7.0", 7), (" 7. ", 7), ("+7", 7), ("1e3", 1000), ("0007", 7), (str(2**64 - 1), 2**64 - 1)],
)
def test_whole_numbers_as_programs_write_them(text, number):
    found = read({"prompt": "a", "seed": text}, texts=True)["seed"]
    assert found == number and type(found) is int


@pytest.mark.parametrize("text", ["x", "7.5", "1_000", "٧", "0x10", "1,000", "inf", "nan", "9" * 5000, "7 8", "--7"])
def test_what_is_not_a_whole_number_is_refused(text):
    with pytest.raises(ValueError, match="seed must be a whole number, not ") as caught:
        read({"prompt": "a", "seed": text}, texts=True)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("text", ["x", "1_0", "7,5", "inf", "nan", "", "1e"])
def test_what_is_not_a_number_is_refused(text):
    with pytest.raises(ValueError, match="guidance_scale must be a number"):
        read({"prompt": "a", "guidance_scale": text}, texts=True)


@pytest.mark.parametrize("texts", [False, True])
def test_a_seed_that_a_program_has_rounded_is_refused(texts):
    seed = float(2**63)
    with pytest.raises(ValueError, match="has lost its last digits"):
        read({"prompt": "a", "seed": str(seed) if texts else seed}, texts=texts)


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"steps": 3, "num_inference_steps": 4}, "'steps' and 'num_inference_steps' are one setting and disagree"),
        ({"Seed": 1, "seed": 2}, "'Seed' and 'seed' are one setting"),
        ({"size": "512x768", "height": 512}, "height 512 and size '512x768' disagree"),
        ({"size": "9999x8"}, "size '9999x8' is out of range"),
        ({"sampler_index": 3}, "sampler_index 3 is another sampler in each version of the web UI"),
        ({"sampler_index": "3"}, "sampler_index '3' is another sampler"),
        ({"sampler_index": "Euler", "sampler": "DDIM"}, "sampler 'DDIM' and sampler_index 'Euler' disagree"),
        ({"clip_skip": 2, "Clip skip": 2}, "clip_skip and Clip skip, which counts one more, disagree"),
        ({"batch_size": 0}, "batch_size must be a whole number from 1 to 100000, not 0"),
        ({"batch_size": True}, "batch_size must be a whole number"),
        ({"batch_size": 2, "n": "x"}, "n must be a whole number"),
        ({"steps": {"a": 1}}, "steps must be text or a number, not {'a': 1} (dict)"),
        ({"seed": b"7"}, "seed must be text or a number, not b'7' (bytes)"),
        ({"crop": [object(), 1]}, "crop must be text or a number, not [<object"),
        ({(1, 2): 3}, "the key (1, 2) is not text"),
    ],
)
def test_what_disagrees_or_means_nothing_is_refused(given, reason):
    with pytest.raises(ValueError) as caught:
        read({"prompt": "a", **given})
    assert reason in str(caught.value)


def test_what_is_not_available_is_warned_of_once_by_name_and_carried_through():
    reader = FieldReader()
    given = {"prompt": "a", "styles": "x", "restore_faces": True}
    with pytest.warns(UserWarning) as said:
        found = [reader.read(given, line) for line in (1, 2)]
    assert found == [given, given]
    assert [str(one.message) for one in said] == [
        f"{name} (line 1: {value}) is not available in genpipe and changes no image: it is only carried through to metadata.jsonl"
        for name, value in (("styles", "'x'"), ("restore_faces", "True"))
    ]


def test_a_true_is_not_a_one():
    assert read({"prompt": "a", "steps": True})["steps"] is True

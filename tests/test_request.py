import dataclasses
import json
import pickle

import numpy as np
import pytest

from genpipe.request import MAX_SIDE, Request, check_best_of, check_size
from genpipe.seeds import random_seed, seeds_for

USUAL = {"prompt": "pirate ship", "seed": 7, "steps": 20, "guidance_scale": 7.5, "height": 512, "width": 768}


def request(**changes) -> Request:
    return Request(**{**USUAL, **changes})


def test_a_request_cannot_be_changed_and_is_its_values():
    one, same, other = request(), request(), request(seed=8)
    assert {one, same, other} == {one, other}
    with pytest.raises(dataclasses.FrozenInstanceError):
        one.seed = 9  # pyright: ignore[reportAttributeAccessIssue]
    assert pickle.loads(pickle.dumps(one)) == one


def test_numbers_of_numpy_become_pythons():
    built = request(seed=np.uint64(2**64 - 1), steps=np.int32(3), guidance_scale=np.float32(1.5), height=np.int64(64))
    assert built == request(seed=2**64 - 1, steps=3, guidance_scale=1.5, height=64)
    assert [type(value) for value in (built.seed, built.steps, built.guidance_scale)] == [int, int, float]
    assert type(request(guidance_scale=7).guidance_scale) is float


@pytest.mark.parametrize("prompt", ["", "a\0b", "пиратский корабль", "🏴‍☠️🚢", "\u202eهكذا", "line\nline", "x" * 10_000])
def test_any_text_is_a_prompt(prompt):
    built = request(prompt=prompt, negative_prompt=prompt)
    assert Request.from_dict(json.loads(json.dumps(built.to_dict()))) == built


@pytest.mark.parametrize("spelling", ["dpmpp_2m_karras", "DPM++ 2M Karras"])
def test_samplers_are_stored_by_their_canonical_name(spelling):
    assert request(sampler=spelling) == request(sampler="dpmpp_2m_karras")


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("prompt", b"ship", "b'ship'"),
        ("prompt", None, "None"),
        ("prompt", ["ship"], "['ship']"),
        ("prompt", "ship\udcff", r"'\udcff' at character 4"),
        ("negative_prompt", 3, "3"),
        ("seed", -1, "0 to 18446744073709551615, not -1"),
        ("seed", 2**64, "not 18446744073709551616"),
        pytest.param("seed", 10**9999, "about 10,000 digits", id="a-huge-seed"),
        ("seed", True, "not True"),
        ("seed", np.True_, "not np.True_"),
        ("seed", 7.0, "not 7.0"),
        ("seed", "7", "not '7'"),
        ("steps", 0, "1 to 1000, not 0"),
        ("steps", 1001, "not 1001"),
        ("guidance_scale", float("nan"), "not nan"),
        ("guidance_scale", float("inf"), "not inf"),
        ("guidance_scale", np.float32("nan"), "nan"),
        ("guidance_scale", -0.5, "not -0.5"),
        ("guidance_scale", 10**400, "about 401 digits"),
        ("guidance_scale", "7", "not '7'"),
        ("guidance_scale", True, "not True"),
        ("guidance_rescale", 1.01, "0 to 1, not 1.01"),
        ("height", 0, "1 to 8192, not 0"),
        ("width", MAX_SIDE + 1, "not 8193"),
        ("width", 512.0, "not 512.0"),
        ("clip_skip", -1, "not -1"),
        ("sampler", "eulr", "euler"),
        ("sampler", 3, "3"),
    ],
)
def test_a_bad_value_is_refused_in_one_line_that_names_it(key, value, says):
    with pytest.raises(ValueError) as caught:
        request(**{key: value})
    message = str(caught.value)
    assert key in message and says in message and "\n" not in message and len(message) < 300


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({**USUAL, "stepz": 3, "cfg": 1}, "cfg, stepz"),
        ({"prompt": "ship", "seed": 1}, "lacks steps, guidance_scale, height, width"),
        ({**USUAL, "steps": None}, "steps"),
    ],
)
def test_from_dict_ignores_nothing(values, says):
    with pytest.raises(ValueError, match=says):
        Request.from_dict(values)


@pytest.mark.parametrize("factor", [1, 4, 8])
def test_sizes_pass_exactly_when_they_divide(factor):
    for side in range(1, 50):
        if side % factor == 0:
            check_size(side, factor, factor)
            check_size(factor, side, factor)
        else:
            with pytest.raises(ValueError, match=f"height must be a multiple of {factor} .* not {side}"):
                check_size(side, factor, factor)
            with pytest.raises(ValueError, match=f"width must be a multiple of {factor}"):
                check_size(factor, side, factor)


@pytest.mark.parametrize(
    ("side", "near"), [(500, "496 or 504"), (3, "is 8"), (8191, "8184 or 8192"), (0, "not 0"), (8200, "not 8200")]
)
def test_a_size_that_does_not_fit_gets_the_nearest_that_do(side, near):
    with pytest.raises(ValueError, match=near):
        check_size(512, side, 8)


def test_seeds_count_up_and_wrap_round():
    assert seeds_for(5, 3) == [5, 6, 7]
    assert seeds_for(2**64 - 2, 4) == [2**64 - 2, 2**64 - 1, 0, 1]


@pytest.mark.parametrize(("seed", "n"), [(0, 0), (0, -1), (0, True), (0, 1.0), (-1, 1), (2**64, 1)])
def test_seeds_for_refuses(seed, n):
    with pytest.raises(ValueError, match="must be a whole number"):
        seeds_for(seed, n)


def test_random_seeds_differ_and_are_short():
    seeds = {random_seed() for _ in range(50)}
    assert len(seeds) > 45 and all(0 <= seed < 2**32 for seed in seeds)


def test_a_number_to_choose_from_is_checked():
    check_best_of(1)
    check_best_of(100)
    for wrong in (0, 101, 2.5, "8", None, True):
        with pytest.raises(ValueError, match="best_of must be a whole number from 1 to 100, not"):
            check_best_of(wrong)  # pyright: ignore[reportArgumentType]

"""What requests tell the denoiser, and in which rows."""

from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from genpipe.checkpoints import Checkpoint, families, load_checkpoint
from genpipe.models.conditioning import Conditioning
from genpipe.models.unet import UNet
from genpipe.pipeline.conditions import Conditions, condition, time_ids
from genpipe.prompts.encoder import PromptEncoder, TextPart
from genpipe.request import Request
from genpipe.sampling.schedule import Step

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def xl(tiny_xl_checkpoint: Path) -> Checkpoint:
    return replace(load_checkpoint(tiny_xl_checkpoint), zero_empty_negative=False)


@pytest.fixture(scope="module")
def encode(xl: Checkpoint) -> PromptEncoder:
    pairs = zip(xl.tokenizers, xl.text_encoders, strict=True)
    texts = [TextPart(tokenizer, partial(nullcontext, encoder.eval())) for tokenizer, encoder in pairs]
    return PromptEncoder(texts, device=CPU, model="tiny", pooled=True)


def request(prompt: str = "a red cat", **settings: Any) -> Request:
    given: dict[str, Any] = {"seed": 1, "steps": 4, "guidance_scale": 4.0, "height": 32, "width": 48, **settings}
    return Request(prompt, **given)


@torch.inference_mode()
def same(one: Conditioning, other: Conditioning) -> bool:
    assert one.pooled is not None and other.pooled is not None
    return torch.equal(one.context, other.context) and torch.equal(one.pooled, other.pooled)


@torch.inference_mode()
def test_negative_prompts_come_first_and_keep_every_layer(encode: PromptEncoder, xl: Checkpoint) -> None:
    requests = [request(clip_skip=1, negative_prompt="bad"), request("a blue dog", clip_skip=1)]
    found = condition(encode, requests, xl, guided=True, device=CPU)
    assert len(found) == 4
    assert same(found.rows([0, 1]), encode(["bad", ""], clip_skip=0))
    assert same(found.rows([2, 3]), encode(["a red cat", "a blue dog"], clip_skip=1))


@torch.inference_mode()
def test_without_sizes_layers_are_left_out_for_negative_prompts_too(encode: PromptEncoder, xl: Checkpoint) -> None:
    plain = replace(xl, family=families.SD1)
    found = condition(encode, [request(clip_skip=1, negative_prompt="bad")], plain, guided=True, device=CPU)
    assert same(found.rows([0]), encode(["bad"], clip_skip=1)) and found.time_ids is None


@torch.inference_mode()
def test_an_empty_negative_prompt_is_zeros_where_the_checkpoint_wants_it(encode: PromptEncoder, xl: Checkpoint) -> None:
    requests = [request(), request(negative_prompt="bad"), request("", negative_prompt="")]
    found = condition(encode, requests, replace(xl, zero_empty_negative=True), guided=True, device=CPU)
    assert found.pooled is not None
    for row in (0, 2):
        assert not found.context[row].any() and not found.pooled[row].any()
    assert same(found.rows([1]), encode(["bad"]))
    assert same(found.rows([3, 4, 5]), encode(["a red cat", "a red cat", ""]))  # an empty prompt is encoded
    assert same(encode([""]), encode([""])) and encode([""]).context.any()  # what is kept was not written to


@torch.inference_mode()
def test_unguided_and_distilled_batches_have_a_row_per_image(encode: PromptEncoder, xl: Checkpoint) -> None:
    requests = [request(guidance_scale=2.0), request("a blue dog", guidance_scale=8.5)]
    distilled = replace(xl, unet=UNet(replace(xl.unet.config, guidance_channels=8)))
    found = condition(encode, requests, distilled, guided=False, device=CPU)
    assert len(found) == 2 and found.guidance_scale is not None and found.guidance_scale.tolist() == [2.0, 8.5]
    assert condition(encode, requests, xl, guided=False, device=CPU).guidance_scale is None


@torch.inference_mode()
def test_sizes_are_the_images_own_unless_said(encode: PromptEncoder, xl: Checkpoint) -> None:
    given = request(original_size=(1025, 64), crop=(3, 5), target_size=(40, 1024))
    found = condition(encode, [request(), given], xl, guided=True, device=CPU)
    assert found.time_ids is not None and found.time_ids.dtype == torch.float32  # which rounds no size
    own, said = [32, 48, 0, 0, 32, 48], [1025, 64, 3, 5, 40, 1024]
    assert found.time_ids.tolist() == [own, said, own, said]


def test_a_refiner_is_told_of_a_score_in_place_of_the_target() -> None:
    given = request(original_size=(64, 96), crop=(3, 5), target_size=(40, 40))
    assert time_ids(given, count=5) == (64, 96, 3, 5, 6.0)
    assert time_ids(given, count=5, negative=True) == (64, 96, 0, 0, 2.5)
    assert time_ids(request(), count=5) == (32, 48, 0, 0, 6.0)


def test_the_interval_of_guidance_is_open_below_and_closed_above() -> None:
    nothing = Conditioning(context=torch.zeros(2, 1, 1))
    ratios, usual = (0.0, 0.28, 0.281, 5.42, 5.43), Conditions((nothing,), (0,))
    steps = [Step(0.0, alpha=1.0, sigma=ratio) for ratio in ratios] + [Step(0.0, alpha=0.0, sigma=1.0)]
    assert [usual.leads(step) for step in steps] == [False, True, True, True, True, True]
    between = replace(usual, between=(0.28, 5.42))
    assert [between.leads(step) for step in steps] == [False, False, True, True, False, False]
    joined = replace(between, weights=torch.ones(2, 1))
    assert all(joined.leads(step) for step in steps)

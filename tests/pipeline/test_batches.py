"""An image depends on its seed alone, never on its batch."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from genpipe.pipeline import BATCH, Pipeline
from genpipe.sampling.noise import ImageNoise
from tests.pipeline.drawing import difference, draw, ids


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


def test_noise_is_that_of_the_seed_alone() -> None:
    noise = ImageNoise([3, 4], (4, 8, 8), torch.device("cpu"))
    generator = torch.Generator("cpu").manual_seed(4)
    for _ in range(3):
        assert torch.equal(noise()[1], torch.randn((1, 4, 8, 8), generator=generator)[0])


def test_a_batch_that_does_not_agree_is_refused(pipe: Pipeline) -> None:
    one, two = (pipe.requests("a", seed=1, steps=steps)[0] for steps in (2, 3))
    with pytest.raises(ValueError, match="differs in steps"):
        next(iter(pipe.stream([one, two])))


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

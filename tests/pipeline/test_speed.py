"""Speeds, tiny autoencoders, low memory and int8: what draws faster or smaller."""

import gc
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from genpipe.checkpoints import load_checkpoint
from genpipe.metadata import read_request
from genpipe.models.cpu.quantised import QuantisedLayer
from genpipe.models.text_encoder import TextEncoder
from genpipe.models.vae import VAE
from genpipe.pipeline import Pipeline, Progress
from genpipe.pipeline.networks import check_compile, check_int8, warn_of_memory, weight_bytes
from genpipe.spec import ModelSpec
from tests.conftest import HAS_INT8, needs_int8
from tests.pipeline.drawing import difference, draw, middle


@pytest.mark.parametrize("speed", ["balanced", "draft"])
def test_a_speed_is_part_of_what_makes_a_picture(pipe: Pipeline, speed: str) -> None:
    exact, fast = draw(pipe, steps=8), draw(pipe, steps=8, speed=speed)
    assert json.loads(fast.info["genpipe"])["speed"] == speed
    assert difference(draw(pipe, steps=8, speed=speed), fast) == 0
    error = np.asarray(exact, dtype=float) - np.asarray(fast, dtype=float)
    assert 0 < np.abs(error).mean() < np.abs(np.asarray(exact, dtype=float) - 127).mean()
    together = draw(pipe, steps=8, speed=speed, n=2)
    assert difference(together[0], fast) <= 2


def test_guidance_applies_in_the_interval_of_the_speed_alone(fresh: Pipeline) -> None:
    rows: list[int] = []
    fresh.unet.conv_out.register_forward_hook(lambda module, given, output: rows.append(len(output)))
    draw(fresh, steps=8, sampler="ddim", speed="balanced")
    ratios = [step.ratio for step in fresh.sampler("ddim").schedule(8).steps[:-1]]
    assert rows == [2 if 0.28 < ratio <= 5.42 else 1 for ratio in ratios]  # of the paper's Stable Diffusion XL
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


@pytest.mark.skipif(not HAS_INT8, reason="this torch or this CPU has no int8")
@pytest.mark.parametrize("low_memory", [False, True])
def test_int8_draws_nearly_the_same_and_says_so(wide_checkpoint: Path, low_memory: bool) -> None:
    settings: dict[str, Any] = {
        "device": "cpu",
        "low_memory": low_memory,
    }  # in bf16, or in fp32 where that is not native
    small = Pipeline.from_pretrained(wide_checkpoint, int8=True, **settings)
    assert any(isinstance(module, QuantisedLayer) for module in small.unet.modules())
    assert not any(isinstance(module, QuantisedLayer) for module in small.vae.modules())
    image, usual = draw(small), draw(Pipeline.from_pretrained(wide_checkpoint, **settings))
    error = np.asarray(image, dtype=float) - np.asarray(usual, dtype=float)
    assert 30 <= 10 * np.log10(255**2 / (error**2).mean()) < 70
    assert json.loads(image.info["genpipe"])["int8"] is True and "int8" not in json.loads(usual.info["genpipe"])
    assert read_request(image) == read_request(usual)


@needs_int8
def test_int8_that_pays_for_no_layer_is_refused(tiny_checkpoint: Path) -> None:
    with pytest.raises(ValueError, match="too narrow: leave it out"):
        Pipeline.from_pretrained(tiny_checkpoint, int8=True, device="cpu", dtype="bf16")


@pytest.mark.parametrize(
    ("device", "dtype", "native", "says"),
    [
        ("cpu", torch.float32, True, "not with fp32: use --dtype bf16"),
        ("cuda", torch.bfloat16, True, "not on cuda: use cpu"),
        ("cpu", torch.bfloat16, False, "AVX-VNNI, AVX512-VNNI or AMX"),
    ],
)
def test_int8_where_it_cannot_run_gets_one_clear_line(device: str, dtype: torch.dtype, native: bool, says: str) -> None:
    with pytest.raises(ValueError, match=says) as caught:
        check_int8(torch.device(device), dtype, usual=torch.bfloat16, native=native)
    assert "\n" not in str(caught.value) and "--no-int8" in str(caught.value)


@pytest.mark.parametrize(
    ("device", "possible", "says"), [("cpu", True, "not for cpu: use --device cuda"), ("cuda", False, "a C compiler")]
)
def test_compile_where_it_cannot_be_gets_one_clear_line(device: str, possible: bool, says: str) -> None:
    with pytest.raises(ValueError, match=says) as caught:
        check_compile(torch.device(device), possible=possible)
    assert "\n" not in str(caught.value) and "--no-compile" in str(caught.value)


@pytest.mark.parametrize(
    ("option", "says"),
    [("compile", "compile is for CUDA alone"), ("fp8", "fp8 runs on NVIDIA's GPUs alone, not on cpu")],
)
def test_what_is_for_a_gpu_is_refused_on_a_cpu(option: str, says: str, tiny_checkpoint: Path) -> None:
    with pytest.raises(ValueError, match=says):
        Pipeline.from_pretrained(ModelSpec.from_dict({"model": tiny_checkpoint, "device": "cpu", option: True}))


def test_a_model_that_the_memory_does_not_hold_is_told_of_before_it_is_loaded(tiny_checkpoint: Path) -> None:
    networks = list(load_checkpoint(tiny_checkpoint).networks.values())
    count = sum(tensor.numel() for network in networks for tensor in network.state_dict().values())
    assert weight_bytes(networks, torch.float32) == 4 * count == 2 * weight_bytes(networks, torch.bfloat16)
    stored = load_checkpoint(tiny_checkpoint, unet_dtype=torch.bfloat16)
    assert 2 * count < weight_bytes(list(stored.networks.values()), torch.float32) < 4 * count
    with pytest.warns(UserWarning, match=r"takes about 4\.3 GB of memory, and 2\.0 GB are free: use --low-memory, "):
        warn_of_memory(4_300_000_000, 2_000_000_000, low_memory=False)
    with pytest.warns(UserWarning, match=r"2\.0 GB are free: use --weights int8"):
        warn_of_memory(4_300_000_000, 2_000_000_000, low_memory=True)
    with warnings.catch_warnings(action="error"):
        warn_of_memory(2_000_000_000, 2_000_000_000, low_memory=False)
        warn_of_memory(2_000_000_000, None, low_memory=False)

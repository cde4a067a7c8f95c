"""A pipeline of diffusers from the hub: fetched once, at one commit, without what is not wanted; then from the cache."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_hub import constants, hf_api

from genpipe.adapters.fetching import chosen_weights
from genpipe.checkpoints.errors import CheckpointError
from genpipe.pipeline import Pipeline
from genpipe.spec import ModelSpec
from tests.adapters.conftest import family_named
from tests.adapters.tiny import Family
from tests.checkpoints.loopback_hub import COMMIT, ID, Hub, point_at

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


@pytest.fixture
def hub(folder_of: Callable[[Family], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    root = Path(shutil.copytree(folder_of(family_named("PixArt-Σ")), tmp_path / "hub"))
    (root / "transformer" / "diffusion_pytorch_model.bin").write_bytes(b"a pickle")
    (root / "pipeline.py").write_text("raise RuntimeError('it ran')")
    made = Hub(root)
    point_at(made.address, tmp_path / "cache", monkeypatch)
    monkeypatch.setattr(hf_api.api, "endpoint", made.address)
    yield made
    made.close()


PRIOR = "owner/prior"


def draw(family: Family) -> np.ndarray:
    pipeline = Pipeline.from_pretrained(ID, device="cpu", dtype="fp32")
    return np.asarray(pipeline("a red cat", seed=3, progress=False, **family.settings))


def test_it_is_fetched_once_and_drawn_from_the_cache(
    hub: Hub, loaded: Callable[[Family], Pipeline], monkeypatch: pytest.MonkeyPatch
):
    family = family_named("PixArt-Σ")
    expected = np.asarray(loaded(family)("a red cat", seed=3, progress=False, **family.settings))
    assert np.array_equal(draw(family), expected)
    assert "transformer/diffusion_pytorch_model.safetensors" in hub.sent
    assert not [name for name in hub.sent if name.endswith((".bin", ".py"))]
    assert len(set(hub.sent)) == len(hub.sent)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    before = hub.asked
    assert np.array_equal(draw(family), expected) and hub.asked == before


def test_a_commit_that_the_hub_does_not_have_is_named(hub: Hub):
    with pytest.raises(CheckpointError, match="no revision 'nowhere'"):
        Pipeline.from_pretrained(ID, device="cpu", revision="nowhere")
    assert Pipeline.from_pretrained(ID, device="cpu", dtype="fp32", revision=COMMIT).name == ID


def test_a_prior_in_another_repository_is_fetched_from_there(
    loaded: Callable[[Family], Pipeline], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    family = family_named("Kandinsky 2.2")
    pipe = family.build()
    pipe.decoder_pipe.save_pretrained(tmp_path / "decoder")
    pipe.prior_pipe.save_pretrained(tmp_path / "prior")
    (tmp_path / "decoder" / "README.md").write_text(f"---\nprior:\n- {PRIOR}\n---\n")
    hub = Hub(tmp_path / "decoder", **{PRIOR: tmp_path / "prior"})
    point_at(hub.address, tmp_path / "cache", monkeypatch)
    monkeypatch.setattr(hf_api.api, "endpoint", hub.address)
    expected = np.asarray(loaded(family)("a red cat", seed=3, progress=False, **family.settings))
    assert np.array_equal(draw(family), expected)
    assert {"prior/diffusion_pytorch_model.safetensors", "unet/diffusion_pytorch_model.safetensors"} <= set(hub.sent)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert np.array_equal(draw(family), expected)
    hub.close()


def test_a_single_file_takes_its_other_parts_from_the_hub(
    folder_of: Callable[[Family], Path], loaded: Callable[[Family], Pipeline], hub: Hub, tmp_path: Path
):
    family = family_named("Stable Diffusion 3")
    for path in hub.root.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    shutil.copytree(folder_of(family), hub.root, dirs_exist_ok=True)
    file = Path(
        shutil.move(hub.root / "transformer" / "diffusion_pytorch_model.safetensors", tmp_path / "mine.safetensors")
    )
    (hub.root / "transformer" / "diffusion_pytorch_model.safetensors").write_bytes(b"never fetched")
    pipeline = Pipeline.from_pretrained(file, base=ID, device="cpu", dtype="fp32")
    drawn = pipeline("a red cat", seed=3, progress=False, **family.settings)
    expected = loaded(family)("a red cat", seed=3, progress=False, **family.settings)
    assert np.array_equal(np.asarray(drawn), np.asarray(expected))
    assert "transformer/config.json" in hub.sent and "vae/diffusion_pytorch_model.safetensors" in hub.sent
    assert "transformer/diffusion_pytorch_model.safetensors" not in hub.sent


@pytest.mark.parametrize(
    ("options", "chosen"),
    [
        ({}, ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]),
        ({"variant": "fp16"}, ["model.fp16.safetensors"]),
        ({"variant": "bf16"}, ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]),
    ],
)
def test_weights_of_a_variant_are_chosen_or_the_plain_ones(options: dict[str, Any], chosen: list[str]):
    names = ["config.json", "model.fp16.safetensors", "model.bin", "model.non_ema.safetensors"]
    names += [f"model-0000{part}-of-00002.safetensors" for part in (1, 2)]
    assert chosen_weights(names, ModelSpec("m", **options)) == chosen
    assert chosen_weights(["model.bin"], ModelSpec("m")) == []
    assert chosen_weights(["model.bin"], ModelSpec("m", allow_pickle=True)) == ["model.bin"]

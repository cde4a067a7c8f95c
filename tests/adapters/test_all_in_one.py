"""Single files that hold all: denoiser, autoencoder and text encoders; a base gives configs and tokenizers."""

import importlib
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from genpipe.checkpoints.errors import CheckpointError
from tests.adapters.conftest import family_named
from tests.adapters.original_names import UNET, autoencoder, stable_diffusion_3
from tests.adapters.test_single import FLUX, SD3, drawn, load, weights
from tests.adapters.tiny import Family

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
Save = Callable[[Family], Path]


@pytest.fixture
def sd3(folder_of: Save) -> Path:
    return folder_of(family_named(SD3))


def all_in_one(pipe: Any, denoiser: dict[str, torch.Tensor], names: dict[str, str]) -> dict[str, torch.Tensor]:
    """The tensors of a file that holds all, its text encoders under these names; what is tied together is in it once."""
    found = {f"{UNET}{key}": tensor for key, tensor in denoiser.items()} | autoencoder(pipe.vae.state_dict(), 2)
    for part, name in names.items():
        network = getattr(pipe, part)
        plain = (
            "" if type(network).__name__ != "CLIPTextModel" else "text_model."
        )  # which files have, and transformers 5 not
        found |= {f"text_encoders.{name}.transformer.{plain}{key}": one for key, one in network.state_dict().items()}
        found[f"text_encoders.{name}.logit_scale"] = torch.zeros(())
    del found["text_encoders.t5xxl.transformer.encoder.embed_tokens.weight"]
    return found


def without_weights(folder: Path, into: Path) -> Path:
    """A copy of a folder without any weights: what configs and tokenizers it has."""
    return Path(shutil.copytree(folder, into, ignore=shutil.ignore_patterns("*.safetensors")))


def test_a_file_that_holds_all_takes_configs_and_tokenizers_of_its_base_alone(sd3: Path, tmp_path: Path):
    diffusers: Any = importlib.import_module("diffusers")
    pipe = diffusers.StableDiffusion3Pipeline.from_pretrained(sd3)
    names = {"text_encoder": "clip_l", "text_encoder_2": "clip_g", "text_encoder_3": "t5xxl"}
    for index, part in enumerate(names):  # not those that the folder has
        torch.manual_seed(index)
        for parameter in getattr(pipe, part).parameters():
            parameter.data.normal_(std=0.5)
    state = all_in_one(pipe, stable_diffusion_3(weights(sd3, "transformer"), layers=2), names)
    save_file(state, tmp_path / "all.safetensors")
    base = without_weights(sd3, tmp_path / "base")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pipeline = load(tmp_path / "all.safetensors", base)
    pipe.text_encoder.text_projection.weight.data = torch.eye(32)  # which diffusers has, whatever such a file holds
    by_hand = {**family_named(SD3).by_hand, "generator": torch.Generator().manual_seed(3)}
    assert np.array_equal(drawn(pipeline), np.asarray(pipe("a red cat", **by_hand).images[0]).astype(int))


@pytest.mark.parametrize("scaled", [False, True])
def test_a_flux_with_a_t5_in_fp8_is_drawn_without_weights_of_its_base(scaled: bool, folder_of: Save, tmp_path: Path):
    diffusers: Any = importlib.import_module("diffusers")
    folder = folder_of(family_named(FLUX))
    pipe = diffusers.FluxPipeline.from_pretrained(folder)
    names = {"text_encoder": "clip_l", "text_encoder_2": "t5xxl"}
    state = all_in_one(pipe, weights(folder, "transformer"), names)
    inside = "text_encoders.t5xxl.transformer."
    for key in [key for key in state if key.startswith(f"{inside}encoder") and state[key].ndim == 2]:
        scale = state[key].abs().max() / 448 if scaled else torch.ones(())
        state[key] = (state[key] / scale).to(torch.float8_e4m3fn)
        part = dict(pipe.text_encoder_2.named_parameters())[key.removeprefix(inside)]
        part.data = state[key].float() * scale
        if scaled:
            state[key.replace(".weight", ".scale_weight")] = scale
    save_file(state, tmp_path / "all.safetensors")
    pipeline = load(tmp_path / "all.safetensors", without_weights(folder, tmp_path / "base"))
    by_hand = {**family_named(FLUX).by_hand, "generator": torch.Generator().manual_seed(3)}
    assert np.array_equal(drawn(pipeline, FLUX), np.asarray(pipe("a red cat", **by_hand).images[0]).astype(int))


def test_text_encoders_that_do_not_fit_are_an_error(sd3: Path, tmp_path: Path):
    diffusers: Any = importlib.import_module("diffusers")
    pipe = diffusers.StableDiffusion3Pipeline.from_pretrained(sd3)
    names = {"text_encoder": "clip_l", "text_encoder_2": "clip_g", "text_encoder_3": "t5xxl"}
    state = all_in_one(pipe, stable_diffusion_3(weights(sd3, "transformer"), layers=2), names)
    file, base = tmp_path / "all.safetensors", without_weights(sd3, tmp_path / "base")
    for place, change, message in (
        ("clip_g.transformer.text_projection.weight", None, "it lacks text_projection.weight"),
        ("t5xxl.transformer.shared.weight", torch.zeros(3, 3), "text_encoder_3 of .*, a T5EncoderModel: "),
    ):
        changed = {**state, f"text_encoders.{place}": change}
        save_file({key: tensor for key, tensor in changed.items() if tensor is not None}, file)
        with pytest.raises(CheckpointError, match=message) as raised:
            load(file, base)
        assert "\n" not in str(raised.value) and "give the base that it was made for" in str(raised.value)

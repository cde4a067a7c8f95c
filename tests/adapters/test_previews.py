"""Previews by a tiny autoencoder: what diffusers' own of it shows of the latents."""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from genpipe.checkpoints.errors import CheckpointError
from genpipe.pipeline import Pipeline
from tests.adapters.conftest import family_named
from tests.adapters.tiny import Family, seeded

pytestmark = pytest.mark.filterwarnings("ignore")  # diffusers' own, of what it will drop one day
Save = Callable[[Family], Path]


def tiny(folder: Path, channels: int) -> Any:
    """Save a tiny autoencoder for latents that are half as wide as images."""
    diffusers: Any = import_module("diffusers")
    network = seeded(
        lambda: diffusers.AutoencoderTiny(
            encoder_block_out_channels=(8, 8),
            decoder_block_out_channels=(8, 8),
            num_encoder_blocks=(1, 1),
            num_decoder_blocks=(1, 1),
            latent_channels=channels,
        )
    )
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(2)  # of the size that trained weights have: else the last bias alone would show
    network.save_pretrained(folder)
    return network


@pytest.mark.parametrize("name", ["Stable Diffusion 3", "FLUX.1 dev"])
def test_steps_are_shown_by_a_tiny_autoencoder(name: str, folder_of: Save, tmp_path: Path):
    family, seen = family_named(name), []
    channels = 16 if name == "Stable Diffusion 3" else 4
    network = tiny(tmp_path / "tiny", channels)
    given: Any = {"device": "cpu", "dtype": "fp32"}
    pipeline = Pipeline.from_pretrained(folder_of(family), tiny_vae=tmp_path / "tiny", **given)
    settings: Any = {**family.settings, "height": 32, "width": 32}
    image = pipeline("a red cat", seed=3, progress=False, callback=seen.append, **settings)
    (preview,) = seen[0].preview()
    latents = seen[0].latents
    if name == "FLUX.1 dev":  # squares of 2 x 2 are one token
        latents = latents.view(1, 8, 8, 4, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(1, 4, 16, 16)
    with torch.inference_mode():
        pixels = network.decode(latents).sample
    expected = ((pixels / 2 + 0.5).clamp(0, 1) * 255).round()[0].movedim(0, -1).numpy()
    assert preview.size == (32, 32) and expected.std() > 5
    assert np.abs(np.asarray(preview).astype(int) - expected).max() <= 1
    plain = Pipeline.from_pretrained(folder_of(family), **given)
    assert np.array_equal(np.asarray(image), np.asarray(plain("a red cat", seed=3, progress=False, **settings)))


def test_one_for_other_latents_is_an_error(folder_of: Save, tmp_path: Path):
    tiny(tmp_path / "tiny", 4)
    with pytest.raises(CheckpointError, match="4 channels, 2 pixels wide, where the checkpoint's have 16 and 2"):
        Pipeline.from_pretrained(
            folder_of(family_named("Stable Diffusion 3")), device="cpu", tiny_vae=tmp_path / "tiny"
        )
    with pytest.raises(ValueError, match="tiny_vae is not for this model, which has no autoencoder"):
        Pipeline.from_pretrained(folder_of(family_named("DeepFloyd IF")), device="cpu", tiny_vae=tmp_path / "tiny")

"""The tiny autoencoder computes what diffusers' `AutoencoderTiny` computes, from the files that it saves."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny

from genpipe.checkpoints import CheckpointError, load_tiny_vae
from genpipe.models.cpu.forms import PACKABLE, Forms
from genpipe.models.prepare import prepare
from genpipe.models.tiny_vae import TinyVAE, TinyVAEConfig
from genpipe.models.vae import VAEConfig

SETTINGS: dict[str, Any] = {
    "encoder_block_out_channels": (8, 8, 8),
    "decoder_block_out_channels": (8, 8, 8),
    "num_encoder_blocks": (1, 2, 1),
    "num_decoder_blocks": (2, 1, 1),
}


@pytest.fixture
def theirs() -> Any:
    torch.manual_seed(0)
    network: Any = AutoencoderTiny(**SETTINGS)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(2)  # of the size that trained weights have: else the last bias alone would show
    return network.eval()


@torch.inference_mode()
@pytest.mark.parametrize("prepared", [False, True])
def test_it_computes_what_diffusers_computes(theirs: Any, tmp_path: Path, prepared: bool) -> None:
    theirs.save_pretrained(tmp_path / "taesd")
    ours = load_tiny_vae(tmp_path / "taesd", latent_channels=4, factor=4).eval()
    if prepared:
        prepare(ours, device=torch.device("cpu"), dtype=torch.float32, forms=Forms(packed=PACKABLE, phases=True))
    latents, pixels = 3 * torch.randn(2, 4, 5, 7), torch.rand(2, 3, 16, 24) * 2 - 1
    expected = theirs.decode(latents).sample
    assert float(expected.std()) > 0.03
    assert (ours.decode(latents) - expected).abs().max() <= 1e-5
    encoded = theirs.encode(pixels).latents
    assert float(encoded.std()) > 0.03
    assert (ours.encode(pixels) - encoded).abs().max() <= 1e-5


def test_defaults_are_those_of_taesd() -> None:
    with torch.device("meta"):
        theirs, ours = AutoencoderTiny(), TinyVAE(TinyVAEConfig.from_dict({}))
    shapes = {key: tensor.shape for key, tensor in theirs.state_dict().items()}
    assert {key: tensor.shape for key, tensor in ours.state_dict().items()} == shapes
    assert ours.config.factor == 8


def test_what_does_not_fit_is_refused_in_one_line(theirs: Any, tmp_path: Path) -> None:
    folder = tmp_path / "taesd"
    theirs.save_pretrained(folder)
    with pytest.raises(
        CheckpointError, match="latents of 4 channels, 4 pixels wide, where the checkpoint's have 16 and 8"
    ):
        load_tiny_vae(folder, latent_channels=16, factor=8)
    with pytest.raises(CheckpointError, match=r"lacks taesd2/config\.json"):
        load_tiny_vae(tmp_path / "taesd2", latent_channels=4, factor=4)
    config = json.loads((folder / "config.json").read_text())
    for other, message in (
        (config | {"act_fn": "mish"}, "act_fn must be \"relu\", not 'mish'"),
        (VAEConfig().to_dict(), "AutoencoderKL is not a tiny autoencoder"),
    ):
        (folder / "config.json").write_text(json.dumps(other))
        with pytest.raises(CheckpointError, match=message):
            load_tiny_vae(folder, latent_channels=4, factor=4)
    (folder / "config.json").write_text(json.dumps(config | {"num_decoder_blocks": [2, 2, 1]}))
    with pytest.raises(CheckpointError, match="missing"):
        load_tiny_vae(folder, latent_channels=4, factor=4)

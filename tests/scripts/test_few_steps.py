"""The time of an image of few steps is told by its parts."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from genpipe.checkpoints import load_tiny_vae
from genpipe.checkpoints.layout import tiny_vae
from genpipe.models.tiny_vae import TinyVAE, TinyVAEConfig
from genpipe.pipeline import Pipeline
from scripts.benchmark import few_steps


@pytest.fixture
def pipe(tiny_checkpoint: Path, tmp_path: Path) -> Pipeline:
    torch.manual_seed(0)
    widths = {"encoder_block_out_channels": (8,) * 3, "decoder_block_out_channels": (8,) * 3}
    config = {
        "_class_name": "AutoencoderTiny",
        **widths,
        "num_encoder_blocks": (1,) * 3,
        "num_decoder_blocks": (1,) * 3,
    }
    names, folder = tiny_vae("taesd"), tmp_path / "taesd"
    folder.mkdir()
    network = TinyVAE(TinyVAEConfig.from_dict(config))
    save_file(
        {names.theirs(key): tensor for key, tensor in network.state_dict().items()},
        folder / "diffusion_pytorch_model.safetensors",
    )
    (folder / "config.json").write_text(json.dumps(config))
    return Pipeline.from_pretrained(tiny_checkpoint, device="cpu", dtype="fp32", tiny_vae=folder)


def test_the_parts_are_the_whole_and_nothing_stays_changed(pipe: Pipeline, tmp_path: Path) -> None:
    before = pipe.networks.evaluate
    seconds = few_steps.draw(pipe, steps=2, seed=1, folder=tmp_path)
    whole = seconds.pop("whole")
    assert set(seconds) == {"denoiser", "text", "decoding", "PNG", "the rest"}
    assert all(part > 0 for part in seconds.values()) and sum(seconds.values()) == pytest.approx(whole)
    assert pipe.networks.evaluate is before


def test_the_autoencoder_that_it_makes_is_read_again(tmp_path: Path) -> None:
    few_steps.make_tiny_vae(tmp_path / "taesd")
    read = load_tiny_vae(tmp_path / "taesd", latent_channels=4, factor=8)
    torch.manual_seed(0)
    assert all(
        torch.equal(tensor, read.state_dict()[key]) for key, tensor in TinyVAE(TinyVAEConfig()).state_dict().items()
    )

"""Tiny models for the tests: a whole checkpoint of random weights that draws 32×32 pictures in milliseconds."""

from pathlib import Path
from typing import Any

import pytest
import torch

from genpipe.checkpoints import save_checkpoint
from genpipe.models.text_encoder import TextEncoder, TextEncoderConfig
from genpipe.models.tokenizer import Tokenizer, train_tokenizer
from genpipe.models.unet import UNet
from genpipe.models.unet_config import UNetConfig
from genpipe.models.vae import VAE, VAEConfig

# The models are so small that a second thread costs more than it gives; on a busy machine, many times more.
torch.set_num_threads(1)

CAPTIONS = ["a red cat and a blue dog", "a pirate ship at sea", "красный круг над синим квадратом"]
SCHEDULER = {
    "_class_name": "DDIMScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "prediction_type": "epsilon",
}


def tiny_parts(*, length: int = 16, width: int = 32) -> dict[str, Any]:
    """The networks and the tokenizer of `tiny_checkpoint`, always the same: prompts are `length` vectors of `width`."""
    tokenizer: Tokenizer = train_tokenizer(CAPTIONS, 560, length=length)
    torch.manual_seed(0)
    text_encoder = TextEncoder(
        TextEncoderConfig(
            vocab_size=tokenizer.vocab_size,
            hidden_size=width,
            intermediate_size=64,
            num_hidden_layers=3,
            num_attention_heads=2,
            max_position_embeddings=tokenizer.length,
            eos_token_id=tokenizer.eos_id,
        )
    )
    unet = UNet(
        UNetConfig(
            sample_size=8,
            channels=(16, 32),
            attention=(True, False),
            attention_up=(True, False),
            layers=(1, 1),
            depth=(1, 1),
            heads=(2, 4),
            only_cross=(False, False),
            context_channels=width,
            norm_groups=8,
        )
    )
    vae = VAE(VAEConfig(channels=(8, 16, 16), layers=1, norm_groups=4, sample_size=32))
    with torch.no_grad():
        vae.decoder.conv_out.weight.mul_(8)  # contrast: a grey picture would agree with anything
    return {
        "tokenizer": tokenizer,
        "text_encoder": text_encoder,
        "unet": unet,
        "vae": vae,
        "scheduler_config": SCHEDULER,
    }


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a whole checkpoint with random weights in fp32: 32×32 pictures, prompts of 16 tokens. Do not write to it."""
    directory = tmp_path_factory.mktemp("tiny") / "checkpoint"
    save_checkpoint(directory, **tiny_parts())
    return directory

"""Tiny models for the tests: a whole checkpoint of random weights that draws 32×32 pictures in milliseconds."""

import gc
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from genpipe.checkpoints import save_checkpoint
from genpipe.hardware import choose_dtype, free_memory, multiplies_int8
from genpipe.models.cpu.quantised import can_quantise
from genpipe.models.text_encoder import TextEncoder, TextEncoderConfig
from genpipe.models.tokenizer import Tokenizer, train_tokenizer
from genpipe.models.unet import UNet
from genpipe.models.unet_config import UNetConfig
from genpipe.models.vae import VAE, VAEConfig

# The models are so small that a second thread costs more than it gives; on a busy machine, many times more.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"  # in the processes that tests start
# Checkpoints are written by the gigabyte, each file until the disk has it: in memory that takes a third of the time.
IN_MEMORY, ROOM = Path("/dev/shm"), 8 * 2**30
if IN_MEMORY.is_dir() and min(shutil.disk_usage(IN_MEMORY).free, free_memory(torch.device("cpu")) or 0) > ROOM:
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(IN_MEMORY))
# Where there is no CUDA device Triton's interpreter runs kernels. Triton reads this when it is first imported.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

HAS_INT8 = multiplies_int8() and can_quantise()
needs_int8 = pytest.mark.skipif(
    choose_dtype(None, torch.device("cpu")) != torch.bfloat16 or not HAS_INT8,
    reason="this torch or this CPU has no int8 beside bf16",
)


def pytest_collection_finish() -> None:
    """Keep what was imported, some 800,000 objects that stay to the end, out of every later search for garbage."""
    gc.collect()
    gc.freeze()


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

# CLIP's image encoder, tiny.
VISION: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 28,
    "patch_size": 7,
    "projection_dim": 20,
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
        "tokenizers": (tokenizer,),
        "text_encoders": (text_encoder,),
        "unet": unet,
        "vae": vae,
        "scheduler_config": SCHEDULER,
    }


def tiny_xl_parts(*, refiner: bool = False, length: int = 16) -> dict[str, Any]:
    """The same of Stable Diffusion XL: two text encoders, the second projected, and a U-Net that takes sizes.

    Args:
        refiner: the refiner's: the second encoder alone, and one number (a score) in place of the target's size.
    """
    parts = tiny_parts(width=32, length=length)
    (tokenizer,) = parts["tokenizers"]
    torch.manual_seed(1)
    second = TextEncoder(
        TextEncoderConfig(
            vocab_size=tokenizer.vocab_size,
            hidden_size=48,
            intermediate_size=64,
            num_hidden_layers=3,
            num_attention_heads=3,
            max_position_embeddings=tokenizer.length,
            hidden_act="gelu",
            eos_token_id=tokenizer.eos_id,
            projection_dim=40,
        )
    )
    unet = UNet(
        UNetConfig(
            sample_size=8,
            channels=(16, 32),
            attention=(False, True),
            attention_up=(False, True),
            layers=(1, 1),
            depth=(1, 2),
            heads=(2, 4),
            only_cross=(False, False),
            context_channels=48 if refiner else 32 + 48,
            linear_projection=True,
            norm_groups=8,
            added_time_channels=8,
            added_channels=40 + (5 if refiner else 6) * 8,
        )
    )
    encoders = (second,) if refiner else (*parts["text_encoders"], second)
    return {**parts, "text_encoders": encoders, "tokenizers": (tokenizer,) * len(encoders), "unet": unet}


@pytest.fixture(scope="session")
def tiny_xl_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a whole checkpoint in the form of Stable Diffusion XL, in fp32. Do not write to it."""
    directory = tmp_path_factory.mktemp("tiny") / "xl"
    save_checkpoint(directory, **tiny_xl_parts())
    return directory


@pytest.fixture(scope="session")
def tiny_refiner_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a whole checkpoint in the form of Stable Diffusion XL's refiner, in fp32. Do not write to it."""
    directory = tmp_path_factory.mktemp("tiny") / "refiner"
    save_checkpoint(directory, **tiny_xl_parts(refiner=True))
    return directory


@pytest.fixture(scope="session")
def wide_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of `tiny_checkpoint` with a U-Net of one level whose layers are wide enough for int8. Do not write to it."""
    directory = tmp_path_factory.mktemp("wide") / "checkpoint"
    parts = tiny_parts()
    torch.manual_seed(1)
    one_level = {"channels": (320,), "attention": (True,), "attention_up": (True,), "layers": (1,), "depth": (1,)}
    parts["unet"] = UNet(replace(parts["unet"].config, **one_level, heads=(8,), only_cross=(False,)))
    save_checkpoint(directory, **parts)
    return directory


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a whole checkpoint with random weights in fp32: 32×32 pictures, prompts of 16 tokens. Do not write to it."""
    directory = tmp_path_factory.mktemp("tiny") / "checkpoint"
    save_checkpoint(directory, **tiny_parts())
    return directory

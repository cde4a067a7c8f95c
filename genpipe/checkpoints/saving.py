"""Saving a checkpoint in the diffusers layout, which diffusers and genpipe both open."""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from genpipe.checkpoints import layout
from genpipe.models.text_encoder import TextEncoder
from genpipe.models.tokenizer import Tokenizer
from genpipe.models.unet import UNet
from genpipe.models.vae import VAE


def save_checkpoint(
    directory: str | Path,
    *,
    text_encoder: TextEncoder,
    unet: UNet,
    vae: VAE,
    tokenizer: Tokenizer,
    scheduler_config: Mapping[str, Any],
    defaults: Mapping[str, Any] | None = None,
    dtype: torch.dtype | None = None,
) -> None:
    """Write a checkpoint, whole or not at all: it is written beside `directory` and then put in its place.

    Args:
        directory: made if need be; a checkpoint that is there already is replaced.
        scheduler_config: `scheduler_config.json`; its `_class_name` is diffusers' name of the scheduler.
        defaults: `genpipe.json`, how the model likes to be run (steps, guidance_scale, height, …).
        dtype: of the stored weights, such as `torch.float16`; None keeps the networks' own.

    Raises:
        ValueError: `directory` holds something other than a checkpoint, `scheduler_config` lacks `_class_name`, or
            weights are not finite in `dtype`.
        OSError: the files cannot be written; none is left behind.
    """
    directory = Path(directory).absolute()
    if "_class_name" not in scheduler_config:
        raise ValueError("scheduler_config has no _class_name: name a diffusers scheduler, such as 'DDIMScheduler'")
    if directory.exists() and not (directory / "model_index.json").is_file() and any(directory.iterdir()):
        raise ValueError(f"{directory} holds something other than a checkpoint: choose an empty or a new folder")
    partial = directory.with_name(f".{directory.name}.partial-{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        marks = {f"{name}_token_id": getattr(tokenizer, f"{name}_id") for name in ("bos", "eos", "pad")}
        text_config = {**text_encoder.config.to_dict(), **marks}
        _write_network(partial, layout.TEXT_ENCODER, text_encoder, text_config, dtype)
        _write_network(partial, layout.UNET, unet, unet.config.to_dict(), dtype)
        _write_network(partial, layout.VAE, vae, vae.config.to_dict(), dtype)
        tokenizer.save(partial / "tokenizer")
        _write_json(partial / "scheduler" / "scheduler_config.json", scheduler_config)
        if defaults:
            _write_json(partial / "genpipe.json", defaults)
        _write_json(
            partial / "model_index.json", _index(text_config["architectures"][0], scheduler_config["_class_name"])
        )
        _replace(partial, directory)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _index(text_encoder: str, scheduler: str) -> dict[str, Any]:
    return {
        "_class_name": "StableDiffusionPipeline",
        "_diffusers_version": "0.32.0",  # the oldest that genpipe is meant to go with
        "feature_extractor": [None, None],
        "requires_safety_checker": False,
        "safety_checker": [None, None],
        "scheduler": ["diffusers", scheduler],
        "text_encoder": ["transformers", text_encoder],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }


def _write_network(
    root: Path, names: layout.Layout, network: nn.Module, config: Mapping[str, Any], dtype: torch.dtype | None
) -> None:
    state = {}
    for name, tensor in network.state_dict().items():
        stored = tensor.to(device="cpu", dtype=dtype).contiguous()
        if not bool(stored.isfinite().all()):
            raise ValueError(f"{names.folder}: {name} is not finite in {stored.dtype}: it cannot be saved so")
        state[names.theirs(name)] = stored
    config_file, weights = root / names.folder / "config.json", root / names.folder / f"{names.stem}.safetensors"
    _write_json(config_file, config)
    save_file(state, weights, metadata={"format": "pt"})
    shutil.copymode(config_file, weights)  # safetensors makes files that only their owner can read


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _replace(new: Path, directory: Path) -> None:
    """Put the folder `new` in the place of `directory`; what was there is moved aside first, and then deleted."""
    old = directory.with_name(f".{directory.name}.old-{os.getpid()}")
    if directory.exists():
        directory.rename(old)
    try:
        new.rename(directory)
    except OSError:
        if old.exists():
            old.rename(directory)
        raise
    shutil.rmtree(old, ignore_errors=True)

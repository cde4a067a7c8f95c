"""Saving a checkpoint in the diffusers layout, which diffusers and genpipe both open."""

import json
import os
import shutil
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from genpipe.checkpoints import layout
from genpipe.checkpoints.checkpoint import Checkpoint
from genpipe.checkpoints.families import SDXL, SDXL_REFINER, TEXT_ENCODERS, Family, family_of, tokenizer_of
from genpipe.models.text_encoder import TextEncoder
from genpipe.models.tokenizer import Tokenizer
from genpipe.models.unet import UNet
from genpipe.models.vae import VAE


def save_checkpoint(
    directory: str | Path,
    *,
    text_encoders: Sequence[TextEncoder] = (),
    tokenizers: Sequence[Tokenizer] = (),
    unet: UNet,
    vae: VAE,
    scheduler_config: Mapping[str, Any],
    defaults: Mapping[str, Any] | None = None,
    zero_empty_negative: bool | None = None,
    dtype: torch.dtype | None = None,
    shard_bytes: int | None = None,
    text_encoder: TextEncoder | None = None,
    tokenizer: Tokenizer | None = None,
) -> None:
    """Write a checkpoint, whole or not at all: it is written beside `directory` and then put in its place.

    Args:
        directory: made if need be; a checkpoint that is there already is replaced.
        text_encoders: in the order in which their vectors are joined.
        tokenizers: one per text encoder.
        scheduler_config: `scheduler_config.json`; its `_class_name` is diffusers' name of the scheduler.
        defaults: `genpipe.json`, how the model likes to be run (steps, guidance_scale, height, …).
        zero_empty_negative: whether no negative prompt at all means vectors of zeros; None is as the family's published
            model has it.
        dtype: of the stored weights, such as `torch.float16`; None keeps the networks' own.
        shard_bytes: a network of more is written as several files of at most so many bytes of weights, and an index of them,
            as diffusers does; None writes one file. A weight that is larger has a file of its own.
        text_encoder, tokenizer: the former spelling of one of each, which goes in 0.3.

    Raises:
        ValueError: the networks do not fit each other, `directory` holds something other than a checkpoint,
            `scheduler_config` lacks `_class_name`, or weights are not finite in `dtype`.
        OSError: the files cannot be written; none is left behind.
    """
    if text_encoder is not None and tokenizer is not None:
        warnings.warn(
            "text_encoder and tokenizer are now text_encoders and tokenizers, a tuple each; the old names go in 0.3",
            DeprecationWarning,
            stacklevel=2,
        )
        text_encoders, tokenizers = (text_encoder,), (tokenizer,)
    directory = Path(directory).absolute()
    family = family_of(unet.config, [encoder.config for encoder in text_encoders])
    zeros = family is SDXL if zero_empty_negative is None else zero_empty_negative
    if "_class_name" not in scheduler_config:
        raise ValueError("scheduler_config has no _class_name: name a diffusers scheduler, such as 'DDIMScheduler'")
    if directory.exists() and not (directory / "model_index.json").is_file() and any(directory.iterdir()):
        raise ValueError(f"{directory} holds something other than a checkpoint: choose an empty or a new folder")
    partial = directory.with_name(f".{directory.name}.partial-{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        index = _index(family, scheduler_config["_class_name"], zeros)
        for name, encoder, words in zip(family.text_encoders, text_encoders, tokenizers, strict=True):
            marks = {f"{mark}_token_id": getattr(words, f"{mark}_id") for mark in ("bos", "eos", "pad")}
            text_config = {**encoder.config.to_dict(), **marks}
            _write_network(partial, layout.text_encoder(name), encoder, text_config, dtype, shard_bytes)
            words.save(partial / tokenizer_of(name))
            index[name] = ["transformers", text_config["architectures"][0]]
            index[tokenizer_of(name)] = ["transformers", "CLIPTokenizer"]
        _write_network(partial, layout.UNET, unet, unet.config.to_dict(), dtype, shard_bytes)
        _write_network(partial, layout.VAE, vae, vae.config.to_dict(), dtype, shard_bytes)
        _write_json(partial / "scheduler" / "scheduler_config.json", scheduler_config)
        if defaults:
            _write_json(partial / "genpipe.json", defaults)
        _write_json(partial / "model_index.json", index)
        _replace(partial, directory)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def save_folder(
    directory: str | Path,
    checkpoint: Checkpoint,
    *,
    dtype: torch.dtype | None = None,
    shard_bytes: int | None = None,
) -> None:
    """Write a checkpoint in memory as a folder in the diffusers layout; see `save_checkpoint`."""
    save_checkpoint(
        directory,
        text_encoders=checkpoint.text_encoders,
        tokenizers=checkpoint.tokenizers,
        unet=checkpoint.unet,
        vae=checkpoint.vae,
        scheduler_config=checkpoint.scheduler_config,
        defaults=checkpoint.defaults,
        zero_empty_negative=checkpoint.zero_empty_negative,
        dtype=dtype,
        shard_bytes=shard_bytes,
    )


def _index(family: Family, scheduler: str, zero_empty_negative: bool) -> dict[str, Any]:
    """`model_index.json` before its text encoders are entered."""
    index: dict[str, Any] = {
        "_class_name": family.pipeline,
        "_diffusers_version": "0.32.0",  # the oldest that genpipe is meant to go with
        "feature_extractor": [None, None],
        **{name: [None, None] for part in TEXT_ENCODERS for name in (part, tokenizer_of(part))},
        "scheduler": ["diffusers", scheduler],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    if family.added_numbers:
        aesthetics = {"requires_aesthetics_score": True} if family.added_numbers == SDXL_REFINER.added_numbers else {}
        return {**index, "force_zeros_for_empty_prompt": zero_empty_negative, **aesthetics}
    for name in (TEXT_ENCODERS[1], tokenizer_of(TEXT_ENCODERS[1])):
        del index[name]
    return {**index, "requires_safety_checker": False, "safety_checker": [None, None]}


def _write_network(
    root: Path,
    names: layout.Layout,
    network: nn.Module,
    config: Mapping[str, Any],
    dtype: torch.dtype | None,
    shard_bytes: int | None,
) -> None:
    state = {}
    for name, tensor in network.state_dict().items():
        stored = tensor.to(device="cpu", dtype=dtype).contiguous()
        if not bool(stored.isfinite().all()):
            raise ValueError(f"{names.folder}: {name} is not finite in {stored.dtype}: it cannot be saved so")
        state[names.theirs(name)] = stored
    from huggingface_hub import split_torch_state_dict_into_shards

    config_file = root / names.folder / "config.json"
    _write_json(config_file, config)
    most = sum(tensor.nbytes for tensor in state.values()) if shard_bytes is None else shard_bytes
    plan = split_torch_state_dict_into_shards(
        state, filename_pattern=f"{names.stem}{{suffix}}.safetensors", max_shard_size=max(1, most)
    )
    for name, keys in plan.filename_to_tensors.items():
        weights = root / names.folder / name
        save_file({key: state[key] for key in keys}, weights, metadata={"format": "pt"})
        shutil.copymode(config_file, weights)  # safetensors makes files that only their owner can read
    if plan.is_sharded:
        index = {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename}
        _write_json(root / names.folder / f"{names.stem}.safetensors.index.json", index)


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

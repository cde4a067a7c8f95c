"""Loading a checkpoint in the diffusers layout, from a folder or from the hub."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from genpipe.checkpoints import layout
from genpipe.checkpoints.checkpoint import Checkpoint, Stored, check_fit
from genpipe.checkpoints.errors import CheckpointError
from genpipe.checkpoints.families import SDXL, text_encoders_in, tokenizer_of
from genpipe.checkpoints.hub import Folder, Source, open_source, read_json
from genpipe.checkpoints.tensors import Safetensors
from genpipe.checkpoints.weights import Network, explain_missing, find_weights, read_weights, skeleton
from genpipe.models.text_encoder import TextEncoder, TextEncoderConfig
from genpipe.models.tiny_vae import TinyVAE, TinyVAEConfig
from genpipe.models.tokenizer import FILES as TOKENIZER_FILES
from genpipe.models.tokenizer import Tokenizer
from genpipe.models.unet import UNet
from genpipe.models.unet_config import UNetConfig
from genpipe.models.vae import VAE, VAEConfig


def load_checkpoint(
    path_or_id: str | Path,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    revision: str | None = None,
    variant: str | None = None,
) -> Checkpoint:
    """Load a Stable Diffusion 1.x, 2.x or XL checkpoint; of the hub's files, only those needed are fetched.

    Args:
        path_or_id: a folder in the diffusers layout, or a hub id "owner/name" (cached; HF_HUB_OFFLINE is obeyed).
        device: where the weights are to be.
        dtype: their type; None keeps each file's own.
        revision: branch, tag or commit on the hub.
        variant: "fp16" reads the files of that name; a network that has none is read from its plain file.

    Raises:
        CheckpointError: the checkpoint is not there, not whole, or not one that genpipe can run.
    """
    source = open_source(path_or_id, revision)
    index = read_json(source, "model_index.json", dict)
    encoders = read_json(source, "model_index.json", text_encoders_in)
    text_configs = [read_json(source, f"{name}/config.json", TextEncoderConfig.from_dict) for name in encoders]
    unet_config = read_json(source, "unet/config.json", UNetConfig.from_dict)
    vae_config = read_json(source, "vae/config.json", VAEConfig.from_dict)
    scheduler_config = read_json(source, "scheduler/scheduler_config.json", dict)
    scheduler_config.setdefault("_class_name", index["scheduler"][1])
    defaults = read_json(source, "genpipe.json", dict) if source.find("genpipe.json", optional=True) else {}
    tokenizers = [
        _tokenizer(source, tokenizer_of(name), config) for name, config in zip(encoders, text_configs, strict=True)
    ]
    try:
        family = check_fit(text_configs, tokenizers, unet_config, vae_config)
    except ValueError as error:
        raise CheckpointError(f"{source}: {error}") from error

    texts = [
        _built(source, name, lambda config=config: TextEncoder(config))
        for name, config in zip(encoders, text_configs, strict=True)
    ]
    unet = _built(source, "unet", lambda: UNet(unet_config))
    vae = _built(source, "vae", lambda: VAE(vae_config))
    names = [*(layout.text_encoder(name) for name in encoders), layout.UNET, layout.VAE]
    found = {each.folder: find_weights(source, each, variant) for each in names}
    if variant is not None and not any(found.values()):
        raise CheckpointError(f"{source} has no weights of the variant {variant!r}")
    stored = {}
    for each, network in zip(names, [*texts, unet, vae], strict=True):
        paths = found[each.folder] or find_weights(source, each, None)
        if paths is None:
            raise explain_missing(source, each)
        read_weights(network, each, [Safetensors(path) for path in paths], device=device, dtype=dtype)
        stored[each.folder] = Stored(tuple(paths), each)
    return Checkpoint(
        text_encoders=tuple(texts),
        tokenizers=tuple(tokenizers),
        unet=unet,
        vae=vae,
        scheduler_config=scheduler_config,
        defaults=defaults,
        source=str(source),
        # As the folder names them: a refiner's only text encoder may be called the first.
        family=replace(family, text_encoders=encoders),
        zero_empty_negative=index.get("force_zeros_for_empty_prompt", family is SDXL) is True,
        stored=stored,
    )


def load_tiny_vae(folder: str | Path, *, latent_channels: int, factor: int) -> TinyVAE:
    """Load a tiny autoencoder (TAESD) from a folder that holds its `config.json` and safetensors, as diffusers saves it.

    Args:
        folder: on this machine.
        latent_channels, factor: of the latents that it is to decode.

    Raises:
        CheckpointError: it is not there, not whole, or made for other latents.
    """
    folder = Path(folder).absolute()
    source, names = Folder(folder.parent), layout.tiny_vae(folder.name)
    config = read_json(source, f"{folder.name}/config.json", TinyVAEConfig.from_dict)
    if (config.latent_channels, config.factor) != (latent_channels, factor):
        raise CheckpointError(
            f"{folder} decodes latents of {config.latent_channels} channels, {config.factor} pixels wide, where the "
            f"checkpoint's have {latent_channels} and {factor}"
        )
    network = _built(source, names.folder, lambda: TinyVAE(config))
    paths = find_weights(source, names, None)
    if paths is None:
        raise explain_missing(source, names)
    read_weights(network, names, [Safetensors(path) for path in paths], device="cpu", dtype=None)
    return network


def _built(source: Source, folder: str, build: Callable[[], Network]) -> Network:
    """The network, without memory, that a config which can be read asks for; the config's sizes may still be absurd."""
    try:
        return skeleton(build)
    except (ValueError, TypeError, IndexError, ArithmeticError, RuntimeError) as error:
        raise CheckpointError(f"{source}/{folder}/config.json cannot be used: {error}") from error


def _tokenizer(source: Source, folder: str, config: TextEncoderConfig) -> Tokenizer:
    paths = [path for name in TOKENIZER_FILES if (path := source.find(f"{folder}/{name}", optional=True))]
    if not paths:
        raise CheckpointError(source.lacks(f"the tokenizer's files in {folder}/"))
    try:
        return Tokenizer.from_files(paths[0].parent, max_length=config.max_position_embeddings)
    except ValueError as error:
        raise CheckpointError(str(error)) from error

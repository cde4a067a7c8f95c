"""Loading a checkpoint in the diffusers layout, from a folder or from the hub."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch

from genpipe.checkpoints import layout
from genpipe.checkpoints.errors import CheckpointError
from genpipe.checkpoints.hub import Folder, Source, open_source, read_json
from genpipe.checkpoints.weights import Network, explain_missing, find_weights, read_weights, skeleton
from genpipe.models.text_encoder import TextEncoder, TextEncoderConfig
from genpipe.models.tiny_vae import TinyVAE, TinyVAEConfig
from genpipe.models.tokenizer import FILES as TOKENIZER_FILES
from genpipe.models.tokenizer import Tokenizer
from genpipe.models.unet import UNet
from genpipe.models.unet_config import UNetConfig
from genpipe.models.vae import VAE, VAEConfig

# Pipelines over the networks that we have; those that draw from more than text fail later, by their `in_channels`.
_PIPELINES = (
    "StableDiffusionPipeline",
    "StableDiffusionImg2ImgPipeline",
    "StableDiffusionInpaintPipeline",
    "StableDiffusionDepth2ImgPipeline",
    "StableDiffusionInstructPix2PixPipeline",
    "LatentConsistencyModelPipeline",
    "LatentConsistencyModelImg2ImgPipeline",
)
_CLASSES = {
    "text_encoder": ("CLIPTextModel", "CLIPTextModelWithProjection"),
    "tokenizer": ("CLIPTokenizer", "CLIPTokenizerFast"),
    "unet": ("UNet2DConditionModel",),
    "vae": ("AutoencoderKL",),
    "scheduler": (),  # the sampler's to judge
}


_NETWORKS = (layout.TEXT_ENCODER, layout.UNET, layout.VAE)


@dataclass(frozen=True)
class Checkpoint:
    """The parts of a text-to-image model.

    Attributes:
        scheduler_config: `scheduler_config.json`, which always names its `_class_name`.
        defaults: `genpipe.json`, how the model likes to be run; {} if there is none.
        source: the folder or the hub id it was read from.
        files: the safetensors files of each network, by its name here; empty if it was not read from files.
    """

    text_encoder: TextEncoder
    tokenizer: Tokenizer
    unet: UNet
    vae: VAE
    scheduler_config: dict[str, Any]
    defaults: dict[str, Any]
    source: str
    files: Mapping[str, Sequence[Path]] = field(default_factory=dict)

    def read_again(self, network: Network) -> Network:
        """A second copy of one of the networks, mapped from its files, for who does not want to keep the first in memory."""
        names = next(names for names in _NETWORKS if getattr(self, names.folder) is network)
        kind, config = type(network), cast(Any, network).config
        copy = skeleton(lambda: kind(config))
        read_weights(copy, names, self.files[names.folder], device="cpu", dtype=None)
        return copy


def load_checkpoint(
    path_or_id: str | Path,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    revision: str | None = None,
    variant: str | None = None,
) -> Checkpoint:
    """Load a Stable Diffusion 1.x or 2.x checkpoint; of the hub's files, only those needed are fetched.

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
    index = read_json(source, "model_index.json", _checked_index)
    text_config = read_json(source, "text_encoder/config.json", TextEncoderConfig.from_dict)
    unet_config = read_json(source, "unet/config.json", UNetConfig.from_dict)
    vae_config = read_json(source, "vae/config.json", _vae_config)
    scheduler_config = read_json(source, "scheduler/scheduler_config.json", dict)
    scheduler_config.setdefault("_class_name", index["scheduler"][1])
    defaults = read_json(source, "genpipe.json", dict) if source.find("genpipe.json") else {}
    tokenizer = _tokenizer(source, text_config)
    _check_fit(source, text_config, unet_config, vae_config, tokenizer)

    text_encoder = _built(source, layout.TEXT_ENCODER, lambda: TextEncoder(text_config))
    unet = _built(source, layout.UNET, lambda: UNet(unet_config))
    vae = _built(source, layout.VAE, lambda: VAE(vae_config))
    networks = ((layout.TEXT_ENCODER, text_encoder), (layout.UNET, unet), (layout.VAE, vae))
    found = {names.folder: find_weights(source, names, variant) for names, _ in networks}
    if variant is not None and not any(found.values()):
        raise CheckpointError(f"{source} has no weights of the variant {variant!r}")
    files: dict[str, Sequence[Path]] = {}
    for names, network in networks:
        paths = found[names.folder] or find_weights(source, names, None)
        if paths is None:
            raise explain_missing(source, names)
        read_weights(network, names, paths, device=device, dtype=dtype)
        files[names.folder] = paths
    return Checkpoint(
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        vae=vae,
        scheduler_config=scheduler_config,
        defaults=defaults,
        source=str(source),
        files=files,
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
    network = _built(source, names, lambda: TinyVAE(config))
    paths = find_weights(source, names, None)
    if paths is None:
        raise explain_missing(source, names)
    read_weights(network, names, paths, device="cpu", dtype=None)
    return network


def _built(source: Source, names: layout.Layout, build: Callable[[], Network]) -> Network:
    """The network, without memory, that a config which can be read asks for; the config's sizes may still be absurd."""
    try:
        return skeleton(build)
    except (ValueError, TypeError, IndexError, ArithmeticError, RuntimeError) as error:
        raise CheckpointError(f"{source}/{names.folder}/config.json cannot be used: {error}") from error


def _checked_index(index: Mapping[str, Any]) -> Mapping[str, Any]:
    """`model_index.json`, once it names a pipeline and parts that we have."""
    pipeline = index.get("_class_name")
    if pipeline not in _PIPELINES:
        raise ValueError(f"genpipe cannot run {pipeline} yet, only Stable Diffusion 1.x and 2.x")
    for part, classes in _CLASSES.items():
        _, name = index.get(part) or (None, None)
        if name is None:
            raise ValueError(f"the checkpoint lacks a {part}")
        if classes and name not in classes:
            raise ValueError(f"its {part} is {name}, which genpipe cannot run (only {' or '.join(classes)})")
    return index


def _vae_config(config: Mapping[str, Any]) -> VAEConfig:
    if config.get("_class_name", "AutoencoderKL") != "AutoencoderKL":
        raise ValueError(f"genpipe cannot run {config['_class_name']} (only AutoencoderKL)")
    return VAEConfig.from_dict(config)


def _tokenizer(source: Source, config: TextEncoderConfig) -> Tokenizer:
    paths = [path for name in TOKENIZER_FILES if (path := source.find(f"tokenizer/{name}"))]
    if not paths:
        raise CheckpointError(f"{source} lacks the tokenizer's files in tokenizer/")
    try:
        return Tokenizer.from_files(paths[0].parent, max_length=config.max_position_embeddings)
    except ValueError as error:
        raise CheckpointError(str(error)) from error


def _check_fit(source: Source, text: TextEncoderConfig, unet: UNetConfig, vae: VAEConfig, tokenizer: Tokenizer) -> None:
    """The parts must fit each other, and the U-Net must take noisy latents and text, nothing else."""
    if (unet.in_channels, unet.out_channels) != (vae.latent_channels, vae.latent_channels):
        problem = (
            f"its U-Net takes {unet.in_channels} channels and gives {unet.out_channels} where the VAE has "
            f"{vae.latent_channels}: inpainting, depth and other image-conditioned checkpoints are not supported yet"
        )
    elif unet.added_channels is not None:
        problem = "its U-Net takes added text and times (SDXL), which is not supported yet"
    elif unet.context_channels != text.hidden_size:
        problem = (
            f"its U-Net attends to vectors of {unet.context_channels} where the text encoder gives {text.hidden_size}"
        )
    elif tokenizer.vocab_size > text.vocab_size:
        problem = f"its tokenizer has {tokenizer.vocab_size} tokens where the text encoder knows {text.vocab_size}"
    else:
        return
    raise CheckpointError(f"{source}: {problem}")

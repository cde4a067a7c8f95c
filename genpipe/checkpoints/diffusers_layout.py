"""The diffusers layout: a checkpoint's parts in a folder, or in a repository on the hub."""

from dataclasses import replace
from pathlib import Path

from genpipe.checkpoints import layout
from genpipe.checkpoints.checkpoint import Stored
from genpipe.checkpoints.errors import CheckpointError
from genpipe.checkpoints.families import family_of, text_encoders_in, tokenizer_of
from genpipe.checkpoints.parts import Part, Parts, TextPart, built
from genpipe.checkpoints.source import Folder, Source, read_json
from genpipe.checkpoints.tensors import Safetensors
from genpipe.checkpoints.weights import find_weights, read_weights, weights_in
from genpipe.models.text_encoder import TextEncoderConfig
from genpipe.models.tiny_vae import TinyVAE, TinyVAEConfig
from genpipe.models.tokenizer import FILES as TOKENIZER_FILES
from genpipe.models.tokenizer import Tokenizer
from genpipe.models.unet_config import UNetConfig
from genpipe.models.vae import VAEConfig


def folder_parts(source: Source, *, variant: str | None = None) -> Parts:
    """The parts of the checkpoint in a folder or a hub repository; only files that are needed are fetched.

    Args:
        source: where its files are.
        variant: "fp16" reads the files of that name; a network that has none is read from its plain file.

    Raises:
        CheckpointError: the checkpoint is not whole, or not one that genpipe can run.
    """
    index = read_json(source, "model_index.json", dict)
    encoders = read_json(source, "model_index.json", text_encoders_in)
    if variant is not None:
        names = (*(layout.text_encoder(name) for name in encoders), layout.UNET, layout.VAE)
        if not any(find_weights(source, each, variant) for each in names):
            raise CheckpointError(f"{source} has no weights of the variant {variant!r}")
    texts = tuple(text_encoder_in(source, name, tokenizer_of(name), variant=variant) for name in encoders)
    unet = read_json(source, "unet/config.json", UNetConfig.from_dict)
    vae = vae_in(source, "vae", variant=variant)
    scheduler_config = read_json(source, "scheduler/scheduler_config.json", dict)
    scheduler_config.setdefault("_class_name", index["scheduler"][1])
    defaults = read_json(source, "genpipe.json", dict) if source.find("genpipe.json", optional=True) else {}
    try:
        family = family_of(unet, [text.config for text in texts])
    except ValueError as error:
        raise CheckpointError(f"{source}: {error}") from error
    return Parts(
        texts=texts,
        unet=Part(unet, Stored(weights_in(source, layout.UNET, variant), layout.UNET), f"{source}/unet/config.json"),
        vae=vae,
        scheduler_config=scheduler_config,
        defaults=defaults,
        source=str(source),
        family=family,
        zero_empty_negative=index.get("force_zeros_for_empty_prompt"),
    )


def vae_in(source: Source, folder: str, *, variant: str | None = None) -> Part[VAEConfig]:
    """The autoencoder in one folder of a tree: its `config.json` and its weights.

    Raises:
        CheckpointError: it is not whole, or not one that genpipe can run.
    """
    config = read_json(source, f"{folder}/config.json", VAEConfig.from_dict)
    files = weights_in(source, replace(layout.VAE, folder=folder), variant)
    return Part(config, Stored(files, layout.VAE), f"{source}/{folder}/config.json")


def text_encoder_in(source: Source, folder: str, tokenizer: str, *, variant: str | None = None) -> TextPart:
    """The text encoder in one folder of a tree, with its tokenizer in another.

    Raises:
        CheckpointError: one of them is not whole, or not one that genpipe can run.
    """
    config = read_json(source, f"{folder}/config.json", TextEncoderConfig.from_dict)
    names = layout.text_encoder(folder)
    files = weights_in(source, names, variant)
    origin = f"{source}/{folder}/config.json"
    return TextPart(config, Stored(files, names), origin, _tokenizer(source, tokenizer, config))


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
    network = built(f"{folder}/config.json", lambda: TinyVAE(config))
    files = [Safetensors(path) for path in weights_in(source, names)]
    read_weights(network, names, files, device="cpu", dtype=None)
    return network


def _tokenizer(source: Source, folder: str, config: TextEncoderConfig) -> Tokenizer:
    paths = [path for name in TOKENIZER_FILES if (path := source.find(f"{folder}/{name}", optional=True))]
    if not paths:
        raise CheckpointError(source.lacks(f"the tokenizer's files in {folder}/"))
    try:
        return Tokenizer.from_files(paths[0].parent, max_length=config.max_position_embeddings)
    except ValueError as error:
        raise CheckpointError(str(error)) from error

"""The parts of a checkpoint before their weights are read, whatever they come from, and how they become one."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch

from genpipe.checkpoints.checkpoint import Checkpoint, Stored
from genpipe.checkpoints.errors import CheckpointError
from genpipe.checkpoints.families import SDXL, Family, family_of, named
from genpipe.checkpoints.weights import Network, read_weights, skeleton
from genpipe.models.text_encoder import TextEncoder, TextEncoderConfig
from genpipe.models.tokenizer import Tokenizer
from genpipe.models.unet import UNet
from genpipe.models.unet_config import UNetConfig
from genpipe.models.vae import VAE, VAEConfig

Config = TypeVar("Config")


@dataclass(frozen=True)
class Part(Generic[Config]):
    """One network to be: its config, where its weights are, and what messages call its config's origin."""

    config: Config
    stored: Stored
    origin: str


@dataclass(frozen=True)
class TextPart(Part[TextEncoderConfig]):
    """A text encoder to be, with its tokenizer."""

    tokenizer: Tokenizer


@dataclass(frozen=True)
class Parts:
    """The parts that were found of a checkpoint; attributes as in `Checkpoint`.

    Single files may lack the text encoders (`texts` is empty) and the autoencoder (`vae` is None).
    """

    texts: tuple[TextPart, ...]
    unet: Part[UNetConfig]
    vae: Part[VAEConfig] | None
    scheduler_config: dict[str, Any]
    defaults: dict[str, Any]
    source: str
    family: Family
    zero_empty_negative: bool | None = None


def assemble(
    parts: Parts, *, device: torch.device | str, dtype: torch.dtype | None, store: torch.dtype | None = None
) -> Checkpoint:
    """Build the networks and read their weights.

    Raises:
        CheckpointError: the parts do not fit each other, or weights do not fit their network.
    """
    vae_part = parts.vae
    if vae_part is None:
        raise CheckpointError(f"{parts.source} holds no VAE: add one with vae= (--vae FILE_OR_DIR)")
    if not parts.texts:
        wanted = len(parts.family.texts)
        raise CheckpointError(
            f"{parts.source} does not hold the {'text encoder' if wanted == 1 else f'{wanted} text encoders'} of "
            f"{parts.family.title}: add {'it' if wanted == 1 else 'them'} with text_encoder= (--text-encoder FILE_OR_DIR)"
        )
    try:
        family = check_fit(
            [text.config for text in parts.texts],
            [text.tokenizer for text in parts.texts],
            parts.unet.config,
            vae_part.config,
        )
    except ValueError as error:
        raise CheckpointError(f"{parts.source}: {error}") from error
    zeros = family is SDXL if parts.zero_empty_negative is None else parts.zero_empty_negative
    texts = [built(text.origin, lambda text=text: TextEncoder(text.config)) for text in parts.texts]
    unet = built(parts.unet.origin, lambda: UNet(parts.unet.config))
    vae = built(vae_part.origin, lambda: VAE(vae_part.config))
    stored = {part.stored.names.folder: part.stored for part in (*parts.texts, parts.unet, vae_part)}
    for network, each in zip([*texts, unet, vae], stored.values(), strict=True):
        own = store if network is unet else None
        read_weights(network, each.names, each.open(), device=device, dtype=dtype, store=own)
    return Checkpoint(
        text_encoders=tuple(texts),
        tokenizers=tuple(text.tokenizer for text in parts.texts),
        unet=unet,
        vae=vae,
        scheduler_config=parts.scheduler_config,
        defaults=parts.defaults,
        source=parts.source,
        family=named(family, [text.stored.names.folder for text in parts.texts]),
        zero_empty_negative=zeros,
        stored=stored,
        unet_dtype=store,
    )


def built(origin: str, build: Callable[[], Network]) -> Network:
    """The network, without memory, that a config which can be read asks for; the config's sizes may still be absurd."""
    try:
        return skeleton(build)
    except (ValueError, TypeError, IndexError, ArithmeticError, RuntimeError) as error:
        raise CheckpointError(f"{origin} cannot be used: {error}") from error


def check_fit(
    texts: Sequence[TextEncoderConfig], tokenizers: Sequence[Tokenizer], unet: UNetConfig, vae: VAEConfig
) -> Family:
    """The family of parts that fit each other.

    A U-Net may take more channels than the noisy latents: a mask, other latents (editing), both (inpainting).

    Raises:
        ValueError: they do not fit; says which and why.
    """
    latents = vae.latent_channels
    if unet.out_channels != latents or unet.in_channels not in (latents, latents + 1, 2 * latents, 2 * latents + 1):
        raise ValueError(
            f"its U-Net takes {unet.in_channels} channels and gives {unet.out_channels} where the VAE has {latents}"
        )
    for text, tokenizer in zip(texts, tokenizers, strict=True):
        if tokenizer.vocab_size > text.vocab_size:
            raise ValueError(
                f"its tokenizer has {tokenizer.vocab_size} tokens where the text encoder knows {text.vocab_size}"
            )
    return family_of(unet, texts)

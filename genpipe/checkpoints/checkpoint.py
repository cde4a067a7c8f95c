"""A loaded checkpoint: its networks and tokenizers, and where their weights were read from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from genpipe.checkpoints import layout
from genpipe.checkpoints.families import SD1, Family, family_of
from genpipe.checkpoints.patches import Patch
from genpipe.checkpoints.tensors import Safetensors
from genpipe.checkpoints.weights import Network, read_weights, skeleton
from genpipe.models.text_encoder import TextEncoder, TextEncoderConfig
from genpipe.models.tokenizer import Tokenizer
from genpipe.models.unet import UNet
from genpipe.models.unet_config import UNetConfig
from genpipe.models.vae import VAE, VAEConfig


@dataclass(frozen=True)
class Stored:
    """Where the weights of one network are.

    Attributes:
        files: one, or all shards.
        names: what the files call the network's tensors.
    """

    files: tuple[Path, ...]
    names: layout.Layout


@dataclass(frozen=True)
class Checkpoint:
    """The parts of a text-to-image model.

    Attributes:
        text_encoders: one or, for Stable Diffusion XL, two, in the order in which their vectors are joined.
        tokenizers: one per text encoder.
        unet: the denoiser.
        vae: the autoencoder between pixels and latents.
        scheduler_config: `scheduler_config.json`, which always names its `_class_name`.
        defaults: `genpipe.json`, how the model likes to be run; {} if there is none.
        source: the folder, the file or the hub id that it was read from.
        family: its row in the table of families.
        zero_empty_negative: whether no negative prompt at all means vectors of zeros (`force_zeros_for_empty_prompt`).
        patches: what changed the weights as they were read.
        stored: where the weights of each network are, by its name in `networks`; empty if they were not read from files.
    """

    text_encoders: tuple[TextEncoder, ...]
    tokenizers: tuple[Tokenizer, ...]
    unet: UNet
    vae: VAE
    scheduler_config: dict[str, Any]
    defaults: dict[str, Any]
    source: str
    family: Family = SD1
    zero_empty_negative: bool = False
    stored: Mapping[str, Stored] = field(default_factory=dict)
    patches: tuple[Patch, ...] = ()

    @property
    def networks(self) -> dict[str, TextEncoder | UNet | VAE]:
        """The networks by the name of their folder in the diffusers layout: "text_encoder", "unet", …."""
        return {
            **dict(zip(self.family.text_encoders, self.text_encoders, strict=True)),
            "unet": self.unet,
            "vae": self.vae,
        }

    def read_again(self, network: Network) -> Network:
        """Read one of the networks from its files again, as a second copy that is mapped and not kept in memory."""
        name = next(name for name, own in self.networks.items() if own is network)
        kind, config = type(network), cast(Any, network).config
        copy = skeleton(lambda: kind(config))
        stored = self.stored[name]
        files = [Safetensors(path) for path in stored.files]
        read_weights(copy, stored.names, files, device="cpu", dtype=None, patches=self.patches)
        return copy


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

"""A loaded checkpoint: its networks and tokenizers, and where their weights were read from."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from genpipe.checkpoints import layout
from genpipe.checkpoints.families import SD1, Family
from genpipe.checkpoints.patches import Patch
from genpipe.checkpoints.tensors import TensorFile, open_tensors
from genpipe.checkpoints.weights import Network, read_weights, skeleton
from genpipe.models.text_encoder import TextEncoder
from genpipe.models.tokenizer import Tokenizer
from genpipe.models.unet import UNet
from genpipe.models.vae import VAE


@dataclass(frozen=True)
class Stored:
    """Where the weights of one network are.

    Attributes:
        files: one, or all shards.
        names: what the files call the network's tensors.
        allow_pickle: whether tensors may be read from a pickle file.
    """

    files: tuple[Path, ...]
    names: layout.Layout
    allow_pickle: bool = False

    def open(self) -> list[TensorFile]:
        """The files, opened anew."""
        return [open_tensors(path, allow_pickle=self.allow_pickle) for path in self.files]


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
        read_weights(copy, stored.names, stored.open(), device="cpu", dtype=None, patches=self.patches)
        return copy

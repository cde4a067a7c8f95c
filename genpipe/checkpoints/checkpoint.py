"""A loaded checkpoint: its networks and tokenizers, and where their weights were read from."""

from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import accumulate, takewhile
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from genpipe.checkpoints import layout
from genpipe.checkpoints.families import SD1, Family
from genpipe.checkpoints.patches import Patch
from genpipe.checkpoints.tensors import TensorFile, open_tensors
from genpipe.checkpoints.weights import Network, Weights, skeleton
from genpipe.models.control import ControlNetwork
from genpipe.models.image_encoder import ImageEncoder
from genpipe.models.ip_adapter import IPAdapter, References
from genpipe.models.text_encoder import TextEncoder
from genpipe.models.tokenizer import Tokenizer
from genpipe.models.unet import UNet
from genpipe.models.vae import VAE

# Reads the weights of a part of a network: gives what is then in its place, and whether that is prepared already.
Fill = Callable[[nn.Module], tuple[nn.Module, bool]]
# Brings a network without weights into the form in which it runs.
Prepare = Callable[[Any, Fill], Any]


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
        controls: control networks beside the model, in the order of a request's control images.
        references: an IP-Adapter beside the model, with its image encoder; None if there is none.
        stored: where the weights of each network are, by its name in `networks`; empty if they were not read from files.
        unet_dtype: what the denoiser's weights are stored in, as `StoredLayer`s; None for plain layers.
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
    controls: tuple[ControlNetwork, ...] = ()
    references: References | None = None
    unet_dtype: torch.dtype | None = None

    @property
    def networks(self) -> dict[str, TextEncoder | UNet | VAE]:
        """The networks by the name of their folder in the diffusers layout: "text_encoder", "unet", …."""
        return {
            **dict(zip(self.family.text_encoders, self.text_encoders, strict=True)),
            "unet": self.unet,
            "vae": self.vae,
        }

    @property
    def reference_networks(self) -> tuple[IPAdapter | ImageEncoder, ...]:
        """The networks of `references`, if there are any."""
        return () if self.references is None else (self.references.adapter, self.references.encoder)

    @cached_property
    def concepts(self) -> tuple[str, ...] | None:
        """Of a model of the scenes' world those that it has learned; None where its folder does not say."""
        return tuple(self.defaults.get("concepts", ())) or None

    @cached_property
    def shapes(self) -> dict[str, dict[str, tuple[int, ...]]]:
        """The shape of each weight of each network as files have them, whatever form the networks have been brought into."""
        found = {}
        for name, network in self.networks.items():
            kind, config = type(network), cast(Any, network).config
            bare = skeleton(lambda kind=kind, config=config: kind(config))
            found[name] = {key: tuple(tensor.shape) for key, tensor in bare.state_dict().items()}
        return found

    def read_again(
        self, network: Network, prepare: Prepare | None = None, changed: AbstractSet[str] | None = None
    ) -> Network:
        """Read one of the networks from its files again, as a second copy: what is stored as it is in them is mapped.

        Args:
            network: one of `networks`.
            prepare: what brings the copy into another form while it is read. It is given the copy, without weights, and
                what fills a part of it with them, and calls that for one part after the other, so that memory never holds
                the network in both forms.
            changed: full names of the only weights that are not those of `network`, which is prepared: parts without them
                are taken from it.
        """
        name = next(name for name, own in self.networks.items() if own is network)
        kind, config = type(network), cast(Any, network).config
        copy = skeleton(lambda: kind(config))
        stored = self.stored[name]
        store = self.unet_dtype if name == "unet" else None
        weights = Weights(copy, stored.names, stored.open(), patches=self.patches, store=store)
        if prepare is None:
            weights.fill(copy)
            return copy

        # The changed weights, and all parts that they are in.
        touched = {within for each in changed or () for within in accumulate(each.split("."), "{}.{}".format)}

        def fill(part: nn.Module) -> tuple[nn.Module, bool]:
            path = weights.path(part)
            if changed is None or path is None or f"{name}.{path}".removesuffix(".") in touched:
                return weights.fill(part, wide=True), False
            return network.get_submodule(path), True

        return prepare(copy, fill)

    def with_patches(
        self, patches: Sequence[Patch], prepare: Prepare | None = None, *, reuse: bool = False
    ) -> "Checkpoint":
        """Change which patches the weights have.

        Args:
            patches: all that are to be, in order; [] gives the weights as the files have them, bit for bit.
            prepare: see `read_again`.
            reuse: take parts that do not change from the networks of before, which are prepared.

        Returns:
            The checkpoint, in which each network that other patches change than before is read again; the others are the
            same objects.

        Raises:
            ValueError: the checkpoint was not read from files.
        """
        if not self.stored:
            raise ValueError("the model was not read from files, so that no patch of its weights could be taken back")
        new = replace(self, patches=tuple(patches))

        def network(name: str) -> Any:
            before, after = _of(self.patches, name), _of(patches, name)
            own = self.networks[name]
            same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(before, after, strict=False)))
            changed = set[str]().union(*(patch.names for patch in (*before[same:], *after[same:])))
            return new.read_again(own, prepare, changed if reuse else None) if changed else own

        texts = tuple(network(name) for name in self.family.text_encoders)
        return replace(new, text_encoders=texts, unet=network("unet"), vae=network("vae"))


def _of(patches: Sequence[Patch], network: str) -> list[Patch]:
    """The patches that change a network."""
    return [patch for patch in patches if any(name.startswith(f"{network}.") for name in patch.names)]

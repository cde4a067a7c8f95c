"""A checkpoint's networks in memory, each in the form in which it runs on one device."""

import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import cast

import torch
from torch import nn

from genpipe.blocks import Network
from genpipe.checkpoints import Checkpoint
from genpipe.checkpoints.checkpoint import Fill
from genpipe.checkpoints.tensors import release_pages
from genpipe.files import cache_folder
from genpipe.fit import Traits
from genpipe.hardware import (
    choose_dtype,
    free_memory,
    instruction_set,
    keep_freed_memory,
    multiplies_int8,
    obey_quota,
    use_huge_pages,
    without_overflow,
)
from genpipe.models.cpu.forms import PLAIN, Forms, forms_for
from genpipe.models.cpu.quantised import QuantisedLayer, can_quantise
from genpipe.models.cuda.forms import CudaForms, best_forms, evaluation, runs_kernels
from genpipe.models.cuda.fp8 import Fp8Linear, check_fp8
from genpipe.models.denoiser import Evaluate, evaluate
from genpipe.models.prepare import prepare
from genpipe.models.stored import StoredLayer
from genpipe.models.text_encoder import TextEncoder
from genpipe.models.unet import UNet
from genpipe.models.vae import VAE
from genpipe.spec import DTYPES, WEIGHTS, ModelSpec


class Networks:
    """The networks of one checkpoint, prepared for a device and a dtype.

    Args:
        checkpoint: whose networks these are; they are prepared in place by `prepare_all`.
        device, dtype: where and in what they run.
        low_memory: keep the denoiser alone in memory; the others are read from their files each time.
        int8: quantise the denoiser's wide layers.
        compiled: compile the denoiser's blocks.
        fp8: multiply its wide layers in fp8.

    Attributes:
        vae_dtype: what the autoencoder runs in: `dtype`, unless that is fp16, which those of SDXL overflow.
        evaluate: evaluates the denoiser.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        device: torch.device,
        dtype: torch.dtype,
        low_memory: bool,
        int8: bool,
        compiled: bool = False,
        fp8: bool = False,
    ) -> None:
        self.checkpoint, self.device, self.dtype = checkpoint, device, dtype
        self._low_memory, self._int8, self._fp8 = low_memory, int8, fp8
        # Files of Stable Diffusion 1.x and 2.x say force_upcast too, by default, and do not overflow.
        overflows = checkpoint.family.added_numbers > 0 and checkpoint.vae.config.force_upcast
        self.vae_dtype = without_overflow(dtype, device) if overflows else dtype
        self._forms: Forms | CudaForms = PLAIN
        self.evaluate: Evaluate = evaluate
        if device.type == "cpu":
            self._forms = replace(forms_for(instruction_set(), dtype), int8=int8)
        elif device.type == "cuda":
            self._forms = best_forms(device, dtype, compiled=compiled, fp8=fp8)
            self.evaluate = evaluation(checkpoint.unet, self._forms, device)

    def prepare_all(self) -> None:
        """Prepare what is to stay in memory: the denoiser with what controls it, and unless memory is to be saved the other networks.

        Raises:
            ValueError: int8 or fp8 was asked for, and the denoiser's layers are too narrow for it.
        """
        kept = (self.checkpoint.unet, *self.checkpoint.controls)
        if not self._low_memory:
            kept = (*kept, *self.checkpoint.text_encoders, self.checkpoint.vae)
        for network in self.checkpoint.reference_networks:
            network.to(device=self.device, dtype=self.dtype)  # they run once per batch: no other form would pay
        if self.device.type == "cpu":
            warn_of_memory(weight_bytes(kept, self.dtype), free_memory(self.device), low_memory=self._low_memory)
        for network in kept:
            self.prepare(network)
        for name, asked, kind in (("int8", self._int8, QuantisedLayer), ("fp8", self._fp8, Fp8Linear)):
            if asked and not any(isinstance(module, kind) for module in self.checkpoint.unet.modules()):
                raise ValueError(
                    f"{name} would save nothing, the layers of this model are too narrow: leave it out (--no-{name})"
                )

    def prepare_kept(self, network: Network, fill: Fill) -> Network:
        """Read a network, and prepare it if it is to stay in memory; see `Checkpoint.read_again`."""
        if self._low_memory and not isinstance(network, UNet):
            return cast(Network, fill(network)[0])
        return self.prepare(network, fill)

    def prepare(self, network: Network, fill: Fill | None = None) -> Network:
        """Put one network into the form in which it runs; `fill` reads what has no weights yet."""
        dtype = self.vae_dtype if isinstance(network, VAE) else self.dtype
        forms = self._forms
        if isinstance(forms, Forms) and not isinstance(network, UNet):
            forms = replace(forms, int8=False)
        if isinstance(forms, Forms) and forms.winograd4 is not None and isinstance(network, TextEncoder):
            forms = PLAIN  # it runs once per prompt: its weights, of fp32, stay in their file
        return prepare(network, device=self.device, dtype=dtype, forms=forms, fill=fill)

    @contextmanager
    def in_memory(self, network: Network) -> Iterator[Network]:
        """Lend a text encoder or the autoencoder, ready to run; with low_memory it is read from its files for this.

        What runs as it lies in its files leaves this process's memory when it is given back.
        """
        if self._low_memory:
            yield self.checkpoint.read_again(network, self.prepare)
            return
        yield network
        release_pages(network.parameters())


def weight_bytes(networks: Sequence[nn.Module], dtype: torch.dtype) -> int:
    """Say what the weights of networks will take in a dtype, in bytes; those that are stored in fewer bits stay so."""
    total = 0
    for module in (module for network in networks for module in network.modules()):
        own = (*module.parameters(recurse=False), *module.buffers(recurse=False))
        total += sum(each.nbytes if isinstance(module, StoredLayer) else each.numel() * dtype.itemsize for each in own)
    return total


def warn_of_memory(needed: int, free: int | None, *, low_memory: bool) -> None:
    """Warn before networks are loaded that the free memory, in bytes, does not hold their weights."""
    if free is None or needed <= free:
        return
    less = (
        "--weights int8 or fp8, or a smaller model"
        if low_memory
        else "--low-memory, --weights int8, or a smaller model"
    )
    warnings.warn(
        f"the model takes about {needed / 1e9:.1f} GB of memory, and {free / 1e9:.1f} GB are free: use {less}",
        stacklevel=2,
    )


def prepare_process(spec: ModelSpec, device: torch.device, dtype: torch.dtype) -> None:
    """Set this process's memory, and the place of what is compiled, up for a model that is to be loaded.

    Raises:
        ValueError: int8 or fp8 cannot run on this device, in this dtype or on this processor; or nothing can be compiled.
    """
    nvidia = device.type == "cuda" and torch.version.cuda is not None
    if spec.compile:
        check_compile(device, possible=nvidia and runs_kernels(device))
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_folder() / "compiled"))
    if spec.fp8:
        check_fp8(
            device,
            dtype,
            capability=torch.cuda.get_device_capability(device) if nvidia else None,
            kernels=nvidia and runs_kernels(device),
            excluded=[name for name in ("compile", "weights") if getattr(spec, name)],
        )
    use_huge_pages()
    if device.type == "cpu":
        obey_quota()
    if spec.int8:
        check_int8(device, dtype, usual=choose_dtype(None, device), native=multiplies_int8() and can_quantise())
    if device.type == "cpu" and not spec.low_memory:
        keep_freed_memory(large=dtype != torch.float32)  # from the first conversion on


def stored_dtype(weights: str | None, dtype: torch.dtype, *, int8: bool) -> torch.dtype | None:
    """Give the type that `ModelSpec.weights` keeps the denoiser's weights in, where it runs in `dtype`.

    Raises:
        ValueError: int8 is asked for too, which has a form of weights of its own; or nothing would be saved.
    """
    if weights is None:
        return None
    if int8:
        raise ValueError(
            f"int8 multiplies in int8, and weights {weights} only keeps what is widened again: leave out one of them "
            "(--no-int8, or no --weights)"
        )
    if weights not in WEIGHTS:
        raise ValueError(f"weights {weights} is for models that diffusers draws: use {', '.join(WEIGHTS)}")
    stored: torch.dtype = getattr(torch, WEIGHTS[weights])
    if stored.itemsize >= dtype.itemsize:
        name = DTYPES[str(dtype).removeprefix("torch.")]
        raise ValueError(f"weights {weights} would save nothing in {name}: use --dtype fp32, or leave out --weights")
    return stored


def check_compile(device: torch.device, *, possible: bool) -> None:
    """Raise ValueError unless blocks can be compiled for this device; `possible`: whether Triton does so."""
    if device.type != "cuda":
        raise ValueError(
            f"compile is for CUDA alone, not for {device}: use --device cuda, or leave it out (--no-compile)"
        )
    if not possible:
        raise ValueError(
            "compile needs Triton and a C compiler, and one of them is missing: install both, or leave it out (--no-compile)"
        )


def check_int8(device: torch.device, dtype: torch.dtype, *, usual: torch.dtype, native: bool) -> None:
    """Raise ValueError unless int8 runs on this device in this dtype.

    Args:
        device, dtype: where and in what the network runs.
        usual: the dtype that the processor runs fastest, the only one that int8 goes with.
        native: whether the processor multiplies int8.
    """
    if device.type != "cpu":
        raise ValueError(f"int8 runs on a CPU alone, not on {device}: use cpu, or leave int8 out (--no-int8)")
    if not native:
        raise ValueError(
            "int8 needs a CPU with VNNI (AVX-VNNI, AVX512-VNNI or AMX), and a torch with oneDNN's int8 operators: "
            "leave int8 out here (--no-int8)"
        )
    if dtype != usual:
        name, known = (DTYPES[str(each).removeprefix("torch.")] for each in (dtype, usual))
        raise ValueError(
            f"int8 goes with {known} alone on this processor, not with {name}: use --dtype {known}, or leave int8 out "
            "(--no-int8)"
        )


def shown_beside(checkpoint: Checkpoint) -> str | None:
    """Say what the U-Net is shown beside the noisy latents.

    Returns:
        "mask" (with what stays of an image), "image" (to be edited by instruction), "depth", or None for nothing.

    Raises:
        ValueError: it takes other channels.
    """
    unet, latents = checkpoint.unet.config, checkpoint.vae.config.latent_channels
    shown = {latents: None, 2 * latents + 1: "mask", 2 * latents: "image", latents + 1: "depth"}
    if unet.in_channels not in shown or unet.out_channels != latents:
        raise ValueError(
            f"{checkpoint.source}: its U-Net takes {unet.in_channels} channels and gives {unet.out_channels} where the VAE "
            f"has {latents}, which genpipe cannot draw"
        )
    return shown[unet.in_channels]


def traits_of(checkpoint: Checkpoint, *, refines: bool) -> Traits:
    """Say what a checkpoint can draw; `refines`: with a refiner.

    Raises:
        ValueError: its U-Net takes channels that genpipe has nothing for.
    """
    factor = checkpoint.vae.config.factor
    return Traits(
        factor=factor,
        tile_factor=factor
        * 2 ** (len(checkpoint.unet.config.channels) - 1),  # no map of the U-Net may have an odd side
        layers=min(len(each.layers) for each in checkpoint.text_encoders),
        distilled=checkpoint.unet.config.guidance_channels is not None,
        sizes=checkpoint.family.added_numbers,
        refines=refines,
        controls=len(checkpoint.controls),
        refers=checkpoint.references is not None,
        shown=shown_beside(checkpoint),
    )

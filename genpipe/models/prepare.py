"""The networks made ready to run: what training and checkpoints do not need, done once after the weights are loaded."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import nn

from genpipe.blocks import Network, PhaseUpsample, Upsample
from genpipe.models.attention import Attention, FusedSelfAttention, GatedFeedForward, SpatialAttention, TransformerBlock
from genpipe.models.contracting import ContractingPath
from genpipe.models.cpu.forms import PLAIN, Forms
from genpipe.models.cpu.packed import (
    USUAL_SIDE,
    PackedGatedFeedForward,
    PatchConv,
    can_pack,
    kind_of,
    pack,
    suits_patches,
)
from genpipe.models.cpu.quantised import QuantisedGatedFeedForward, quantise, worth_quantising
from genpipe.models.cpu.winograd import DifferenceUpsample, WinogradConv, suits_difference, suits_winograd
from genpipe.models.cpu.winograd4 import Winograd4Conv, suits_winograd4
from genpipe.models.cuda.forms import CudaForms
from genpipe.models.stored import StoredLayer, is_stored
from genpipe.models.unet import UNet
from genpipe.models.vae import VAE

# The parts of a U-Net that a `UNetDenoiser` runs once for all steps: int8 would save nothing there.
_ONCE = {"time_embedding", "added_embedding", "class_embedding", "embedding", "key", "value"}

# What is prepared as a whole, so that all its weights are needed at once.
_UNITS = (Upsample, TransformerBlock, SpatialAttention, GatedFeedForward)


@dataclass(frozen=True)
class _Target:
    """What a network is prepared for: the arguments of `prepare`, and what they come to for this network.

    Attributes:
        sides: height and width of the maps of its parts, by the part's `id`.
    """

    device: torch.device
    dtype: torch.dtype
    forms: Forms
    sides: Mapping[int, int]
    fill: Callable[[nn.Module], tuple[nn.Module, bool]] | None


def prepare(
    network: Network,
    *,
    device: torch.device,
    dtype: torch.dtype,
    forms: Forms | CudaForms = PLAIN,
    fill: Callable[[nn.Module], tuple[nn.Module, bool]] | None = None,
) -> Network:
    """Change a network in place into the form in which it runs fastest, and return it.

    It computes the same up to rounding; int8 rounds more. Queries, keys and values become one product, and `forms` says
    what else changes. Old weights are freed layer by layer, so that memory holds the network once. A prepared network can
    neither be trained nor saved.

    Args:
        network: with its weights, best in the file's own dtype, since sums of weights are then rounded only once.
        device, dtype: where and in what to run.
        forms: the processor's own for a CPU, or the device's for CUDA.
        fill: reads the weights of a part of a network that has none yet; gives what is then in its place, and whether that is
            prepared already.
    """
    cuda = None
    if isinstance(forms, CudaForms):
        cuda, forms = forms, PLAIN
    sides = {id(module): side for module, side in _sides(network)}
    if isinstance(network, VAE):
        forms = replace(forms, winograd_from=forms.winograd_from_in_vae)
    _prepare(network.eval().requires_grad_(False), _Target(device, dtype, forms, sides, fill), USUAL_SIDE)
    if cuda is not None and cuda.channels_last:
        _channels_last(network)
    if cuda is not None and cuda.compiled and isinstance(network, UNet):
        from genpipe.models.cuda.compiled import compile_blocks  # slow to import

        compile_blocks(network)
    elif cuda is not None and cuda.kernels:
        from genpipe.models.cuda.modules import fuse, to_fp8  # they need Triton

        fuse(network)
        if cuda.fp8:
            to_fp8(network)
    return network


def _channels_last(network: nn.Module) -> None:
    """Reorder the weights of convolutions one by one; their outputs are then in that order, whatever their inputs are."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            weight = module.weight.detach().contiguous(memory_format=torch.channels_last)
            module.weight = nn.Parameter(weight, requires_grad=False)
        elif isinstance(module, StoredLayer) and module.weight.ndim == 4:
            module.weight = module.weight.contiguous(memory_format=torch.channels_last)


def _sides(network: nn.Module) -> Iterator[tuple[nn.Module, int]]:
    """Yield parts of a network with the side of their maps at the size that it was trained on."""
    if isinstance(network, ContractingPath):
        size = max(network.config.sample_shape)
        yield network, size
        up = network.up if isinstance(network, UNet) else ()
        levels = [(network.down, up, network.middle, size)]
    elif isinstance(network, VAE):
        size = network.config.sample_size
        latent = size // network.config.factor
        yield from ((network.encoder, size), (network.decoder, size), (network.to_moments, latent))
        yield from ((network.from_latents, latent), (network.decoder.conv_in, latent))
        levels = [(network.encoder.down, (), network.encoder.middle, size)]
        levels += [((), network.decoder.up, network.decoder.middle, size)]
    else:
        levels = []
    for down, up, middle, size in levels:
        deepest = max(len(down), len(up)) - 1
        yield from ((level, max(1, size >> depth)) for depth, level in enumerate(down))
        yield from ((level, max(1, size >> (deepest - depth))) for depth, level in enumerate(up))
        if middle is not None:
            yield middle, max(1, size >> deepest)


def _prepare(module: nn.Module, target: _Target, side: int) -> nn.Module:
    device, dtype, forms, side = target.device, target.dtype, target.forms, target.sides.get(id(module), side)
    if target.fill is not None and (isinstance(module, _UNITS) or next(module.children(), None) is None):
        module, ready = target.fill(module)
        if ready:
            return module
    if isinstance(module, StoredLayer):
        return module.moved(device, dtype)
    if is_stored(module) or (isinstance(module, TransformerBlock) and is_stored(module.attention1)):
        pass  # what is made of a stored layer's weight would take the memory that it saves
    elif (
        isinstance(module, Upsample)
        and forms.winograd
        and can_pack(dtype)
        and suits_difference(module, forms.differences_from)
    ):
        return DifferenceUpsample(module, dtype, side)
    elif isinstance(module, Upsample) and forms.phases:
        module = PhaseUpsample(module)
    elif isinstance(module, TransformerBlock) and not module.only_cross:
        module.register_module("attention1", _fused(module.attention1, forms))
    elif isinstance(module, SpatialAttention):
        module.register_module("attention", _fused(module.attention, forms))
    elif isinstance(module, GatedFeedForward) and forms.int8 and worth_quantising(module.out, forms.int8_from):
        return QuantisedGatedFeedForward(module, side, dtype)
    elif isinstance(module, GatedFeedForward) and can_pack(dtype) and "linear" in forms.packed:
        return PackedGatedFeedForward(module.to(device=device, dtype=dtype), side, fused=forms.fused_gelu)
    children = dict(module.named_children())
    if not children:
        if isinstance(module, nn.Embedding) and device.type == "cpu":
            return module  # mapped from its file: few of its rows are ever read
        if forms.int8 and worth_quantising(module, forms.int8_from):
            return quantise(module, side, dtype)  # of the file's own type: its weights are rounded once
        if (
            forms.winograd4 is not None
            and dtype == torch.float32
            and side >= forms.winograd4_side
            and suits_winograd4(module, side, forms.winograd4)
        ):
            return Winograd4Conv(cast(nn.Conv2d, module))
        if forms.winograd and can_pack(dtype) and suits_winograd(module, side, forms.winograd_from):
            return WinogradConv(cast(nn.Conv2d, module), dtype, side)
        module = module.to(device=device, dtype=dtype)
        if can_pack(dtype) and suits_patches(module, forms.patches):
            return PatchConv(cast(nn.Conv2d, module))
        if can_pack(dtype) and kind_of(module) in forms.packed:
            return pack(module, side)
        if forms.winograd4 is not None and isinstance(module, nn.Conv2d):
            # In the order of the maps around it, or torch would reorder it at every call.
            weight = module.weight.detach().contiguous(memory_format=torch.channels_last)
            module.weight = nn.Parameter(weight, requires_grad=False)
        return module
    for name, child in children.items():
        chosen = target
        if name in _ONCE:
            chosen = replace(target, forms=replace(forms, int8=False))
        elif name == "encoder" and isinstance(module, VAE) and forms.winograd4 is not None:
            # It runs only where an image is given. Until then its plain weights, of fp32, stay in their file.
            chosen = replace(target, forms=PLAIN)
        elif isinstance(module, UNet) and name in ("norm_out", "conv_out") and device.type != "mps":
            # In fp32 the last layers cost next to nothing, and a rounding there goes into the latents.
            chosen = replace(target, dtype=torch.float32)
        module.register_module(name, _prepare(child, chosen, side))
    return module


def _fused(attention: Attention, forms: Forms) -> FusedSelfAttention:
    return FusedSelfAttention(
        attention, forms.blocked_from(attention.head_channels) if can_pack(torch.bfloat16) else None
    )

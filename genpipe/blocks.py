"""Convolution blocks shared by the denoiser, the autoencoder and the classifiers.

Tensors are (B, C, H, W). Every block keeps the spatial size unless its name says otherwise.
"""

import copy
from collections.abc import Callable, Iterator
from typing import Any, Protocol, TypeGuard, TypeVar, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def conv3x3(in_channels: int, out_channels: int, *, stride: int = 1, padding: int = 1, bias: bool = True) -> nn.Conv2d:
    """Make a 3×3 convolution; with the default padding it keeps the size, or divides it by `stride`."""
    return nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=padding, bias=bias)


def conv1x1(in_channels: int, out_channels: int, *, stride: int = 1, bias: bool = True) -> nn.Conv2d:
    """Make a 1×1 convolution: a linear map of the channels at each pixel."""
    return nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=bias)


def conv_unit(
    in_channels: int,
    out_channels: int,
    *,
    kernel: int = 3,
    stride: int = 1,
    norm: Callable[[int], nn.Module] | None = nn.BatchNorm2d,
    activation: Callable[[], nn.Module] | None = nn.ReLU,
) -> nn.Sequential:
    """Make a convolution with a norm and an activation after it: the unit of the networks of 2015 and after.

    An odd kernel keeps the size, or divides it by `stride`. The convolution has a bias only where no norm follows, since a
    norm would remove it again. `norm` is called with the number of channels.
    """
    conv = nn.Conv2d(in_channels, out_channels, kernel, stride=stride, padding=kernel // 2, bias=norm is None)
    following = [] if norm is None else [norm(out_channels)]
    return nn.Sequential(conv, *following, *([] if activation is None else [activation()]))


def pooling_head(channels: int, outputs: int, *, size: int = 1, average: bool = True) -> nn.Sequential:
    """Make a head that turns feature maps of any size into a vector: pooling to size×size, and a linear layer.

    Args:
        channels: channels of the maps.
        outputs: length of the vector.
        size: side of the pooled maps; 1 forgets where things are.
        average: pool by the mean; else by the maximum.
    """
    pool = nn.AdaptiveAvgPool2d(size) if average else nn.AdaptiveMaxPool2d(size)
    return nn.Sequential(pool, nn.Flatten(), nn.Linear(channels * size**2, outputs))


def conv_output_size(size: int, kernel: int, stride: int = 1, padding: int = 0, dilation: int = 1) -> int:
    """Compute the output size of a convolution or a pooling along one axis, for an input of `size` pixels.

    It is ⌊(size + 2·padding - dilation·(kernel - 1) - 1) / stride⌋ + 1. A result below 1 means that the window does not
    fit into the padded input; torch refuses such a layer.

    Raises:
        ValueError: a size, kernel, stride or dilation below 1, or a padding below 0.
    """
    for name, value, least in (
        *(("size", size, 1), ("kernel", kernel, 1), ("stride", stride, 1)),
        *(("padding", padding, 0), ("dilation", dilation, 1)),
    ):
        if value < least:
            raise ValueError(f"{name} {value} of a convolution is too small: use {least} or more")
    return (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1


def silu(x: Tensor) -> Tensor:
    """Apply SiLU to a tensor that the caller no longer needs: in place, unless gradients are recorded."""
    return F.silu(x, inplace=not torch.is_grad_enabled())


@runtime_checkable
class AddingLayer(Protocol):
    """A layer that can add to its result before it rounds it, and says so by `adds`."""

    adds: bool

    def __call__(self, x: Tensor, *, shift: Tensor | None = None, plus: Tensor | None = None) -> Tensor:
        """Give layer(x) + shift + plus: `shift` (C_out,) is one number per channel, `plus` has the result's shape."""
        ...


def is_adding(layer: nn.Module) -> TypeGuard[AddingLayer]:
    """Whether a layer is an `AddingLayer`; quicker than `isinstance`, and asked for every layer at every step."""
    return getattr(layer, "adds", False)


def layer_plus(layer: nn.Module, h: Tensor, plus: Tensor | None) -> Tensor:
    """Give layer(h) + plus, or layer(h) for None. An `AddingLayer` adds before it rounds."""
    if plus is None:
        return layer(h)
    return layer(h, plus=plus) if is_adding(layer) else plus + layer(h)


@runtime_checkable
class PackedModule(Protocol):
    """A module whose weights are in an order, a number or a type that only its own operators read."""

    def unpacked(self) -> nn.Module:
        """Build the plain module that computes the same from the same weights."""
        ...


Network = TypeVar("Network", bound=nn.Module)


def unpacked_copy(network: Network) -> Network:
    """Copy a network, with the plain module in place of every packed one."""
    if isinstance(network, PackedModule):
        return network.unpacked()  # pyright: ignore[reportReturnType] - computes what `network` computes
    # What `deepcopy` finds here it takes for a copy that it has made.
    memo: dict[int, Any] = {id(part): part.unpacked() for part in _packed_parts(network)}
    return copy.deepcopy(network, memo)


def _packed_parts(network: nn.Module) -> Iterator[PackedModule]:
    for child in network.children():
        if isinstance(child, PackedModule):
            yield child
        else:
            yield from _packed_parts(child)


class ResidualBlock(nn.Module):
    """Pre-activation residual block: GroupNorm, SiLU, 3×3 convolution, twice, plus a shortcut.

    With `embedding_channels` an embedding (B, E) is projected and added between the two convolutions, as in
    "Denoising Diffusion Probabilistic Models" (Ho et al., 2020). The shortcut is a 1×1 convolution where the number of
    channels changes, else the identity.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        embedding_channels: int | None = None,
        groups: int = 32,
        eps: float = 1e-5,
    ) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, in_channels, eps=eps)
        self.conv1 = conv3x3(in_channels, out_channels)
        self.embedding = None if embedding_channels is None else nn.Linear(embedding_channels, out_channels)
        self.norm2 = nn.GroupNorm(groups, out_channels, eps=eps)
        self.conv2 = conv3x3(out_channels, out_channels)
        self.shortcut = conv1x1(in_channels, out_channels) if in_channels != out_channels else nn.Identity()

    def shift(self, embedding: Tensor) -> Tensor:
        """Compute what an embedding (B, E) adds between the two convolutions, (B, C_out); it does not depend on the image."""
        if self.embedding is None:
            raise ValueError("this residual block was built without an embedding and takes none")
        return self.embedding(F.silu(embedding))

    def forward(self, x: Tensor, shift: Tensor | None = None) -> Tensor:
        """Map (B, C_in, H, W) to (B, C_out, H, W); `shift` is (B or 1, C_out) where the block takes an embedding."""
        h = silu(self.norm1(x))
        if self.embedding is None:
            h = self.conv1(h)
        elif shift is None:
            raise ValueError("this residual block was built with an embedding and needs its shift")
        elif len(shift) == 1 and is_adding(self.conv1):
            h = self.conv1(h, shift=shift[0])
        else:
            h = self.conv1(h) + shift[:, :, None, None]
        h = silu(self.norm2(h))
        return layer_plus(self.conv2, h, self.shortcut(x))


class Downsample(nn.Module):
    """Halve height and width with a strided 3×3 convolution.

    `asymmetric` pads only right and below, as the Stable Diffusion autoencoder does.
    """

    def __init__(self, channels: int, *, asymmetric: bool = False) -> None:
        super().__init__()
        self.asymmetric = asymmetric
        self.conv = conv3x3(channels, channels, stride=2, padding=0 if asymmetric else 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C, ⌈H/2⌉, ⌈W/2⌉), rounded down where asymmetric."""
        return self.conv(F.pad(x, (0, 1, 0, 1)) if self.asymmetric else x)


class Upsample(nn.Module):
    """Nearest-neighbour upsampling, then a 3×3 convolution ("Deconvolution and Checkerboard Artifacts", 2016).

    `PhaseUpsample` computes the same with fewer multiplications.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = conv3x3(channels, channels)

    def forward(self, x: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """Map (B, C, H, W) to (B, C, 2H, 2W), or to `size`: one less where the way down rounded an odd size up."""
        if size is None or size == (2 * x.shape[-2], 2 * x.shape[-1]):
            x = F.interpolate(x, scale_factor=2.0, mode="nearest")
        else:
            x = F.interpolate(x, size=size, mode="nearest")
        return self.conv(x)


# How much of each row of a 3 × 3 kernel is in each row of the 4 × 4 kernel that works on the small map.
_PHASES = ((0.0, 0.0, 1.0), (0.0, 1.0, 1.0), (1.0, 1.0, 0.0), (1.0, 0.0, 0.0))
_UNPHASED = ((0.0, 0.0, 0.0, 1.0), (-1.0, 1.0, 0.0, 0.0), (1.0, 0.0, 0.0, 0.0))


class PhaseUpsample(nn.Module):
    """An `Upsample` as one transposed convolution of stride 2, which reads the small map directly.

    Each pixel of the large map depends on 2 × 2 pixels of the small one, by one of four kernels according to its row and
    column being even or odd. The rows and columns of the 3 × 3 kernel that fall on the same small pixel are summed
    beforehand, in fp32. That takes 2.25 times fewer multiplications, and the upsampled tensor is never stored. For
    inference: it is built from an `Upsample`, and its weights are fp32 until they are converted.
    """

    def __init__(self, upsample: Upsample) -> None:
        super().__init__()
        weight, bias = upsample.conv.weight.detach().float(), upsample.conv.bias
        assert bias is not None
        with torch.device("meta"):
            self.conv = nn.ConvTranspose2d(len(weight), len(weight), 4, stride=2, padding=1)
        phases = torch.tensor(_PHASES, dtype=torch.float32, device=weight.device)
        summed = torch.einsum("ra,oiab,sb->iors", phases, weight, phases)
        self.conv.weight = nn.Parameter(summed, requires_grad=False)
        self.conv.bias = nn.Parameter(bias.detach().float(), requires_grad=False)

    def forward(self, x: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """Map (B, C, H, W) to (B, C, 2H, 2W), or to `size`: one less where the way down rounded an odd size up."""
        if size is None or size == (2 * x.shape[-2], 2 * x.shape[-1]):
            return self.conv(x)
        # The sums assume another pixel beyond the edge; at an odd size zeros are there, so recover the 3 × 3 kernel.
        unphased = torch.tensor(_UNPHASED, dtype=torch.float32, device=x.device)
        kernel = unpacked_copy(self.conv).weight
        weight = torch.einsum("ar,iors,bs->oiab", unphased, kernel.float(), unphased).to(x.dtype)
        return F.conv2d(F.interpolate(x, size=size, mode="nearest"), weight, self.conv.bias, padding=1)


def zero_init(module: nn.Module) -> nn.Module:
    """Set every parameter of `module` to zero, so that a residual branch starts as the identity; returns it."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
    return module

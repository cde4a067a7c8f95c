"""Linear and convolution layers whose weights are packed once, in the order that oneDNN works in, and not at every call.

Packing and the operators that take packed weights are torch's own but private: `can_pack` tests for them, and layers that
cannot be packed stay as they are. Each gives the plain layer that it was made of (`unpacked`).
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from genpipe.blocks import layer_plus
from genpipe.models.attention import GatedFeedForward

# The order that oneDNN prefers depends on the input's size. Without a size it may guess an order that makes a
# convolution ten times slower; with a wrong one it may reorder the weights at every call.
USUAL_SIDE = 64

# Numbers between the products of a feed-forward layer, or of the patches of a convolution, at once.
STRIP = 2**21

OPERATORS = (
    "_reorder_linear_weight",
    "_linear_pointwise",
    "_reorder_convolution_weight",
    "_convolution_pointwise",
    "_reorder_convolution_transpose_weight",
    "_convolution_transpose_pointwise",
)


def can_pack(dtype: torch.dtype, operators: Sequence[str] = OPERATORS) -> bool:
    """Whether weights of this dtype can be packed here: torch needs oneDNN and its `operators`, bf16 the processor too."""
    if not torch.backends.mkldnn.is_available() or not all(hasattr(torch.ops.mkldnn, name) for name in operators):
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and multiplies_bf16())


def multiplies_bf16() -> bool:
    """Whether oneDNN takes bf16 on this processor, as torch itself asks: it needs AVX512 (BW, VL, DQ) or AVX-NE-CONVERT."""
    supported = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
    return supported is not None and bool(supported())


def kind_of(layer: nn.Module) -> str | None:
    """Name the kind of a layer as `Forms.packed` does; None if it cannot be packed."""
    if type(layer) is nn.Linear:
        return "linear"
    if type(layer) not in (nn.Conv2d, nn.ConvTranspose2d):
        return None
    assert isinstance(layer, nn.Conv2d | nn.ConvTranspose2d)
    if layer.groups != 1 or layer.padding_mode != "zeros":
        return None
    if type(layer) is nn.ConvTranspose2d:
        return "upsampling"
    return "convolution 1x1" if layer.kernel_size == (1, 1) else "convolution 3x3"


def suits_patches(layer: nn.Module, fewest: int | None) -> bool:
    """Whether a layer is a convolution, not 1×1, of `fewest` channels or more that a `PatchConv` computes; None: never."""
    if fewest is None or kind_of(layer) != "convolution 3x3":
        return False
    layer = cast(nn.Conv2d, layer)
    return layer.dilation == (1, 1) and min(layer.in_channels, layer.out_channels) >= fewest


def pack(layer: nn.Module, side: int = USUAL_SIDE) -> nn.Module:
    """Pack a linear layer or an ungrouped convolution, plain or transposed; another layer is returned as it is.

    `side` is the height and width of the maps that it will mostly be given. Other sizes give right results too, but may
    take longer.
    """
    if kind_of(layer) is None:
        return layer
    if isinstance(layer, nn.Conv2d) and (layer.kernel_size, layer.stride, layer.padding) == ((1, 1), (1, 1), (0, 0)):
        return PackedConv1x1(layer, side)
    packed: dict[type, Callable[[Any, int], nn.Module]] = {
        nn.Linear: PackedLinear,
        nn.Conv2d: PackedConv,
        nn.ConvTranspose2d: PackedConvTranspose,
    }
    return packed[type(layer)](layer, side)


class PackedLayer(nn.Module):
    """A layer without its weight, and the weight packed."""

    arguments: tuple[str, ...]  # of the plain layer
    weight: Tensor
    bias: Tensor | None

    def __init__(self, layer: nn.Module, weight: Tensor) -> None:
        super().__init__()
        self.bias = cast(Tensor | None, layer.bias)
        self.register_buffer("weight", weight)
        self._plain = (type(layer), {name: getattr(layer, name) for name in self.arguments})

    def _dense_weight(self) -> Tensor:
        return self.weight.to_dense()

    def _shifted(self, shift: Tensor | None) -> Tensor | None:
        """Add what is to be added to the bias."""
        return shift if self.bias is None else self.bias if shift is None else self.bias + shift

    def unpacked(self) -> nn.Module:
        """Build the plain layer that it was made of."""
        kind, arguments = self._plain
        with torch.device("meta"):
            layer = kind(**arguments, bias=self.bias is not None)
        layer.weight = nn.Parameter(self._dense_weight(), requires_grad=False)
        if self.bias is not None:
            layer.bias = nn.Parameter(self.bias.detach().clone(), requires_grad=False)
        return layer


class PackedLinear(PackedLayer):
    """A packed `nn.Linear`."""

    arguments = ("in_features", "out_features")
    adds = True

    def __init__(self, layer: nn.Linear | nn.Conv2d, side: int = USUAL_SIDE) -> None:
        weight = layer.weight.detach().flatten(1)
        super().__init__(layer, torch.ops.mkldnn._reorder_linear_weight(weight, side**2))

    def forward(self, x: Tensor, *, shift: Tensor | None = None, plus: Tensor | None = None) -> Tensor:
        """Map (..., C_in) to (..., C_out); `shift` (C_out) and `plus`, of the result's shape, are added in fp32."""
        product, bias = torch.ops.mkldnn._linear_pointwise, self._shifted(shift)
        if plus is None:
            return product(x, self.weight, bias, "none", [], "")
        return product.binary(x, plus.contiguous(), self.weight, bias, "add")


class PackedConv1x1(PackedLinear):
    """A packed `nn.Conv2d` of kernel and stride 1, as a linear layer of each pixel.

    It takes maps of any size, where oneDNN's convolutions reorder weights that were packed for larger maps. Works in
    channels_last, and returns it.
    """

    arguments = ("in_channels", "out_channels", "kernel_size")

    def _dense_weight(self) -> Tensor:
        return self.weight.to_dense()[..., None, None]

    def forward(self, x: Tensor, *, shift: Tensor | None = None, plus: Tensor | None = None) -> Tensor:
        """Map (B, C_in, H, W) to (B, C_out, H, W); `shift` (C_out) and `plus`, of that shape, are added in fp32."""
        plus = None if plus is None else plus.movedim(1, -1)
        return super().forward(x.movedim(1, -1).contiguous(), shift=shift, plus=plus).movedim(-1, 1)


class PackedGatedFeedForward(nn.Module):
    """A packed `GatedFeedForward`: value and gate are two products, into which oneDNN fuses GELU and the multiplication.

    Args:
        layer: what to compute.
        side: as of `pack`.
        fused: whether oneDNN computes GELU and multiplies; else torch does, after the products, strip by strip.
        strip: how many numbers lie between the products at once where torch multiplies them, so that they stay in caches.
        linear: packs a linear layer for maps of this side.
    """

    def __init__(
        self,
        layer: GatedFeedForward,
        side: int = USUAL_SIDE,
        *,
        fused: bool = True,
        strip: int = STRIP,
        linear: Callable[[nn.Linear, int], PackedLayer] = PackedLinear,
    ) -> None:
        super().__init__()
        self.fused, self._rows = fused, max(1, strip // layer.out.in_features)
        self.value, self.gate = (linear(half, side) for half in _halves(layer.project))
        self.out = linear(layer.out, side)

    def forward(self, x: Tensor, *, plus: Tensor | None = None) -> Tensor:
        """Map (B, N, C) to (B, N, C), with `plus` added."""
        if self.fused:
            product = torch.ops.mkldnn._linear_pointwise
            gate = product(x, self.gate.weight, self.gate.bias, "gelu", [], "none")
            h = product.binary(x, gate, self.value.weight, self.value.bias, "mul")
            return layer_plus(self.out, h, plus)
        rows, added = x.flatten(0, -2), None if plus is None else plus.flatten(0, -2)  # (B · N, C)
        result = x.new_empty(rows.shape)
        for top in range(0, len(rows), self._rows):
            part = slice(top, top + self._rows)
            h = self.value(rows[part]).mul_(torch.ops.aten.gelu_(self.gate(rows[part])))
            result[part] = layer_plus(self.out, h, None if added is None else added[part])
        return result.view(x.shape)

    def unpacked(self) -> GatedFeedForward:
        """Build the plain layer that it was made of."""
        value, gate, out = (cast(nn.Linear, layer.unpacked()) for layer in (self.value, self.gate, self.out))
        with torch.device("meta"):
            layer = GatedFeedForward(out.out_features, expansion=out.in_features // out.out_features)
        layer.project.weight, layer.project.bias = (
            nn.Parameter(torch.cat(parts), requires_grad=False)
            for parts in ((value.weight, gate.weight), (value.bias, gate.bias))
        )
        layer.out = out
        return layer


def _halves(layer: nn.Linear) -> Iterator[nn.Linear]:
    """Split a linear layer into two: the first and the second half of its outputs."""
    for weight, bias in zip(layer.weight.detach().chunk(2), layer.bias.detach().chunk(2), strict=True):
        with torch.device("meta"):
            half = nn.Linear(layer.in_features, len(weight))
        half.weight = nn.Parameter(weight.contiguous(), requires_grad=False)
        half.bias = nn.Parameter(bias.contiguous(), requires_grad=False)
        yield half


class PackedConv(PackedLayer):
    """A packed `nn.Conv2d`. Works in channels_last, and returns it."""

    arguments = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation")
    adds = True

    def __init__(self, layer: nn.Conv2d, side: int = USUAL_SIDE) -> None:
        self._settings = (layer.padding, layer.stride, layer.dilation, 1)
        weight = layer.weight.detach().to(memory_format=torch.channels_last)
        size = [1, layer.in_channels, side, side]
        super().__init__(layer, torch.ops.mkldnn._reorder_convolution_weight(weight, *self._settings, size))

    def forward(self, x: Tensor, *, shift: Tensor | None = None, plus: Tensor | None = None) -> Tensor:
        """Map (B, C_in, H, W) to (B, C_out, H', W'); `shift` (C_out) and `plus`, of that shape, are added in fp32."""
        x = x.contiguous(memory_format=torch.channels_last)
        convolve, bias = torch.ops.mkldnn._convolution_pointwise, self._shifted(shift)
        if plus is None or plus.shape[-2:] == (1, 1):  # torch 2.11 adds nothing to maps of one pixel
            result = convolve(x, self.weight, bias, *self._settings, "none", [], "")
            return result if plus is None else plus + result
        plus = plus.contiguous(memory_format=torch.channels_last)
        return convolve.binary(x, plus, self.weight, bias, *self._settings, "add", 1.0, None, [], None)


class PatchConv(PackedLinear):
    """An `nn.Conv2d` without groups and dilation as a linear layer of the patches that its kernel sees, which are copied side by side.

    Its weights suit maps of any size, where a `PackedConv` may reorder them at every call. Works in channels_last, and
    returns it.

    Args:
        layer: with its weights.
        strip: how many numbers of patches are copied at once.
    """

    arguments = ("in_channels", "out_channels", "kernel_size", "stride", "padding")

    def __init__(self, layer: nn.Conv2d, *, strip: int = STRIP) -> None:
        weight = layer.weight.detach().movedim(1, -1).flatten(1)  # (C_out, kernel height · kernel width · C_in)
        PackedLayer.__init__(self, layer, torch.ops.mkldnn._reorder_linear_weight(weight, strip // weight.shape[1]))
        self._numbers = strip
        self._padding, self._stride, self._kernel = layer.padding, layer.stride, layer.kernel_size

    def _dense_weight(self) -> Tensor:
        return self.weight.to_dense().unflatten(1, (*self._kernel, -1)).movedim(-1, 1).contiguous()

    def forward(self, x: Tensor, *, shift: Tensor | None = None, plus: Tensor | None = None) -> Tensor:
        """Map (B, C_in, H, W) to (B, C_out, H', W'); `shift` (C_out) and `plus`, of that shape, are added in fp32."""
        down, across = cast(tuple[int, int], self._padding)
        patches = F.pad(x.movedim(1, -1), (0, 0, across, across, down, down))
        for dim, (kernel, stride) in enumerate(zip(self._kernel, self._stride, strict=True)):
            patches = patches.unfold(1 + dim, kernel, stride)
        patches = patches.movedim(3, -1)  # (B, H', W', kernel height, kernel width, C_in), not copied yet
        result = x.new_empty(*patches.shape[:3], self.weight.shape[0])
        added = None if plus is None else plus.movedim(1, -1)
        strip = max(1, self._numbers // patches[:, 0].numel())
        for top in range(0, result.shape[1], strip):
            part = slice(top, top + strip)
            more = None if added is None else added[:, part]
            result[:, part] = PackedLinear.forward(self, patches[:, part].flatten(3), shift=shift, plus=more)
        return result.movedim(-1, 1)


class PackedConvTranspose(PackedLayer):
    """A packed `nn.ConvTranspose2d`. Works in channels_last, and returns it."""

    arguments = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "output_padding", "dilation")

    def __init__(self, layer: nn.ConvTranspose2d, side: int = USUAL_SIDE) -> None:
        self._settings = (layer.padding, layer.output_padding, layer.stride, layer.dilation, 1)
        reorder = torch.ops.mkldnn._reorder_convolution_transpose_weight
        size = [1, layer.in_channels, side, side]
        super().__init__(layer, reorder(layer.weight.detach(), *self._settings, size))

    def _dense_weight(self) -> Tensor:
        return self.weight.to_dense().transpose(0, 1)  # oneDNN swaps the channels of a transposed convolution

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C_in, H, W) to (B, C_out, H', W')."""
        x = x.contiguous(memory_format=torch.channels_last)
        convolve = torch.ops.mkldnn._convolution_transpose_pointwise
        return convolve(x, self.weight, self.bias, *self._settings, "none", [], "")

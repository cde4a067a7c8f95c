"""Linear and convolution layers in int8 (W8A8), for CPUs that multiply it faster than bf16 or fp32 (VNNI).

Weights have one scale per output channel, symmetric around zero. What they are multiplied with is quantised at every call,
with one scale per image, from its largest magnitude: nothing is calibrated, and no image depends on the others of its
batch. Products are summed exactly, in int32, and come out in the dtype that the network runs in.

The operators are torch's own but private: `can_quantise` tests for them. `unpacked` gives the plain layer of the weights
that a quantised one multiplies with, in that dtype.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from genpipe.models.attention import GatedFeedForward
from genpipe.models.cpu.packed import USUAL_SIDE, PackedGatedFeedForward, PackedLayer, kind_of

ZERO = 128  # what stands for zero in the input: oneDNN's convolutions take unsigned numbers alone
OPERATORS = ("qlinear_prepack", "qlinear_pointwise", "qconv_prepack", "qconv_pointwise", "qconv2d_pointwise")
_TINY = torch.finfo(torch.float32).tiny


def can_quantise(operators: Sequence[str] = OPERATORS) -> bool:
    """Whether this torch has oneDNN and these `operators`."""
    return torch.backends.mkldnn.is_available() and all(hasattr(torch.ops.onednn, name) for name in operators)


def worth_quantising(layer: nn.Module, fewest: int) -> bool:
    """Whether int8 pays for a layer: linear, or an ungrouped convolution, of at least `fewest` channels in and out."""
    if kind_of(layer) in (None, "upsampling"):
        return False
    return min(cast(Tensor, layer.weight).shape[:2]) >= fewest


def quantise(layer: nn.Module, side: int = USUAL_SIDE, dtype: torch.dtype = torch.bfloat16) -> nn.Module:
    """Make the int8 form of an `nn.Linear` or `nn.Conv2d`; `side` as in `genpipe.models.cpu.packed.pack`.

    `dtype`, bf16 or fp32, is that of what it is given and gives.
    """
    if isinstance(layer, nn.Linear):
        return QuantisedLinear(layer, side, dtype)
    return QuantisedConv(cast(nn.Conv2d, layer), side, dtype)


def to_uint8(x: Tensor) -> tuple[Tensor, float]:
    """Quantise x to round(x / scale) + `ZERO`; the scale, returned too, takes the largest magnitude to 127."""
    low, high = (float(bound) for bound in x.aminmax())
    # Where x is not finite the scale is not finite either (`max` keeps a NaN that comes first), nor is the product.
    scale = max(high, -low, 127 * _TINY) / 127
    signed = x.to(torch.float32, copy=True).mul_(1 / scale).round_().to(torch.int8)
    return signed.bitwise_xor_(-ZERO).view(torch.uint8), scale  # flipping the sign bit adds 128


def weight_to_int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Quantise a weight (C_out, ...) to integers -127 … 127; each output channel's scale, (C_out) in fp32, is returned too."""
    weight = weight.float()
    scales = weight.flatten(1).abs().amax(1).div_(127).clamp_(min=_TINY)
    return (weight / scales.view(-1, *[1] * (weight.ndim - 1))).round_().to(torch.int8), scales


class QuantisedLayer(PackedLayer):
    """A packed layer whose weight is int8."""

    scales: Tensor
    zeros: Tensor

    def __init__(self, layer: nn.Module, packed: Tensor, scales: Tensor, dtype: torch.dtype) -> None:
        super().__init__(layer, packed)
        self.dtype = dtype
        self.register_buffer("scales", scales)
        self.register_buffer("zeros", torch.zeros(len(scales), dtype=torch.int64), persistent=False)
        if self.bias is not None:
            self.bias = nn.Parameter(self.bias.detach().to(dtype), requires_grad=False)

    def _dense_weight(self) -> Tensor:
        weight = self._integers()
        return (weight * self.scales.view(-1, *[1] * (weight.ndim - 1))).to(self.dtype)

    def _integers(self) -> Tensor:
        return self.weight.to_dense()


class QuantisedLinear(QuantisedLayer):
    """An int8 `nn.Linear`."""

    arguments = ("in_features", "out_features")

    def __init__(self, layer: nn.Linear, side: int = USUAL_SIDE, dtype: torch.dtype = torch.bfloat16) -> None:
        weight, scales = weight_to_int8(layer.weight.detach())
        super().__init__(layer, torch.ops.onednn.qlinear_prepack(weight, [side**2, layer.in_features]), scales, dtype)

    def _integers(self) -> Tensor:
        return self.weight.to_dense().t()

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, ..., C_in) to (B, ..., C_out)."""
        return _joined([self.product(*to_uint8(image)) for image in x.split(1)])

    def product(self, x: Tensor, scale: float, activation: str = "none") -> Tensor:
        """Map what `to_uint8` gives, (..., C_in), to (..., C_out); `activation`, such as "gelu", is fused."""
        output: tuple[Any, ...] = (1.0, 0, self.dtype, activation, [], "none")
        given = (x, scale, ZERO, self.weight, self.scales, self.zeros)
        return torch.ops.onednn.qlinear_pointwise(*given, self.bias, *output)


class QuantisedGatedFeedForward(PackedGatedFeedForward):
    """An int8 `GatedFeedForward`: value and gate are two products of one quantised input, the gate's with GELU."""

    def __init__(self, layer: GatedFeedForward, side: int = USUAL_SIDE, dtype: torch.dtype = torch.bfloat16) -> None:
        super().__init__(layer, side, linear=partial(QuantisedLinear, dtype=dtype))

    def forward(self, x: Tensor, *, plus: Tensor | None = None) -> Tensor:
        """Map (B, N, C) to (B, N, C), with `plus` added."""
        value, gate = cast(QuantisedLinear, self.value), cast(QuantisedLinear, self.gate)
        results = []
        for image in x.split(1):
            given = to_uint8(image)
            results.append(self.out(value.product(*given).mul_(gate.product(*given, "gelu"))))
        return _joined(results) if plus is None else plus + _joined(results)


class QuantisedConv(QuantisedLayer):
    """An int8 `nn.Conv2d`. Works in channels_last, and returns it."""

    arguments = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation")
    adds = True

    def __init__(self, layer: nn.Conv2d, side: int = USUAL_SIDE, dtype: torch.dtype = torch.bfloat16) -> None:
        self._settings = (layer.stride, layer.padding, layer.dilation, 1)
        weight, scales = weight_to_int8(layer.weight.detach())
        size = [1, layer.in_channels, side, side]
        # The packed order depends on whether the input has a scale other than 1, and not on which.
        packed = torch.ops.onednn.qconv_prepack(weight, scales, 0.5, ZERO, *self._settings, size)
        super().__init__(layer, packed, scales, dtype)

    def forward(self, x: Tensor, *, shift: Tensor | None = None, plus: Tensor | None = None) -> Tensor:
        """Map (B, C_in, H, W) to (B, C_out, H', W'); `shift` (C_out) and `plus`, of that shape, are added in fp32."""
        images = x.movedim(1, -1).contiguous().split(1)  # (1, H, W, C_in) each
        bias = None if self.bias is None else self.bias.float()
        bias = shift if bias is None else bias if shift is None else bias + shift
        if plus is None:
            return _joined([self._convolve(image, bias) for image in images])
        result = plus.clone(memory_format=torch.channels_last)
        for image, sum_ in zip(images, result.split(1), strict=True):
            self._convolve(image, bias, sum_)
        return result

    def _convolve(self, image: Tensor, bias: Tensor | None, onto: Tensor | None = None) -> Tensor:
        """Convolve one image; the result is added in place to `onto` if there is one."""
        x, scale = to_uint8(image)
        given = (x.movedim(-1, 1), scale, ZERO, self.weight, self.scales, self.zeros)
        output: tuple[Any, ...] = (*self._settings, 1.0, 0, self.dtype)
        if onto is None:
            return torch.ops.onednn.qconv_pointwise(*given, bias, *output, "none", [], "")
        fused = (1.0, 0, "sum", 1.0, None, [], None)
        return torch.ops.onednn.qconv2d_pointwise.binary(*given, onto, bias, *output, *fused)


def _joined(images: list[Tensor]) -> Tensor:
    return images[0] if len(images) == 1 else torch.cat(images)

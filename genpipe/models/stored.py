"""Layers that keep their weights in fewer bits than they multiply them in, and widen them each time they run.

A network of such layers takes as much memory as its weights are stored in, and a little for the one layer that runs. The
weights are those of the last rounding: a layer computes exactly what `unpacked` gives.
"""

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

FP8 = torch.float8_e4m3fn
_LARGEST = {FP8: 448.0, torch.int8: 127.0}
_SMALLEST = 2.0**-100  # of a scale: where a row of a weight is zero
# Layers of a U-Net that stay wide: they are small, and what they round goes into everything.
_KEPT = ("conv_in", "conv_out", "time_embedding", "added_embedding", "class_embedding")


def narrowed(weight: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """Round a weight (C_out, ...) to fp8 (e4m3), int8 or bf16.

    Returns:
        The rounded weight, and in fp8 and int8 a scale for each output channel, (C_out) in fp32, by which it is multiplied
        when it is widened. Scales are numbers that bf16 holds; in fp8 they are powers of two, so that what was in fp8
        before stays as it was.
    """
    if dtype not in _LARGEST:
        return weight.to(dtype), None
    rows = weight.to(torch.float32, copy=True)  # the one copy: what follows is in place
    low, high = rows.flatten(1).aminmax(dim=1)
    scales = high.maximum(-low).div_(_LARGEST[dtype]).clamp_(min=_SMALLEST)
    if dtype == FP8:
        scales = torch.ldexp(torch.ones_like(scales), scales.frexp().exponent).where(scales.isfinite(), scales)
    else:
        scales = scales.mul_(1 + 2.0**-8).bfloat16().float()  # rounded up
    rows.div_(_per_row(scales, rows))
    return (rows if dtype == FP8 else rows.round_()).to(dtype), scales


def widened(weight: Tensor, scales: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Widen what `narrowed` gave."""
    if weight.dtype == FP8 and weight.device.type != "cuda":
        # torch's own conversion is nine times slower on a CPU. Shifted by one, the exponent and the mantissa of an e4m3
        # are those of an fp16 that is 2⁸ times smaller; the sign, which `to` has spread, is taken out of the way.
        bits = weight.view(torch.int8).to(torch.int16).mul_(128).bitwise_and_(~(1 << 14))
        weight, scales = bits.view(torch.float16), None if scales is None else 256 * scales
    wide = weight.to(dtype)
    return wide if scales is None else wide.mul_(_per_row(scales.to(dtype), wide))


def _per_row(scales: Tensor, weight: Tensor) -> Tensor:
    return scales.view(-1, *[1] * (weight.ndim - 1))


class StoredLayer(nn.Module):
    """An `nn.Linear` or `nn.Conv2d` whose weight is stored in another dtype.

    Args:
        layer: whose weight and bias it takes; it is of no use afterwards.
        dtype: fp8 (e4m3), int8 or bf16.
    """

    weight: Tensor
    scales: Tensor | None

    def __init__(self, layer: nn.Linear | nn.Conv2d, dtype: torch.dtype) -> None:
        super().__init__()
        weight, scales = narrowed(layer.weight.detach(), dtype)
        self.register_buffer("weight", weight)
        self.register_buffer("scales", scales)
        self.bias = cast(nn.Parameter | None, layer.bias)
        self._convolves = isinstance(layer, nn.Conv2d)
        self._settings: dict[str, Any] = (
            {"stride": layer.stride, "padding": layer.padding, "dilation": layer.dilation, "groups": layer.groups}
            if isinstance(layer, nn.Conv2d)
            else {}
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map x as the plain layer does, in its dtype."""
        weight = widened(self.weight, self.scales, x.dtype)
        return F.conv2d(x, weight, self.bias, **self._settings) if self._convolves else F.linear(x, weight, self.bias)

    def moved(self, device: torch.device, dtype: torch.dtype) -> "StoredLayer":
        """Move it to a device, and its bias to the dtype that it is to run in; returns it."""
        self.weight = self.weight.to(device)
        self.scales = None if self.scales is None else self.scales.to(device)
        if self.bias is not None:
            self.bias = nn.Parameter(self.bias.detach().to(device, dtype), requires_grad=False)
        return self

    def unpacked(self) -> nn.Linear | nn.Conv2d:
        """Build the plain layer, in fp32."""
        biased = self.bias is not None
        outputs, inputs, *kernel = self.weight.shape
        with torch.device("meta"):
            if self._convolves:
                inputs *= self._settings["groups"]
                layer = nn.Conv2d(inputs, outputs, cast(Any, tuple(kernel)), bias=biased, **self._settings)
            else:
                layer = nn.Linear(inputs, outputs, bias=biased)
        layer.weight = nn.Parameter(widened(self.weight, self.scales, torch.float32), requires_grad=False)
        if self.bias is not None:
            layer.bias = nn.Parameter(self.bias.detach().float(), requires_grad=False)
        return layer


def is_stored(module: nn.Module) -> bool:
    """Whether a module, or one right within it, is a `StoredLayer`."""
    return any(isinstance(each, StoredLayer) for each in (module, *module.children()))


def can_store(name: str, layer: nn.Module) -> bool:
    """Whether a layer of a U-Net, by its name in it, is one to be stored in fewer bits."""
    return type(layer) in (nn.Linear, nn.Conv2d) and name.partition(".")[0] not in _KEPT

"""3×3 convolutions with fewer multiplications, because neighbouring results share products.

Four neighbouring results take 36 products one by one. `WinogradConv`, F(2×2, 3×3) of "Fast Algorithms for Convolutional
Neural Networks" (2016), takes 16; `DifferenceUpsample`, for a convolution after nearest-neighbour upsampling, takes 9.
Results are the same up to rounding. In bf16 the rounding error is 2.7 times that of a direct convolution for the first,
and about twice for the second.
"""

from collections.abc import Iterable, Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from genpipe.blocks import Upsample
from genpipe.models.cpu.packed import USUAL_SIDE, PackedLinear

# The smallest maps that `WinogradConv` is for. On smaller ones, reading its weights, 16 / 9 as many as a plain convolution
# has, takes as long as it saves.
SMALLEST_SIDE = 16
# Numbers that are transformed along rows at once, so that memory stays flat and they are multiplied while still in caches.
STRIP = 2**23
# Numbers that are upsampled at once, for the same reasons: all of a denoiser's maps at its usual size, strips of a decoder's.
UPSAMPLED = 2**21
# From three taps to the weights of four products. The last row is negated, so that all later steps are additions.
_TAPS = ((1.0, 0.0, 0.0), (0.5, 0.5, 0.5), (0.5, -0.5, 0.5), (0.0, 0.0, -1.0))
# From three taps to the weights of a small pixel, and of how its neighbours before and after differ from it.
_NEAREST = ((1.0, 1.0, 1.0), (1.0, 0.0, 0.0), (0.0, 0.0, 1.0))


def suits_winograd(layer: nn.Module, side: int, fewest: int) -> bool:
    """Whether a layer is a plain 3×3 convolution, of `fewest` channels or more, for maps whose side is large enough."""
    if type(layer) is not nn.Conv2d or min(layer.in_channels, layer.out_channels) < fewest or side < SMALLEST_SIDE:
        return False
    plain = layer.groups == 1 and layer.padding_mode == "zeros"
    shape = (layer.kernel_size, layer.padding, layer.stride, layer.dilation)
    return plain and shape == ((3, 3), (1, 1), (1, 1), (1, 1))


def suits_difference(upsample: Upsample, fewest: int) -> bool:
    """Whether an `Upsample` has the channels, `fewest` or more, that make it worth a `DifferenceUpsample`."""
    return upsample.conv.in_channels >= fewest


class WinogradConv(nn.Module):
    """An `nn.Conv2d` that `suits_winograd`, with 16 / 36 of its multiplications. Works in channels_last, and returns it.

    Args:
        layer: with its weights best in the file's own dtype, since the sixteen sums of them are then rounded only once.
        dtype: what to run in.
        side: height and width of the maps that it will mostly be given.
        strip: how many numbers are transformed along rows at once.
    """

    adds = True

    def __init__(self, layer: nn.Conv2d, dtype: torch.dtype, side: int = USUAL_SIDE, *, strip: int = STRIP) -> None:
        super().__init__()
        self._numbers = strip
        self.in_channels, self.out_channels = layer.in_channels, layer.out_channels
        taps, weight = torch.tensor(_TAPS, dtype=torch.float32, device="cpu"), layer.weight.detach()
        sums = torch.mm(torch.kron(taps, taps), weight.view(-1, 9).float().T)
        weights = sums.to(dtype).view(4, 4, *weight.shape[:2])
        bias = None if layer.bias is None else layer.bias.detach().to(dtype)
        self.products = nn.ModuleList(
            # The second product of both axes is part of all four results, so that its bias is added to each.
            nn.ModuleList(_packed(weights[r, s], bias if r == s == 1 else None, side // 2) for s in range(4))
            for r in range(4)
        )

    def forward(self, x: Tensor, *, shift: Tensor | None = None, plus: Tensor | None = None) -> Tensor:
        """Map (B, C_in, H, W) to (B, C_out, H, W); `shift` (C_out) and `plus`, of that shape, are added."""
        height, width = x.shape[-2:]
        if height % 2 or width % 2:  # pad to an even size with the zeros that a convolution sees beyond the edge
            beyond = (0, width % 2, 0, height % 2)
            result = self(F.pad(x, beyond), shift=shift, plus=None if plus is None else F.pad(plus, beyond))
            return result[..., :height, :width]
        columns = _transformed(_channels_last(x), 1)  # (4, B, H / 2, W, C_in)
        result = x.new_empty(len(x), height // 2, 2, width // 2, 2, self.out_channels)
        added = None if plus is None else _channels_last(plus).view_as(result)
        strip = max(1, self._numbers // (2 * columns[:, :, 0].numel()))
        for top in range(0, height // 2, strip):
            part = slice(top, top + strip)
            self._strip(columns[:, :, part], result[:, part], shift, None if added is None else added[:, part])
        return result.view(len(x), height, width, -1).movedim(-1, 1)

    def _strip(self, columns: Tensor, result: Tensor, shift: Tensor | None, added: Tensor | None) -> None:
        """Compute n rows of pairs (B, n, 2, W / 2, 2, C_out) from the columns' transform (4, B, n, W, C_in)."""
        parts = _transformed(columns, 3)  # (4, 4, B, n, W / 2, C_in): of rows, of columns
        rows = [self._row(row, parts[:, row], shift if row == 1 else None) for row in range(4)]
        for side in range(2):
            first, second, third, fourth = (pair[side] for pair in rows)
            for row, (a, b) in enumerate(((second + third, first), (second.sub_(third), fourth))):
                place = (slice(None), slice(None), row, slice(None), side)
                total, more = (a, b) if added is None else (a.add_(b), added[place])
                torch.add(total, more, out=result[place])

    def _row(self, row: int, parts: Tensor, shift: Tensor | None) -> tuple[Tensor, Tensor]:
        """Compute the left and the right results of a row of products."""
        first, second, third, fourth = cast(nn.ModuleList, self.products[row])
        middle = second(parts[1], shift=shift)
        left = third(parts[2], plus=middle)
        right = torch.lerp(left, middle, 2.0)  # middle minus the third product, rounded once
        return first(parts[0], plus=left), fourth(parts[3], plus=right)

    def unpacked(self) -> nn.Conv2d:
        """Build the plain convolution; its weights are those that it was made of, up to rounding."""
        with torch.device("meta"):
            layer = nn.Conv2d(self.in_channels, self.out_channels, 3, padding=1)
        weights, bias = _plain(self.products)
        taps = torch.tensor(_TAPS, dtype=torch.float32, device="cpu").pinverse()
        weight = torch.einsum("ar,rsoi,bs->oiab", taps, weights.float(), taps).to(weights.dtype)
        layer.weight = nn.Parameter(weight, requires_grad=False)
        layer.bias = cast(Any, bias)
        return layer


class DifferenceUpsample(nn.Module):
    """An `Upsample` with a quarter of its multiplications. Works in channels_last, and returns it.

    Along one axis, with taps a, b, c, the large pixel 2i depends on the small pixels i - 1 and i, and the large pixel
    2i + 1 on i and i + 1. They are (a + b + c) x[i] + a (x[i - 1] - x[i]) and (a + b + c) x[i] + c (x[i + 1] - x[i]): three
    products for two results, nine for the four of both axes.

    Args:
        upsample: with its weights best in the file's own dtype, since the nine sums of them are then rounded only once.
        dtype: what to run in.
        side: height and width of the small maps that it will mostly be given.
        strip: how many numbers are upsampled at once.
    """

    def __init__(
        self, upsample: Upsample, dtype: torch.dtype, side: int = USUAL_SIDE, *, strip: int = UPSAMPLED
    ) -> None:
        super().__init__()
        self._numbers = strip
        taps, weight, bias = (
            torch.tensor(_NEAREST, dtype=torch.float32, device="cpu"),
            upsample.conv.weight.detach(),
            upsample.conv.bias,
        )
        assert bias is not None
        weights = torch.einsum("ra,oiab,sb->rsoi", taps, weight.float(), taps).to(dtype)
        self.products = nn.ModuleList(
            nn.ModuleList(
                _packed(weights[r, s], bias.detach().to(dtype) if r == s == 0 else None, side) for s in range(3)
            )
            for r in range(3)
        )

    def forward(self, x: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """Map (B, C, H, W) to (B, C, 2H, 2W), or to `size`: one less where the way down rounded an odd size up."""
        batch, channels, height, width = x.shape
        x = _channels_last(x)
        result = x.new_empty(batch, height, 2, width, 2, channels)
        strip = max(1, self._numbers // x[:, :1].numel())
        for top in range(0, height, strip):
            around = slice(max(top - 1, 0), top + strip + 1)
            self._strip(x[:, around], top - around.start, result[:, top : top + strip])
        result = result.view(batch, 2 * height, 2 * width, channels)
        if size is not None and size != (2 * height, 2 * width):
            result = self._cut(result, x, *size)
        return result.movedim(-1, 1)

    def _strip(self, around: Tensor, top: int, result: Tensor) -> None:
        """Compute rows (B, n, 2, W, 2, C) of x (B, n, W, C), which begin at row `top` of `around`, with the next on either side."""
        part, rows = slice(top, top + result.shape[1]), self._rows()
        x = around[:, part].contiguous()
        same = rows[0][0](x)
        same = [product(near, plus=same) for product, near in zip(rows[0][1:], _differences(x, 2), strict=True)]
        for side, (products, differences) in enumerate(zip(rows[1:], _differences(around, 1), strict=True)):
            beside = differences[:, part].contiguous()
            both = products[0](beside)
            for across, near in enumerate(_differences(beside, 2)):
                one = products[1 + across](near, plus=same[across])
                torch.add(one, both, out=result[:, :, side, :, across])

    def _cut(self, result: Tensor, x: Tensor, height: int, width: int) -> Tensor:
        """Cut the last row or column off, and subtract what it added to its neighbours: beyond an edge are zeros."""
        rows = self._rows()
        for dim, length in ((1, height), (2, width)):
            if length == result.shape[dim]:
                continue
            products = rows[2] if dim == 1 else [row[2] for row in rows]
            edge, along = x.narrow(dim, x.shape[dim] - 1, 1).contiguous(), 3 - dim
            same = products[0](edge)
            seen = [
                product(near, plus=same) for product, near in zip(products[1:], _differences(edge, along), strict=True)
            ]
            result.narrow(dim, length - 1, 1).sub_(torch.stack(seen, along + 1).flatten(along, along + 1))
        if height % 2 and width % 2:  # the corner was subtracted twice
            result[:, -2, -2].add_(rows[2][2](x[:, -1, -1].contiguous()))
        return result[:, :height, :width].contiguous()

    def _rows(self) -> list[nn.ModuleList]:
        return [cast(nn.ModuleList, row) for row in self.products]

    def unpacked(self) -> Upsample:
        """Build the plain upsampling; its weights are those that it was made of, up to rounding."""
        weights, bias = _plain(self.products)
        with torch.device("meta"):
            upsample = Upsample(len(weights[0, 0]))
        taps = torch.tensor(_NEAREST, dtype=torch.float32, device="cpu").inverse()
        weight = torch.einsum("ar,rsoi,bs->oiab", taps, weights.float(), taps).to(weights.dtype)
        upsample.conv.weight = nn.Parameter(weight, requires_grad=False)
        upsample.conv.bias = bias
        return upsample


def _packed(weight: Tensor, bias: Tensor | None, side: int) -> PackedLinear:
    """Pack a linear layer of these weights, for maps of this side."""
    with torch.device("meta"):
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    layer.weight = nn.Parameter(weight.contiguous(), requires_grad=False)
    if bias is not None:
        layer.bias = nn.Parameter(bias, requires_grad=False)
    return PackedLinear(layer, side)


def _plain(products: nn.ModuleList) -> tuple[Tensor, nn.Parameter | None]:
    """Give the weights of square products, (n, n, C_out, C_in), and the bias that one of them has."""
    rows = (cast(Iterable[PackedLinear], row) for row in products)
    layers = [[product.unpacked() for product in row] for row in rows]
    biases = (layer.bias for row in layers for layer in row if layer.bias is not None)
    weights = torch.stack([torch.stack([cast(Tensor, layer.weight) for layer in row]) for row in layers])
    return weights, cast(nn.Parameter | None, next(biases, None))


def _channels_last(x: Tensor) -> Tensor:
    """Map (B, C, H, W) to (B, H, W, C), contiguous."""
    return x.movedim(1, -1).contiguous()


def _transformed(x: Tensor, dim: int) -> Tensor:
    """Map (..., 2n, ...) to (4, ..., n, ...): four sums of each pair along `dim` and of the pixels beside it."""
    even, odd = x.unflatten(dim, (-1, 2)).unbind(dim + 1)
    n = even.shape[dim]
    result = x.new_empty(4, *even.shape)
    torch.neg(odd.narrow(dim, 0, 1), out=result[0].narrow(dim, 0, 1))
    torch.sub(odd.narrow(dim, 0, n - 1), odd.narrow(dim, 1, n - 1), out=result[0].narrow(dim, 1, n - 1))
    torch.add(even, odd, out=result[1])
    torch.sub(odd, even, out=result[2])
    torch.sub(even.narrow(dim, 0, n - 1), even.narrow(dim, 1, n - 1), out=result[3].narrow(dim, 0, n - 1))
    result[3].narrow(dim, n - 1, 1).copy_(even.narrow(dim, n - 1, 1))
    return result


def _differences(x: Tensor, dim: int) -> Iterator[Tensor]:
    """Yield how the neighbours before, and then those after, along `dim` differ; beyond the edge are zeros."""
    last = x.shape[dim] - 1
    first, second = x.narrow(dim, 0, last), x.narrow(dim, 1, last)
    for near, far, start, edge in ((second, first, 1, 0), (first, second, 0, last)):
        result = torch.empty_like(x)
        torch.sub(far, near, out=result.narrow(dim, start, last))
        torch.neg(x.narrow(dim, edge, 1), out=result.narrow(dim, edge, 1))
        yield result

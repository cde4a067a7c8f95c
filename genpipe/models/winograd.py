"""3×3 convolutions in 4 / 9 of the multiplications ("Fast Algorithms for Convolutional Neural Networks", 2016).

F(2×2, 3×3): four neighbouring results share what sixteen products give, where taking each by itself takes thirty-six. The
result is the same but for rounding, of which there is more: in bf16 about 2.7 times as much as of one direct convolution.
"""

import copy
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from genpipe.models.packed import SIDE, PackedLinear

# The fewest channels, in and out, that it is for: with fewer it saves less than its rounding is worth.
FEWEST = 512
# The smallest maps that it is for: below, reading the weights, 16 / 9 as many, takes as long as the products.
SMALLEST = 16
# What makes the four products' weights of three taps. The last is negated, so that all that follows is adding.
_TAPS = ((1.0, 0.0, 0.0), (0.5, 0.5, 0.5), (0.5, -0.5, 0.5), (0.0, 0.0, -1.0))


def suits_winograd(layer: nn.Module, side: int) -> bool:
    """Whether a layer is a plain 3×3 convolution, wide enough and for maps of a side that is large enough."""
    if type(layer) is not nn.Conv2d or min(layer.in_channels, layer.out_channels) < FEWEST or side < SMALLEST:
        return False
    plain = layer.groups == 1 and layer.padding_mode == "zeros"
    shape = (layer.kernel_size, layer.padding, layer.stride, layer.dilation)
    return plain and shape == ((3, 3), (1, 1), (1, 1), (1, 1))


class WinogradConv(nn.Module):
    """What an `nn.Conv2d` that `suits_winograd` computes. Works in channels_last, and gives it.

    Args:
        layer: its weights best of the type that the file has, since the sixteen sums of them are then rounded once.
        dtype: what to run in.
        side: height and width of the maps that it will mostly be given.
    """

    adds = True

    def __init__(self, layer: nn.Conv2d, dtype: torch.dtype, side: int = SIDE) -> None:
        super().__init__()
        self.in_channels, self.out_channels = layer.in_channels, layer.out_channels
        taps, weight = torch.tensor(_TAPS), layer.weight.detach()
        sums = torch.mm(torch.kron(taps, taps), weight.view(-1, 9).float().T)
        weights = sums.to(dtype).view(4, 4, *weight.shape[:2])
        bias = None if layer.bias is None else layer.bias.detach().to(dtype)
        self.products = nn.ModuleList(
            # What the second product of both axes gives is in all four results, and so then is its bias.
            nn.ModuleList(_packed(weights[r, s], bias if r == s == 1 else None, side // 2) for s in range(4))
            for r in range(4)
        )

    def forward(self, x: Tensor, *, shift: Tensor | None = None, plus: Tensor | None = None) -> Tensor:
        """(B, C_in, H, W) -> (B, C_out, H, W); `shift` (C_out) and `plus`, of the result's shape, are added."""
        height, width = x.shape[-2:]
        if height % 2 or width % 2:  # one more of the zeros that a convolution sees beyond the edge
            beyond = (0, width % 2, 0, height % 2)
            result = self(F.pad(x, beyond), shift=shift, plus=None if plus is None else F.pad(plus, beyond))
            return result[..., :height, :width]
        parts = _transformed(_transformed(_channels_last(x), 1), 3)  # (4, 4, B, H / 2, W / 2, C_in): columns, rows
        rows = [self._row(row, parts[:, row], shift if row == 1 else None) for row in range(4)]
        result = x.new_empty(len(x), height // 2, 2, width // 2, 2, self.out_channels)
        added = None if plus is None else _channels_last(plus).view_as(result)
        for side in range(2):
            first, second, third, fourth = (pair[side] for pair in rows)
            for row, (a, b) in enumerate(((second + third, first), (second.sub_(third), fourth))):
                place = (slice(None), slice(None), row, slice(None), side)
                total, more = (a, b) if added is None else (a.add_(b), added[place])
                torch.add(total, more, out=result[place])
        return result.view(len(x), height, width, -1).movedim(-1, 1)

    def _row(self, row: int, parts: Tensor, shift: Tensor | None) -> tuple[Tensor, Tensor]:
        """The left and the right results of a row of products."""
        first, second, third, fourth = cast(nn.ModuleList, self.products[row])
        middle = second(parts[1], shift=shift)
        left = third(parts[2], plus=middle)
        right = torch.lerp(left, middle, 2.0)  # middle minus the third product, rounded once
        return first(parts[0], plus=left), fourth(parts[3], plus=right)

    def __deepcopy__(self, memo: dict[int, Any]) -> nn.Conv2d:
        with torch.device("meta"):
            layer = nn.Conv2d(self.in_channels, self.out_channels, 3, padding=1)
        rows = [
            [cast(nn.Linear, copy.deepcopy(product, memo)) for product in cast(nn.ModuleList, row)]
            for row in self.products
        ]
        weights = torch.stack([torch.stack([product.weight for product in row]) for row in rows])
        taps = torch.tensor(_TAPS).pinverse()
        weight = torch.einsum("ar,rsoi,bs->oiab", taps, weights.float(), taps).to(weights.dtype)
        layer.weight = nn.Parameter(weight, requires_grad=False)
        layer.bias = cast(Any, rows[1][1].bias)
        return layer


def _packed(weight: Tensor, bias: Tensor | None, side: int) -> PackedLinear:
    """A linear layer of these weights, for maps of this side."""
    with torch.device("meta"):
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    layer.weight = nn.Parameter(weight.contiguous(), requires_grad=False)
    if bias is not None:
        layer.bias = nn.Parameter(bias, requires_grad=False)
    return PackedLinear(layer, side)


def _channels_last(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, H, W, C), contiguous."""
    return x.movedim(1, -1).contiguous()


def _transformed(x: Tensor, dim: int) -> Tensor:
    """(..., 2n, ...) -> (4, ..., n, ...): of each two neighbours along `dim`, and the ones beside them, four sums."""
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

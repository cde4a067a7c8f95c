"""3×3 convolutions in fp32 with a quarter of the multiplications, and all of them in large products.

Sixteen neighbouring results take 144 products one by one, and 36 in F(4×4, 3×3) of "Fast Algorithms for Convolutional Neural
Networks" (2016). The transforms before and after are products too, by small constant matrices, so that each strip of an
image takes eight operations. They are torch's own: no weight is in an order that suits one size or number of threads. The
weights of the products, four times as many as a plain convolution has, are computed at every call, which takes little
beside the products of large maps, and are not kept. The rounding error is five times that of a direct convolution: nothing
in fp32, and too much for 16 bits.
"""

from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from genpipe.models.cpu.winograd import suits_winograd

# The most in · out channels per pixel of a map: with more, transforming the weights takes too much beside the products.
MOST_CHANNELS = 600
# Numbers that are transformed at once, so that they are multiplied while still in caches; and the fewest tiles, however many
# channels they have, since products of few rows take as long as reading their weights.
STRIP, TILES = 2**20, 64
# Numbers in one part of the transformed weights: 32 MB, up to which memory that was freed is used again.
WEIGHTS = 2**23
# Where the polynomials are evaluated, beside infinity. They round half as much as the usual 0, ±1 and ±2, and are exact in
# binary.
_POINTS = (0.0, 0.75, -0.75, 1.5, -1.5)
_TILE, _TAPS = 4, 3
_SIZE = _TILE + _TAPS - 1


def suits_winograd4(layer: nn.Module, side: int, fewest: int) -> bool:
    """Whether a layer is a plain 3×3 convolution of `fewest` channels or more, with few weights for maps of this side."""
    if not suits_winograd(layer, side, fewest):
        return False
    assert isinstance(layer, nn.Conv2d)
    return layer.in_channels * layer.out_channels <= MOST_CHANNELS * side**2


@cache
def _matrices() -> tuple[Tensor, Tensor, Tensor]:
    """Give Aᵀ (4, 6), G (6, 3) and Bᵀ (6, 6) of eq. 8, in fp64: four results are Aᵀ [(G g) ⊙ (Bᵀ d)].

    The rows of Aᵀ and G are powers of the points. Bᵀ is what makes the results a convolution for all taps g and pixels d.
    A row of Bᵀ is divided by a power of two near its largest number, and that of G multiplied.
    """
    points = torch.tensor(_POINTS, dtype=torch.float64, device="cpu")

    def powers(count: int) -> Tensor:
        infinity = torch.eye(count, dtype=torch.float64, device="cpu")[-1:]
        return torch.cat([points[:, None] ** torch.arange(count, device="cpu"), infinity])  # (6, count)

    after, taps = powers(_TILE), powers(_TAPS)
    conditions = torch.einsum("ki,kj->ijk", after, taps).flatten(0, 1)  # result i, tap j
    wanted = [[float(i + j == pixel) for pixel in range(_SIZE)] for i in range(_TILE) for j in range(_TAPS)]
    before = torch.linalg.pinv(conditions) @ torch.tensor(wanted, dtype=torch.float64, device="cpu")
    scale = before.abs().amax(1, keepdim=True).log2().round().exp2()
    return after.T, taps * scale, before / scale


class Winograd4Conv(nn.Module):
    """An `nn.Conv2d` that `suits_winograd4`, in fp32. Works in channels_last, and returns it.

    Args:
        layer: with its weights.
        strip: how many numbers are transformed at once.
        tiles: the fewest tiles at once.
    """

    adds = True
    weight: Tensor  # (9, C_in, C_out)
    bias: Tensor | None
    taps: Tensor
    before: Tensor
    after: Tensor

    def __init__(self, layer: nn.Conv2d, *, strip: int = STRIP, tiles: int = TILES) -> None:
        super().__init__()
        self._tiles = max(strip // (_SIZE**2 * max(layer.in_channels, layer.out_channels)), tiles)
        self.in_channels, self.out_channels = layer.in_channels, layer.out_channels
        after, taps, before = _matrices()
        self.register_buffer("weight", layer.weight.detach().float().flatten(2).permute(2, 1, 0).contiguous())
        self.register_buffer("bias", None if layer.bias is None else layer.bias.detach().float())
        self.register_buffer("taps", torch.kron(taps, taps).float(), persistent=False)  # (36, 9)
        self.register_buffer("before", before.float(), persistent=False)
        self.register_buffer("after", after.float(), persistent=False)

    def forward(self, x: Tensor, *, shift: Tensor | None = None, plus: Tensor | None = None) -> Tensor:
        """Map (B, C_in, H, W) to (B, C_out, H, W); `shift` (C_out) and `plus`, of that shape, are added."""
        height, width = x.shape[-2:]
        if height % _TILE or width % _TILE:  # pad to whole tiles with the zeros that a convolution sees beyond the edge
            beyond = (0, -width % _TILE, 0, -height % _TILE)
            result = self(F.pad(x, beyond), shift=shift, plus=None if plus is None else F.pad(plus, beyond))
            return result[..., :height, :width]
        x = x.movedim(1, -1)
        down, across = height // _TILE, width // _TILE
        result = x.new_empty(len(x), down, _TILE, across, _TILE, self.out_channels)
        added = None if plus is None else plus.movedim(1, -1).unflatten(2, (across, _TILE)).unflatten(1, (down, _TILE))
        bias = shift if self.bias is None else self.bias if shift is None else self.bias + shift
        weights = [
            torch.mm(taps, self.weight.flatten(1)).view(-1, self.in_channels, self.out_channels)
            for taps in self.taps.split(max(1, WEIGHTS // self.weight[0].numel()))
        ]
        strip = max(1, self._tiles // (len(x) * across))
        padded = x.new_zeros(len(x), min(strip, down) * _TILE + 2, width + 2, self.in_channels)
        for top in range(0, down, strip):
            part = slice(top, min(top + strip, down))
            tiles = self._products(_tiles(_rows(x, part, padded), across), weights)  # (4, 4, B, n, W / 4, C_out)
            if added is None:
                _sum(tiles, bias, result[:, part])
            else:
                _sum(tiles if bias is None else tiles.add_(bias), added[:, part], result[:, part])
        return result.view(len(x), height, width, -1).movedim(-1, 1)

    def _products(self, tiles: Tensor, weights: list[Tensor]) -> Tensor:
        """Map tiles (6, 6, B, n, W / 4, C_in) to the results of each, (4, 4, B, n, W / 4, C_out).

        The weights are (C_in, C_out) for each of 36 products, in parts.
        """
        transformed = _both_axes(self.before, tiles).view(_SIZE**2, -1, self.in_channels)
        products = transformed.new_empty(*transformed.shape[:2], self.out_channels)
        counts = [len(weight) for weight in weights]
        for given, weight, out in zip(transformed.split(counts), weights, products.split(counts), strict=True):
            torch.bmm(given, weight, out=out)
        results = _both_axes(self.after, products)
        return results.view(_TILE, _TILE, *tiles.shape[2:-1], self.out_channels)

    def unpacked(self) -> nn.Conv2d:
        """Build the plain convolution that it was made of."""
        with torch.device("meta"):
            layer = nn.Conv2d(self.in_channels, self.out_channels, 3, padding=1, bias=self.bias is not None)
        weight = self.weight.view(_TAPS, _TAPS, self.in_channels, self.out_channels).permute(3, 2, 0, 1)
        layer.weight = nn.Parameter(weight.contiguous(), requires_grad=False)
        if self.bias is not None:
            layer.bias = nn.Parameter(self.bias.clone(), requires_grad=False)
        return layer


def _rows(x: Tensor, part: slice, padded: Tensor) -> Tensor:
    """Copy the pixels of some rows of tiles, and those around them, into a part of `padded`, (B, 4n + 2, W + 2, C)."""
    first, last = part.start * _TILE - 1, part.stop * _TILE + 1
    inside = slice(max(first, 0), min(last, x.shape[1]))
    rows = padded[:, : last - first]
    if first < 0:
        rows[:, 0].zero_()
    if last > x.shape[1]:
        rows[:, -1].zero_()
    rows[:, inside.start - first : inside.stop - first, 1:-1].copy_(x[:, inside])
    return rows


def _tiles(rows: Tensor, across: int) -> Tensor:
    """Copy (B, 4n + 2, W + 2, C) to overlapping tiles, (6, 6, B, n, W / 4, C)."""
    batch, height, _, channels = rows.shape
    image, row, pixel, _ = rows.stride()
    shape = (_SIZE, _SIZE, batch, height // _TILE, across, channels)
    return rows.as_strided(shape, (row, pixel, image, _TILE * row, _TILE * pixel, 1)).contiguous()


def _both_axes(matrix: Tensor, tiles: Tensor) -> Tensor:
    """Map the rows and the columns of tiles (6, 6, ...) by a matrix (n, 6), to (n, n, the rest)."""
    rows = torch.mm(matrix, tiles.view(_SIZE, -1)).view(len(matrix), _SIZE, -1)
    return torch.bmm(matrix.expand(len(matrix), -1, -1), rows)


def _sum(tiles: Tensor, plus: Tensor | None, out: Tensor) -> None:
    """Put (4, 4, B, n, W / 4, C), with `plus` added, at the places of the pixels, (B, n, 4, W / 4, 4, C)."""
    tiles = tiles.permute(2, 3, 0, 4, 1, 5)
    if plus is None:
        out.copy_(tiles)
    else:
        torch.add(tiles, plus, out=out)

"""Attention on a CPU in bf16, in blocks: faster than torch's own kernel where there are many keys."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

# Attention weights in memory at once, per thread: 2 MB in bf16, which stay in the caches between the two products.
BLOCK = 2**20
# Keys that are sampled for the peak of a row. The distance between them is odd, so that every column of a map is sampled.
SAMPLE = 64
# The products take bf16 from the left in pairs, and give it in lanes.
PAIR, LANES = 2, 16
# exp(x) and sigmoid(x) are the same to bf16 and better where x is below -7; rows are shifted well into that range.
SHIFT = 30.0
SUMS = (math.exp(-60.0), math.exp(-7.0))


def blocked_attention(q: Tensor, k: Tensor, v: Tensor, *, block: int = BLOCK) -> Tensor:
    """Attention of queries (B, heads, N, d), already scaled, over keys and values (B, heads, M, d), all in bf16.

    Softmax divides exp(score - shift) by its sum, and any shift will do that keeps the powers in range: the row's largest
    score over a sample of the keys, and 30. It is subtracted inside the product that gives the scores, where an extra
    column holds -shift in the queries and 1 in the keys. The powers are so small that sigmoid computes them, which oneDNN
    fuses into the product: scores are never rounded to 16 bits, nor written. Extra columns of ones in the values give the
    sums, each of a part of the keys, so that rounding costs them less. Memory grows with N + M, not with N · M.

    Where the sample missed the peak of a row by so much that the powers leave their range, torch computes them all.

    Returns:
        (B, heads, N, d).
    """
    (batch, heads, rows, width), keys = q.shape, k.shape[2]
    queries, padded_keys = (_padded(x, PAIR) for x in (q, k))  # (B · heads, ·, width and more)
    padded_keys[..., width] = 1
    values = _padded(v, LANES)
    spare = values.shape[-1] - width
    values[..., width:] = torch.eye(spare, dtype=v.dtype).repeat(-(-keys // spare), 1)[:keys]

    sample = padded_keys[:, :: keys // SAMPLE | 1].contiguous()
    queries[..., width] = (torch.bmm(sample, queries.mT).amax(1) + SHIFT).neg_()
    height = max(block * torch.get_num_threads() // keys, LANES)
    result = values.new_empty(batch * heads, rows, values.shape[-1])
    for *given, its_keys, its_values in zip(queries, result, padded_keys, values, strict=True):  # head by head
        for part, out in zip(*(each.split(height) for each in given), strict=True):
            powers = torch.ops.mkldnn._linear_pointwise(part, its_keys, None, "sigmoid", [], "")
            torch.mm(powers, its_values, out=out)
    wide = result.float()
    sums = wide[..., width:].sum(-1, keepdim=True)
    least, most = sums.aminmax()
    if not SUMS[0] < float(least) <= float(most) < SUMS[1]:
        return F.scaled_dot_product_attention(q, k, v, scale=1.0)
    attended = q.new_empty(batch, rows, heads, width)  # heads side by side, as what follows wants them
    attended.transpose(1, 2).copy_(wide[..., :width].div_(sums).unflatten(0, (batch, heads)))
    return attended.transpose(1, 2)


def _padded(x: Tensor, multiple: int) -> Tensor:
    """(B, heads, n, d) -> (B · heads, n, more than d), zeros beyond d, up to a multiple."""
    batch, heads, count, width = x.shape
    padded = x.new_empty(batch, heads, count, -(-(width + 1) // multiple) * multiple)
    padded[..., :width] = x
    padded[..., width:] = 0
    return padded.flatten(0, 1)

"""Weights of words, as A1111 applies them."""

from collections.abc import Sequence

import torch
from torch import Tensor


def weighted(context: Tensor, weights: Sequence[float]) -> Tensor:
    """Multiply each token's vector by its weight, then the whole so that its mean is what it was.

    z' = w z · mean(z) / mean(w z), the mean over all vectors of the chunk: what A1111 calls its "Original" emphasis.

    Args:
        context: (T, D), what a text encoder makes of one chunk of tokens.
        weights: T of them; where all are 1 the context stays as it is.

    Raises:
        ValueError: the weighted vectors cancel each other out, so that no factor gives them the mean.
    """
    if all(weight == 1 for weight in weights):
        return context
    before = context.float()
    after = before * torch.tensor(weights, dtype=torch.float32, device=context.device)[:, None]
    factor = before.mean() / after.mean()
    if not factor.isfinite():
        raise ValueError(
            f"the weights of the prompt, {min(weights):g} to {max(weights):g}, leave nothing of it: raise them"
        )
    return (after * factor).to(context.dtype)

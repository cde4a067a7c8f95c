"""Muon: momentum whose matrices are made orthogonal before they are applied.

"Muon: An optimizer for hidden layers in neural networks" (Jordan, 2024), with the scale and the weight decay of "Muon is
Scalable for LLM Training" (2025), which let it share AdamW's learning rate. It learns rare associations, such as that
of one word with one image, in far fewer steps than AdamW alone.
"""

# torch's foreach operations, which torch's own optimizers are made of, have no public names.
# pyright: reportPrivateImportUsage=false

from collections.abc import Iterable

import torch
from torch import Tensor, nn

# Of the quintic iteration that pulls singular values towards 1; the paper's.
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
# The root mean square of AdamW's updates in practice, which Muon's are scaled to.
ADAMW_RMS = 0.2
SMALLEST = 16  # rows or columns: a matrix below that is left to AdamW


def orthogonalise(matrices: Tensor, *, dtype: torch.dtype = torch.float32, iterations: int = 5) -> Tensor:
    """Return nearly the closest orthogonal matrices: the singular values of each become about 1 (0.7 … 1.2).

    Args:
        matrices: one (N, M), or a batch of one shape (B, N, M).
        dtype: what they are multiplied in; fast where the device has it natively.
    """
    a, b, c = COEFFICIENTS
    x = matrices.to(dtype).reshape(-1, *matrices.shape[-2:])
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(iterations):
        gram = x @ x.mT
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, polynomial, x, beta=a)  # a X + (b G + c G²) X, with G = X Xᵀ
    return (x.mT if tall else x).reshape(matrices.shape).to(matrices.dtype)


def matrices(model: nn.Module) -> list[nn.Parameter]:
    """Return the parameters that Muon is for: trainable matrices and convolutions, but no embeddings and nothing narrow."""
    looked_up = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    return [
        parameter
        for parameter in model.parameters()
        if parameter.requires_grad
        and parameter.ndim >= 2
        and id(parameter) not in looked_up
        and min(parameter.shape[0], parameter[0].numel()) >= SMALLEST
    ]


class Muon(torch.optim.Optimizer):
    """Muon for weights of two or more dimensions; a convolution counts as a matrix of one row per output channel.

    Weights of one shape are made orthogonal together, and all else is done for all weights at once.

    Args:
        parameters: see `matrices`.
        lr: as for AdamW; may be a tensor, which a recorded step reads.
        momentum: decay of the gradients' running sum (Nesterov's form).
        weight_decay: decoupled, times `lr` per step.
        dtype: what matrices are multiplied in, see `genpipe.hardware.training_dtype`.
    """

    def __init__(
        self,
        parameters: Iterable[Tensor],
        lr: float = 1e-3,
        *,
        momentum: float = 0.95,
        weight_decay: float = 0.01,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self.dtype = dtype

    @torch.no_grad()
    def step(self) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Change the weights by their gradients; those without one stay as they are."""
        for group in self.param_groups:
            weights = [parameter for parameter in group["params"] if parameter.grad is not None]
            if weights:
                self._step(weights, group["lr"], group["momentum"], group["weight_decay"])

    def _step(self, weights: list[Tensor], lr: float | Tensor, decay: float, weight_decay: float) -> None:
        gradients = [weight.grad for weight in weights if weight.grad is not None]
        for weight in weights:
            if "momentum" not in self.state[weight]:
                self.state[weight]["momentum"] = torch.zeros_like(weight)
        momenta = [self.state[weight]["momentum"] for weight in weights]
        torch._foreach_lerp_(momenta, gradients, 1 - decay)
        updates = torch._foreach_lerp(gradients, momenta, decay)
        torch._foreach_mul_(weights, 1 - lr * weight_decay)
        shapes: dict[tuple[int, ...], list[int]] = {}
        for index, update in enumerate(updates):
            shapes.setdefault(tuple(update.flatten(1).shape), []).append(index)
        for shape, members in shapes.items():
            together = torch.stack([updates[index].flatten(1) for index in members])  # (B, N, M)
            chosen = [weights[index] for index in members]
            # The learning rate may be a tensor, which `alpha` may not.
            steps = orthogonalise(together, dtype=self.dtype).mul_(-lr * ADAMW_RMS * max(shape) ** 0.5)
            torch._foreach_add_(chosen, [each.view(weight.shape) for each, weight in zip(steps, chosen, strict=True)])

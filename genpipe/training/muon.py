"""Muon: momentum whose matrices are made orthogonal before they are applied.

"Muon: An optimizer for hidden layers in neural networks" (Jordan, 2024), with the scale and the weight decay of "Muon is
Scalable for LLM Training" (2025), which let it share AdamW's learning rate. It learns rare associations, such as that
of one word with one picture, in far fewer steps than AdamW alone.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

# Of the quintic iteration that pulls singular values towards 1; the paper's.
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
# The root mean square of AdamW's updates in practice, which Muon's are scaled to.
ADAMW_RMS = 0.2
SMALLEST = 16  # rows or columns: a matrix below that is left to AdamW


def orthogonalise(matrix: Tensor, *, iterations: int = 5) -> Tensor:
    """Nearly the closest orthogonal matrix to `matrix` (N, M): its singular values become about 1 (0.7 … 1.2)."""
    a, b, c = COEFFICIENTS
    x = matrix.bfloat16()
    tall = x.shape[0] > x.shape[1]
    x = x.mT if tall else x
    x = x / (x.norm() + 1e-7)
    for _ in range(iterations):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.mT if tall else x).to(matrix.dtype)


def matrices(model: nn.Module) -> list[nn.Parameter]:
    """The parameters that Muon is for: trainable matrices and convolutions, but no embeddings and nothing narrow."""
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
    """Muon for weights of two or more dimensions; a convolution counts as a matrix of one row an output channel.

    Args:
        parameters: see `matrices`.
        lr: as for AdamW.
        momentum: decay of the gradients' running sum (Nesterov's form).
        weight_decay: decoupled, times `lr` a step.
    """

    def __init__(
        self, parameters: Iterable[Tensor], lr: float = 1e-3, *, momentum: float = 0.95, weight_decay: float = 0.01
    ) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        for group in self.param_groups:
            for parameter in group["params"]:
                gradient = parameter.grad
                if gradient is None:
                    continue
                state = self.state[parameter]
                if "momentum" not in state:
                    state["momentum"] = torch.zeros_like(parameter)
                momentum = state["momentum"].lerp_(gradient, 1 - group["momentum"])
                update = orthogonalise(gradient.lerp(momentum, group["momentum"]).flatten(1))
                scale = ADAMW_RMS * max(update.shape) ** 0.5
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(update.view_as(parameter), alpha=-group["lr"] * scale)

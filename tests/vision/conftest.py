"""What the tests of the classifiers share."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F


@pytest.fixture
def torchvision_models() -> Any:
    """torchvision's networks; skips where it is not installed, or does not fit the torch that is."""
    try:
        from torchvision import models  # pyright: ignore[reportMissingImports]
    except Exception as error:  # noqa: BLE001 - a build for another torch fails in many ways
        pytest.skip(f"torchvision does not import: {error}")
    return models


@pytest.fixture
def shake() -> Callable[[nn.Module], None]:
    """Moves norms, biases and running statistics off their start, so that no two of them can be confused."""

    def shake(model: nn.Module) -> None:
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for name, tensor in model.state_dict().items():
                if name.endswith("running_var"):
                    # Above one, or else 152 layers of random residuals would grow without bound.
                    tensor += 1 + torch.rand(tensor.shape, generator=generator)
                elif tensor.ndim == 1:
                    tensor += 0.1 * torch.randn(tensor.shape, generator=generator)

    return shake


@pytest.fixture
def gradients() -> Callable[[nn.Module, tuple[int, ...]], dict[str, bool]]:
    """For each parameter, whether its gradient after one batch is finite and not all zero."""

    def measure(model: nn.Module, size: tuple[int, ...]) -> dict[str, bool]:
        pixels = torch.randn(size, generator=torch.Generator().manual_seed(2))
        logits = model.train()(pixels)
        F.cross_entropy(logits, torch.arange(len(logits))).backward()
        return {
            name: grad is not None and bool(grad.isfinite().all()) and bool(grad.any())
            for name, parameter in model.named_parameters()
            for grad in (parameter.grad,)
        }

    return measure

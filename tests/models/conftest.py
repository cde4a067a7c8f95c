"""Putting the weights of a reference network into ours."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from genpipe.checkpoints.layout import Layout

Copy = Callable[[nn.Module, nn.Module, Layout], None]


@pytest.fixture
def copy_weights() -> Copy:
    """`copy(theirs, ours, layout)`, after moving every parameter of `theirs` off its start: norms at one, biases at zero."""

    def copy(theirs: nn.Module, ours: nn.Module, layout: Layout) -> None:
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in theirs.parameters():
                scale = 0.3 if parameter.ndim == 1 else float(parameter.std())
                parameter += scale * torch.randn(parameter.shape, generator=generator)
        renamed = {
            layout.ours(key): tensor for key, tensor in theirs.state_dict().items() if key not in layout.harmless
        }
        ours.load_state_dict({str(key): tensor for key, tensor in renamed.items()}, strict=True)
        ours.eval()
        theirs.eval()

    return copy

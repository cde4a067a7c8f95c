"""Putting the weights of a reference network into ours, and comparing what weights do not show."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from genpipe.checkpoints.layout import Layout
from genpipe.models.cpu.packed import can_pack

# For tests of forms that the processor, or this build of torch, may lack.
packs_fp32 = pytest.mark.skipif(not can_pack(torch.float32), reason="this torch lacks oneDNN or its private operators")
packs_bf16 = pytest.mark.skipif(not can_pack(torch.bfloat16), reason="oneDNN does not take bf16 on this processor")
BOTH = [pytest.param(torch.float32, marks=packs_fp32), pytest.param(torch.bfloat16, marks=packs_bf16)]

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


@pytest.fixture
def same_norms() -> Callable[[nn.Module, nn.Module, Layout], None]:
    """`same_norms(theirs, ours, layout)`: a wrong epsilon moves the output of a random network too little to be seen."""

    def norms(network: nn.Module, name_of: Callable[[str], str | None]) -> dict[str | None, tuple[float, int | None]]:
        return {
            name_of(f"{name}.weight"): (module.eps, getattr(module, "num_groups", None))
            for name, module in network.named_modules()
            if isinstance(module, nn.GroupNorm | nn.LayerNorm)
        }

    def check(theirs: nn.Module, ours: nn.Module, layout: Layout) -> None:
        assert norms(ours, str) == norms(theirs, layout.ours)

    return check

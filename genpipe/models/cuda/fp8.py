"""Linear layers that multiply in fp8 (e4m3), with a scale for each row of what goes in and each row of the weight."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

# The first compute capability whose tensor cores multiply fp8 (Ada; then Hopper).
CAPABILITY = (8, 9)
_LARGEST = 448.0  # number of e4m3


class Fp8Linear(nn.Module):
    """An `nn.Linear` that is given rows in fp8, as `kernels.layer_norm_fp8` gives them.

    Its weight (C_out, C_in) is rounded to fp8 once; sums are in fp32, and rounded to bf16.

    Args:
        layer: whose weight and bias it takes over.
    """

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        weight = layer.weight.detach().float()
        scales = weight.abs().amax(1, keepdim=True).clamp_(min=1e-12) / _LARGEST  # (C_out, 1)
        self.weight: Tensor
        self.scales: Tensor
        self.register_buffer("weight", (weight / scales).to(torch.float8_e4m3fn))
        self.register_buffer("scales", scales.T.contiguous())
        self.bias = layer.bias

    def forward(self, values: Tensor, scales: Tensor) -> Tensor:
        """Map rows (..., C_in) in fp8 and their scales (rows, 1) to (..., C_out) in bf16."""
        product = torch.ops.aten._scaled_mm(
            values.flatten(0, -2),
            self.weight.T,
            scale_a=scales,
            scale_b=self.scales,
            bias=self.bias,
            out_dtype=torch.bfloat16,
            use_fast_accum=True,
        )
        return product.unflatten(0, values.shape[:-1])

    def unpacked(self) -> nn.Linear:
        """Build the plain layer of the rounded weight, in fp32."""
        with torch.device("meta"):
            layer = nn.Linear(self.weight.shape[1], self.weight.shape[0], bias=self.bias is not None)
        layer.weight = nn.Parameter(self.weight.float() * self.scales.T, requires_grad=False)
        if self.bias is not None:
            layer.bias = nn.Parameter(self.bias.detach().float(), requires_grad=False)
        return layer


def suits_fp8(layer: nn.Module) -> bool:
    """Whether a layer can multiply in fp8, by its sides, which must be multiples of 16."""
    return type(layer) is nn.Linear and layer.in_features % 16 == 0 and layer.out_features % 16 == 0


def check_fp8(
    device: torch.device,
    dtype: torch.dtype,
    *,
    capability: tuple[int, int] | None,
    kernels: bool,
    excluded: Sequence[str] = (),
) -> None:
    """Raise ValueError unless fp8 runs here.

    Args:
        device, dtype: where and in what the networks run.
        excluded: options that are given too, of those that fp8 does not go with.
        capability: the device's; None for one that is not NVIDIA's.
        kernels: whether Triton compiles kernels for it.
    """
    advice = "leave fp8 out (--no-fp8)"
    if capability is None:
        raise ValueError(f"fp8 runs on NVIDIA's GPUs alone, not on {device}: {advice}")
    if capability < CAPABILITY:
        has, needs = (".".join(map(str, one)) for one in (capability, CAPABILITY))
        raise ValueError(
            f"fp8 needs a GPU of compute capability {needs} (Ada, Hopper) or higher, and {device} has {has}: {advice}"
        )
    if dtype != torch.bfloat16:
        raise ValueError(f"fp8 goes with bf16 alone, not with {str(dtype).removeprefix('torch.')}: use --dtype bf16")
    if excluded:
        raise ValueError(f"fp8 does not go with {' or '.join(excluded)}: leave out one of them (--no-fp8)")
    if not kernels:
        raise ValueError(f"fp8 needs Triton, which is missing here or compiles nothing: install it, or {advice}")

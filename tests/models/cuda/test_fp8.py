"""Products in fp8: what they compute, what they lose, and where they are refused."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from genpipe.blocks import unpacked_copy
from genpipe.models.cuda.fp8 import Fp8Linear, check_fp8, suits_fp8

CUDA = torch.device("cuda")


def multiplies_fp8() -> bool:
    """Whether the GPU does, or without one torch on a CPU: 2.11 has no scales of rows there."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_capability() >= (8, 9)
    eight, ones = torch.ones(16, 16).to(torch.float8_e4m3fn), torch.ones(16, 1)
    try:
        torch.ops.aten._scaled_mm(eight, eight.t(), scale_a=ones, scale_b=ones.t(), out_dtype=torch.bfloat16)
    except RuntimeError:
        return False
    return True


runs = pytest.mark.skipif(not multiplies_fp8(), reason="this GPU or this torch has no fp8")


@runs
@torch.inference_mode()
@pytest.mark.parametrize("bias", [False, True])
def test_a_layer_in_fp8_multiplies_what_was_rounded(bias: bool, device: torch.device) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(64, 96, bias=bias)
    layer.weight[3] *= 1000  # rows have scales of their own
    rows = torch.randn(2, 24, 64) * torch.tensor([0.01, 1.0]).view(2, 1, 1)
    scales = rows.abs().amax(-1).view(-1, 1) / 448
    values = (rows.flatten(0, 1) / scales).to(torch.float8_e4m3fn).view(2, 24, 64)
    own = Fp8Linear(layer.to(device, torch.bfloat16))
    output = own(values.to(device), scales.to(device)).float().cpu()
    rounded = scales.view(2, 24, 1) * values.float()
    plain = unpacked_copy(own).cpu()
    assert isinstance(plain, nn.Linear) and plain.weight.dtype == torch.float32
    expected = plain(rounded)
    assert output.shape == (2, 24, 96) and (output - expected).norm() <= 0.004 * expected.norm()  # rounded to bf16
    exact = F.linear(rows, layer.weight.float().cpu(), None if layer.bias is None else layer.bias.float().cpu())
    for row in (slice(3), slice(3, 4), slice(4, None)):
        assert 0.01 < (output - exact)[..., row].norm() / exact[..., row].norm() < 0.05


def test_only_layers_whose_sides_are_multiples_of_16_suit() -> None:
    assert suits_fp8(nn.Linear(320, 960)) and not suits_fp8(nn.Linear(24, 96)) and not suits_fp8(nn.Linear(96, 24))
    assert not suits_fp8(nn.Conv2d(64, 64, 1))


@pytest.mark.parametrize(
    ("device", "dtype", "capability", "kernels", "says"),
    [
        ("cpu", torch.bfloat16, None, True, "fp8 runs on NVIDIA's GPUs alone, not on cpu: leave fp8 out"),
        ("cuda", torch.bfloat16, (8, 0), True, "needs a GPU of compute capability 8.9 .* and cuda has 8.0: leave"),
        ("cuda", torch.float16, (9, 0), True, "goes with bf16 alone, not with float16: use --dtype bf16"),
        ("cuda", torch.bfloat16, (9, 0), False, "needs Triton"),
    ],
)
def test_where_fp8_cannot_run_it_gets_one_clear_line(
    device: str, dtype: torch.dtype, capability: tuple[int, int] | None, kernels: bool, says: str
) -> None:
    with pytest.raises(ValueError, match=says) as caught:
        check_fp8(torch.device(device), dtype, capability=capability, kernels=kernels)
    assert "\n" not in str(caught.value)


def test_what_fp8_does_not_go_with_is_named() -> None:
    with pytest.raises(ValueError, match=r"^fp8 does not go with compile or weights: leave out one of them"):
        check_fp8(CUDA, torch.bfloat16, capability=(9, 0), kernels=True, excluded=["compile", "weights"])


def test_where_fp8_runs_nothing_is_said() -> None:
    check_fp8(CUDA, torch.bfloat16, capability=(9, 0), kernels=True)

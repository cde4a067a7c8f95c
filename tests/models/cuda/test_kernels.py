"""Each kernel computes what torch computes in fp32, rounded once: on a CUDA device, else in Triton's interpreter."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

pytest.importorskip("triton")
from genpipe.models.cuda import kernels
from genpipe.models.cuda.group_norm import group_norm

DTYPES = [torch.float32, torch.bfloat16]
# What rounding moves a number of 1 by, at most.
ROUNDING = {torch.float32: 0.0, torch.bfloat16: 2**-8, torch.float16: 2**-11}


def normal(*shape: int, seed: int = 0, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(device, dtype)


def agree(output: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    assert output.dtype == dtype and output.shape == expected.shape
    error = (output.float() - expected).abs() / expected.abs().clamp(min=1.0)
    bound = ROUNDING[dtype] if output.is_cuda else 2 * ROUNDING[dtype]  # the interpreter does not round but cut
    assert float(error.max()) <= bound + 2e-5 and float(expected.std()) > 0.1


@pytest.mark.parametrize(
    ("shape", "groups", "dtype"),
    [
        ((2, 320, 7, 9), 32, torch.bfloat16),  # ten channels in a group, as Stable Diffusion's first level has
        ((1, 2560, 3, 2), 32, torch.float16),
        ((3, 24, 1, 1), 8, torch.float32),
        ((2, 64, 9, 8), 4, torch.float32),
        ((1, 200, 3, 5), 1, torch.float32),
        ((2, 96, 2, 3), 96, torch.float32),
    ],
)
@pytest.mark.parametrize("adding", [False, True])
def test_group_norm(
    shape: tuple[int, ...], groups: int, dtype: torch.dtype, adding: bool, device: torch.device
) -> None:
    batch, channels = shape[:2]
    x = normal(*shape, dtype=dtype, device=device).contiguous(memory_format=torch.channels_last)
    weight, bias, before = (normal(channels, seed=k, dtype=dtype, device=device) for k in (1, 2, 3))
    wide = normal(batch, 3 * channels, seed=4, dtype=dtype, device=device)
    # Views, as of a table: a row for all images, or one per image.
    for shift in (wide[:1, channels : 2 * channels], wide[:, channels : 2 * channels]) if adding else (None,):
        given = before if adding else None
        output = group_norm(x, groups, weight, bias, 1e-5, silu=adding, before=given, shift=shift)
        whole = x.float()
        for more in (given, shift):
            whole = whole if more is None else whole + more.float().view(-1, channels, 1, 1)
        expected = F.group_norm(whole, groups, weight.float(), bias.float(), 1e-5)
        agree(output, F.silu(expected) if adding else expected, dtype)
        assert output.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.filterwarnings("ignore:overflow encountered in exp")  # of a SiLU that is not used
def test_group_norm_of_values_far_from_zero(device: torch.device) -> None:
    """Squares that are summed as they are would lose the variance."""
    x = normal(2, 64, 20, 20, dtype=torch.float32, device=device) + 3000
    one, zero = torch.ones(64, device=device), torch.zeros(64, device=device)
    expected = F.group_norm(x.double(), 8, one.double(), zero.double(), 1e-5)
    assert (group_norm(x, 8, one, zero, 1e-5) - expected).abs().max() <= 1e-3


def test_group_norm_in_many_parts(device: torch.device) -> None:
    x = normal(1, 8, 50, 53, dtype=torch.float32, device=device)
    weight, bias = (normal(8, seed=k, dtype=torch.float32, device=device) for k in (1, 2))
    agree(group_norm(x, 2, weight, bias, 1e-5), F.group_norm(x, 2, weight, bias, 1e-5), torch.float32)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(2, 33, 320), (1, 5, 1280), (3, 7, 24)])
def test_layer_norm(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
    x = normal(*shape, dtype=dtype, device=device)
    weight, bias, before = (normal(shape[-1], seed=k, dtype=dtype, device=device) for k in (1, 2, 3))
    expected = F.layer_norm((x + 0.0).float() + before.float(), shape[-1:], weight.float(), bias.float(), 1e-5)
    agree(kernels.layer_norm(x, weight, bias, 1e-5, before=before), expected, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(2, 33, 320), (3, 7, 24)])
def test_layer_norm_in_fp8(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
    x = normal(*shape, dtype=dtype, device=device)
    weight, bias, before = (normal(shape[-1], seed=k, dtype=dtype, device=device) for k in (1, 2, 3))
    expected = F.layer_norm(x.float() + before.float(), shape[-1:], weight.float(), bias.float(), 1e-5).flatten(0, -2)
    values, scales = kernels.layer_norm_fp8(x, weight, bias, 1e-5, before=before)
    assert values.shape == x.shape and scales.shape == (len(expected), 1)
    largest = expected.abs().amax(1, keepdim=True)
    assert (448 * scales - largest).abs().max() <= 1e-5 * largest.max()
    # Three bits follow the first: rounding moves a number by a sixteenth of itself, the least by half of 2⁻⁹.
    error = (scales * values.float().flatten(0, -2) - expected).abs()
    right = (error <= expected.abs() / 16 + 2**-10 * scales + 1e-5).float().mean()
    assert float(right) == 1 if x.is_cuda else right > 0.9  # where rounding carries, the interpreter loses the carry


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(2, 33, 640), (1, 5, 48)])
def test_gated_gelu(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
    x = normal(*shape, dtype=dtype, device=device)
    value, gate = x.float().chunk(2, dim=-1)
    agree(kernels.gated_gelu(x), value * F.gelu(gate), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(2, 320, 7, 5), (1, 24, 3, 3)])
def test_add(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
    h, x = (normal(*shape, seed=k, dtype=dtype, device=device) for k in (0, 1))
    h, x = (one.contiguous(memory_format=torch.channels_last) for one in (h, x))
    bias = normal(shape[1], seed=2, dtype=dtype, device=device)
    expected = h.float() + x.float() + bias.float()[:, None, None]
    output = kernels.add(h, x, bias)
    agree(output, expected, dtype)
    assert output is h

"""Convolutions with fewer multiplications compute what direct ones compute."""

import copy

import pytest
import torch
from torch import nn

from genpipe.blocks import ResidualBlock, Upsample, unpacked_copy
from genpipe.models.cpu.forms import PACKABLE, Forms
from genpipe.models.cpu.winograd import DifferenceUpsample, WinogradConv, suits_difference, suits_winograd
from genpipe.models.prepare import prepare
from genpipe.models.vae import VAE, VAEConfig
from tests.models.conftest import packs_bf16, packs_fp32

pytestmark = packs_fp32


def conv(dtype: torch.dtype = torch.float32, *, bias: bool = True) -> nn.Conv2d:
    torch.manual_seed(0)
    return nn.Conv2d(24, 40, 3, padding=1, bias=bias).to(dtype).requires_grad_(False)


@torch.inference_mode()
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("size", [(8, 12), (2, 2), (7, 10), (6, 5), (1, 1), (9, 3)])
def test_it_computes_the_convolution_at_any_size(size: tuple[int, int], bias: bool) -> None:
    layer = conv(bias=bias)
    x, plus, shift = torch.randn(2, 24, *size), torch.randn(2, 40, *size), torch.randn(40)
    fast = WinogradConv(layer, torch.float32)
    expected = copy.deepcopy(layer).double()(x.double())
    assert fast(x).shape == expected.shape
    assert (fast(x) - expected).abs().max() <= 5e-6
    assert (fast(x, plus=plus) - (expected + plus)).abs().max() <= 5e-6
    total = expected + plus + shift[:, None, None]
    assert (fast(x, shift=shift, plus=plus) - total).abs().max() <= 5e-6


@torch.inference_mode()
def test_layout_and_batch_make_no_difference() -> None:
    fast, x = WinogradConv(conv(), torch.float32), torch.randn(3, 24, 8, 12)
    result = fast(x)
    assert result.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(fast(x.contiguous(memory_format=torch.channels_last)), result)
    assert torch.allclose(fast(x[1:2]), result[1:2], atol=1e-6)


@torch.inference_mode()
def test_strips_make_no_difference() -> None:
    x, plus = torch.randn(2, 24, 14, 6), torch.randn(2, 40, 14, 6)
    whole = WinogradConv(conv(), torch.float32)(x, plus=plus)
    fast = WinogradConv(conv(), torch.float32, strip=3 * 4 * 4 * 2 * 3 * 24)  # of three pairs of rows
    pairs: list[int] = []
    fast.products[0][0].register_forward_pre_hook(lambda layer, given: pairs.append(given[0].shape[1]))  # type: ignore[index, union-attr]
    assert torch.allclose(fast(x, plus=plus), whole, atol=1e-6) and pairs == [3, 3, 1]


@packs_bf16
@torch.inference_mode()
def test_in_bf16_it_rounds_less_than_three_times_as_much() -> None:
    exact = nn.Conv2d(320, 320, 3, padding=1).double().requires_grad_(False)
    x = nn.functional.silu(torch.randn(2, 320, 16, 16)).bfloat16()
    expected = exact(x.double())
    fast, plain = WinogradConv(exact, torch.bfloat16), copy.deepcopy(exact).bfloat16()
    ours, theirs = (float((layer(x) - expected).norm() / expected.norm()) for layer in (fast, plain))
    assert theirs < ours < 3 * theirs < 0.01


@torch.inference_mode()
def test_a_copy_is_the_plain_convolution() -> None:
    layer = conv()
    copied = unpacked_copy(nn.Sequential(WinogradConv(layer, torch.float32)))[0]
    assert type(copied) is nn.Conv2d
    found, expected = copied.state_dict(), layer.state_dict()
    assert torch.equal(found.pop("bias"), expected.pop("bias"))
    assert found.keys() == expected.keys() and torch.allclose(found["weight"], expected["weight"], atol=1e-6)


def test_which_convolutions_it_suits() -> None:
    assert suits_winograd(conv(), 16, 24) and suits_winograd(conv(bias=False), 64, 24)
    assert not suits_winograd(conv(), 16, 25) and not suits_winograd(conv(), 8, 24)
    others = (
        nn.Conv2d(24, 24, 3, padding=1, stride=2),
        nn.Conv2d(24, 24, 3),
        nn.Conv2d(24, 24, 3, padding=1, groups=2),
        nn.Conv2d(24, 24, 3, padding=1, padding_mode="circular"),
        nn.Conv2d(24, 24, 1),
        nn.Linear(24, 24),
    )
    assert not any(suits_winograd(layer, 16, 24) for layer in others)


@torch.inference_mode()
@pytest.mark.parametrize("widths", [(32, 64), (64, 64)], ids=["projected", "as it is"])
def test_a_prepared_residual_block_uses_it(widths: tuple[int, int]) -> None:
    torch.manual_seed(0)
    exact = ResidualBlock(*widths, embedding_channels=48).requires_grad_(False)
    forms = Forms(packed=PACKABLE, winograd=True, winograd_from=32)
    fast = prepare(nn.Sequential(copy.deepcopy(exact)), device=torch.device("cpu"), dtype=torch.float32, forms=forms)[0]
    assert type(fast.conv1) is type(fast.conv2) is WinogradConv
    x, shifts = torch.randn(3, widths[0], 12, 8), torch.randn(3, widths[1])
    for shift in (shifts[:1], shifts):
        assert (fast(x, shift) - exact.double()(x.double(), shift.double())).abs().max() <= 1e-5


def upsample(channels: int = 24) -> Upsample:
    torch.manual_seed(0)
    return Upsample(channels).requires_grad_(False)


@torch.inference_mode()
@pytest.mark.parametrize(
    ("height", "width", "cut"),
    [(4, 6, (0, 0)), (5, 3, (0, 0)), (1, 1, (0, 0)), (4, 6, (1, 0)), (4, 6, (0, 1)), (3, 5, (1, 1)), (1, 1, (1, 1))],
)
def test_upsampling_by_differences_is_upsampling_and_convolution(height: int, width: int, cut: tuple[int, int]) -> None:
    layer, x = upsample(), torch.randn(2, 24, height, width)
    size = None if cut == (0, 0) else (2 * height - cut[0], 2 * width - cut[1])
    fast, expected = DifferenceUpsample(layer, torch.float32), copy.deepcopy(layer).double()(x.double(), size)
    assert fast(x, size).shape == expected.shape
    assert (fast(x, size) - expected).abs().max() <= 5e-6
    last = fast(x.contiguous(memory_format=torch.channels_last), size)
    assert torch.allclose(last, fast(x, size), atol=1e-6) and last.is_contiguous(memory_format=torch.channels_last)


@torch.inference_mode()
@pytest.mark.parametrize("rows", [1, 2, 3, 7])
def test_strips_make_no_difference_to_upsampling(rows: int) -> None:
    x = torch.randn(2, 24, 7, 6)
    fast = DifferenceUpsample(upsample(), torch.float32, strip=rows * 2 * 6 * 24)
    for size in (None, (13, 11)):
        assert torch.allclose(fast(x, size), DifferenceUpsample(upsample(), torch.float32)(x, size), atol=1e-6)


@packs_bf16
@torch.inference_mode()
def test_upsampling_by_differences_rounds_little_more_than_twice_as_much_in_bf16() -> None:
    exact = upsample(320).double()
    x = torch.randn(2, 320, 8, 8).bfloat16()
    expected = exact(x.double())
    fast, plain = DifferenceUpsample(exact, torch.bfloat16), copy.deepcopy(exact).bfloat16()
    ours, theirs = (float((layer(x) - expected).norm() / expected.norm()) for layer in (fast, plain))
    assert theirs < ours < 2.5 * theirs < 0.01


@torch.inference_mode()
def test_a_copy_of_upsampling_by_differences_is_the_plain_one() -> None:
    layer = upsample()
    copied = unpacked_copy(nn.Sequential(DifferenceUpsample(layer, torch.float32)))[0]
    assert type(copied) is Upsample
    found, expected = copied.state_dict(), layer.state_dict()
    assert torch.equal(found.pop("conv.bias"), expected.pop("conv.bias"))
    assert found.keys() == expected.keys() and torch.allclose(found["conv.weight"], expected["conv.weight"], atol=1e-6)


@torch.inference_mode()
def test_a_prepared_autoencoder_may_be_narrower() -> None:
    """It computes the same, and a U-Net's limit is not its."""
    torch.manual_seed(0)
    exact = VAE(VAEConfig(channels=(32, 32, 64), norm_groups=8, sample_size=64)).requires_grad_(False)
    forms = Forms(packed=PACKABLE, phases=True, winograd=True, winograd_from_in_vae=32, differences_from=64)
    fast = prepare(copy.deepcopy(exact), device=torch.device("cpu"), dtype=torch.float32, forms=forms)
    kinds = [type(module).__name__ for module in fast.decoder.modules()]
    assert kinds.count("DifferenceUpsample") == kinds.count("PhaseUpsample") == 1
    assert kinds.count("WinogradConv") == 2 * (2 + 3 + 3 + 3)
    latents = torch.randn(2, 4, 16, 12)
    assert (fast.decode(latents) - exact.double().decode(latents.double())).abs().max() <= 1e-5


def test_which_upsampling_it_suits() -> None:
    assert suits_difference(upsample(24), 24) and not suits_difference(upsample(24), 25)

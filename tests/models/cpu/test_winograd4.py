"""Convolutions in tiles of 4 × 4 compute what direct ones compute."""

import copy

import pytest
import torch
from torch import Tensor, nn

from genpipe.blocks import ResidualBlock, unpacked_copy
from genpipe.models.cpu.forms import Forms
from genpipe.models.cpu.winograd4 import Winograd4Conv, suits_winograd4
from genpipe.models.prepare import prepare
from genpipe.models.vae import VAE, VAEConfig


def conv(*, bias: bool = True) -> nn.Conv2d:
    torch.manual_seed(0)
    return nn.Conv2d(24, 40, 3, padding=1, bias=bias).requires_grad_(False)


@torch.inference_mode()
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("size", [(8, 12), (4, 4), (7, 10), (6, 5), (1, 1), (9, 3), (1, 17)])
def test_it_computes_the_convolution_at_any_size(size: tuple[int, int], bias: bool) -> None:
    layer = conv(bias=bias)
    x, plus, shift = torch.randn(2, 24, *size), torch.randn(2, 40, *size), torch.randn(40)
    fast = Winograd4Conv(layer)
    expected = copy.deepcopy(layer).double()(x.double())
    shifted = expected + shift[:, None, None]
    for result, wanted in (
        (fast(x), expected),
        (fast(x, plus=plus), expected + plus),
        (fast(x, shift=shift), shifted),
        (fast(x, shift=shift, plus=plus), shifted + plus),
    ):
        assert result.shape == wanted.shape
        assert (result - wanted).abs().max() <= 1e-5


@torch.inference_mode()
def test_layout_and_batch_make_no_difference() -> None:
    fast, x = Winograd4Conv(conv()), torch.randn(3, 24, 8, 12)
    result = fast(x)
    assert result.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(fast(x.contiguous(memory_format=torch.channels_last)), result)
    assert torch.allclose(fast(x[1:2]), result[1:2], atol=1e-5)


@torch.inference_mode()
@pytest.mark.parametrize("strip", [1, 2 * 2 * 36 * 40 * 2, 10**9], ids=["a row", "two rows", "all"])
def test_strips_make_no_difference(strip: int) -> None:
    x, plus = torch.randn(2, 24, 28, 8), torch.randn(2, 40, 28, 8)
    whole = Winograd4Conv(conv())(x, plus=plus)
    assert torch.allclose(Winograd4Conv(conv(), strip=strip, tiles=1)(x, plus=plus), whole, atol=1e-5)


@torch.inference_mode()
@pytest.mark.parametrize("channels", [512, 320, 128], ids=["weights in two parts", "denoiser", "autoencoder"])
def test_it_rounds_less_than_eight_times_as_much(channels: int) -> None:
    """Measured: 5 times, 1e-6, where 1/255 is 4e-3."""
    torch.manual_seed(0)
    layer = nn.Conv2d(channels, channels, 3, padding=1).requires_grad_(False)
    x = nn.functional.silu(torch.randn(1, channels, 32, 32))
    expected = copy.deepcopy(layer).double()(x.double())

    def error(result: Tensor) -> float:
        return float((result - expected).norm() / expected.norm())

    assert error(Winograd4Conv(layer)(x)) < min(8 * error(layer(x)), 2e-6)


@torch.inference_mode()
def test_a_copy_is_the_plain_convolution() -> None:
    layer = conv()
    copied = unpacked_copy(nn.Sequential(Winograd4Conv(layer)))[0]
    assert type(copied) is nn.Conv2d
    found, expected = copied.state_dict(), layer.state_dict()
    assert torch.equal(found.pop("bias"), expected.pop("bias"))
    assert found.keys() == expected.keys() and torch.equal(found["weight"], expected["weight"])


def test_which_convolutions_it_suits() -> None:
    assert suits_winograd4(conv(), 32, 24) and suits_winograd4(conv(bias=False), 32, 24)
    assert not suits_winograd4(conv(), 32, 25)
    with torch.device("meta"):
        wide, others = (
            nn.Conv2d(960, 960, 3, padding=1),
            (nn.Conv2d(64, 64, 3, padding=1, stride=2), nn.Conv2d(64, 64, 3, padding=1, padding_mode="circular")),
        )
    assert suits_winograd4(wide, 64, 24) and not suits_winograd4(wide, 32, 24)  # its weights are many for a small map
    assert not any(suits_winograd4(layer, 64, 24) for layer in (*others, nn.Linear(64, 64)))


@torch.inference_mode()
def test_a_prepared_autoencoder_uses_it_where_the_decoder_is_large() -> None:
    torch.manual_seed(0)
    exact = VAE(VAEConfig(channels=(32, 32, 64), norm_groups=8, sample_size=64)).requires_grad_(False)
    forms = Forms(winograd4=32, winograd4_side=32)
    fast = prepare(copy.deepcopy(exact), device=torch.device("cpu"), dtype=torch.float32, forms=forms)
    kinds = [[type(module) for module in part.modules()].count(Winograd4Conv) for part in (fast.encoder, fast.decoder)]
    others = [module for module in fast.decoder.modules() if type(module) is nn.Conv2d and module.kernel_size == (3, 3)]
    assert others and all(layer.weight.is_contiguous(memory_format=torch.channels_last) for layer in others)
    assert kinds == [0, 2 * (3 + 3) + 1]  # of the two larger levels, and one upsampling between
    latents, pixels = torch.randn(2, 4, 16, 12), torch.randn(1, 3, 64, 40)
    decoded, (mean, _) = fast.decode(latents), fast.encode(pixels)
    exact.double()
    assert (decoded - exact.decode(latents.double())).abs().max() <= 1e-5
    assert (mean - exact.encode(pixels.double())[0]).abs().max() <= 1e-5


@torch.inference_mode()
def test_a_prepared_residual_block_uses_it_in_fp32_alone() -> None:
    torch.manual_seed(0)
    exact = ResidualBlock(32, 64, embedding_channels=48).requires_grad_(False)
    forms = Forms(winograd4=32)
    for dtype, expected in ((torch.float32, Winograd4Conv), (torch.bfloat16, nn.Conv2d)):
        block = nn.Sequential(copy.deepcopy(exact))
        fast = prepare(block, device=torch.device("cpu"), dtype=dtype, forms=forms)[0]
        assert type(fast.conv1) is type(fast.conv2) is expected
        x, shifts = torch.randn(3, 32, 12, 8), torch.randn(3, 64)
        for shift in (shifts[:1], shifts) if dtype == torch.float32 else ():
            assert (fast(x, shift) - exact.double()(x.double(), shift.double())).abs().max() <= 1e-5
            exact.float()

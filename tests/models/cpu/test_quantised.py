"""Quantised layers compute the exact products of what they round to, each picture on its own, and come apart again."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from genpipe.blocks import ResidualBlock, unpacked_copy
from genpipe.hardware import multiplies_int8
from genpipe.models.attention import GatedFeedForward
from genpipe.models.conditioning import Conditioning
from genpipe.models.cpu import quantised
from genpipe.models.cpu.forms import PACKABLE, Forms
from genpipe.models.cpu.quantised import (
    QuantisedConv,
    QuantisedGatedFeedForward,
    QuantisedLinear,
    can_quantise,
    quantise,
    to_uint8,
    weight_to_int8,
    worth_quantising,
)
from genpipe.models.denoiser import UNetDenoiser
from genpipe.models.finite import float32_copy, nonfinite_weights
from genpipe.models.prepare import prepare
from genpipe.models.unet import UNet
from genpipe.models.unet_config import UNetConfig

NATIVE = multiplies_int8() and can_quantise()
pytestmark = pytest.mark.skipif(not NATIVE, reason="this torch or this CPU lacks the int8 operators")


LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(96, 80), (3, 7, 96)),
    "linear without bias": (lambda: nn.Linear(96, 80, bias=False), (3, 7, 96)),
    "convolution": (lambda: nn.Conv2d(64, 80, 3, padding=1), (3, 64, 9, 6)),
    "convolution of pixels": (lambda: nn.Conv2d(96, 64, 1), (3, 96, 5, 5)),
    "convolution without bias": (lambda: nn.Conv2d(64, 80, 3, padding=1, bias=False), (2, 64, 6, 5)),
    "strided convolution": (lambda: nn.Conv2d(64, 80, 3, stride=2, padding=1), (2, 64, 9, 6)),
    "unpadded convolution": (lambda: nn.Conv2d(64, 80, 3, stride=2), (1, 64, 9, 7)),
}


def steps(shape: tuple[int, ...]) -> Tensor:
    """Whole numbers -127 … 127 times a power of two, another for each of the first axis: int8 can hold them."""
    whole = torch.randint(-127, 128, shape).float()
    whole.flatten(1)[:, 0] = 127
    return whole * 2.0 ** torch.randint(-9, -3, (shape[0], *[1] * (len(shape) - 1)))


def built(name: str) -> tuple[nn.Module, Tensor]:
    """A layer in fp32 and pictures for it, of numbers that int8 can hold."""
    torch.manual_seed(0)
    build, shape = LAYERS[name]
    layer = build().requires_grad_(False)
    layer.weight.copy_(steps(layer.weight.shape))  # type: ignore[union-attr, operator, arg-type]
    return layer, steps(shape).bfloat16()


def product(layer: nn.Module, x: Tensor) -> Tensor:
    """The layer's own, in double, but for its bias, which is in bf16."""
    exact = copy.deepcopy(layer).bfloat16() if layer.bias is None else copy.deepcopy(layer)
    exact = exact.double()
    if layer.bias is not None:
        exact.bias.copy_(layer.bias.bfloat16())  # type: ignore[union-attr, operator]
    return exact(x.double())


def assert_rounded_once(result: Tensor, expected: Tensor) -> None:
    assert result.dtype == torch.bfloat16 and result.shape == expected.shape
    allowed = expected.abs() * 2**-8 + 1e-6 * expected.flatten(1).abs().amax(1).view(-1, *[1] * (expected.ndim - 1))
    assert ((result - expected).abs() <= allowed).all()


@torch.inference_mode()
@pytest.mark.parametrize("name", LAYERS)
def test_what_int8_can_hold_is_multiplied_exactly(name: str) -> None:
    layer, x = built(name)
    assert_rounded_once(quantise(layer)(x), product(layer, x))


@torch.inference_mode()
@pytest.mark.parametrize("name", LAYERS)
def test_in_fp32_nothing_is_rounded_but_the_sum(name: str) -> None:
    layer, x = built(name)
    small, x = quantise(layer, dtype=torch.float32), x.float()
    expected = copy.deepcopy(layer).double()(x.double())
    result = small(x)
    assert result.dtype == torch.float32 and (result - expected).abs().max() <= 1e-6 * expected.abs().max()
    copied = unpacked_copy(nn.Sequential(small))[0]
    assert all(torch.equal(tensor, layer.state_dict()[key]) for key, tensor in copied.state_dict().items())
    if isinstance(small, QuantisedConv):
        shift, plus = torch.randn(len(layer.weight)), torch.randn(expected.shape)  # type: ignore[arg-type]
        added = small(x, shift=shift, plus=plus) - (expected + shift[:, None, None] + plus)
        assert added.abs().max() <= 1e-6 * expected.abs().max()


@torch.inference_mode()
def test_blocks_in_fp32_are_close_to_the_plain_ones() -> None:
    torch.manual_seed(0)
    layer, x = GatedFeedForward(64).requires_grad_(False), torch.randn(3, 9, 64)
    forms = Forms(packed=PACKABLE, winograd4=64, patches=64, int8=True, int8_from=64)
    block = nn.Sequential(ResidualBlock(64, 64).requires_grad_(False))
    maps, fast = torch.randn(2, 64, 32, 32), []
    for exact in (nn.Sequential(layer), block):
        fast.append(prepare(copy.deepcopy(exact), device=torch.device("cpu"), dtype=torch.float32, forms=forms)[0])
    assert type(fast[0]) is QuantisedGatedFeedForward and type(fast[1].conv2) is QuantisedConv
    for small, exact, given in ((fast[0], layer, x), (fast[1], block[0], maps)):
        result, expected = small(given), copy.deepcopy(exact).double()(given.double())
        assert result.dtype == torch.float32 and 0.001 < (result - expected).norm() / expected.norm() <= 0.03


@torch.inference_mode()
def test_what_it_cannot_hold_is_rounded_to_the_nearest_step() -> None:
    torch.manual_seed(0)
    x = (5 * torch.randn(1, 60, 64)).bfloat16()
    small, scale = to_uint8(x)
    assert scale == pytest.approx(float(x.abs().max()) / 127)
    assert small.dtype == torch.uint8 and small.int().amin() >= 1
    assert ((small.double() - 128) * scale - x.double()).abs().max() <= scale * 0.50001
    weight = torch.randn(8, 64)
    whole, scales = weight_to_int8(weight)
    assert whole.dtype == torch.int8 and whole.abs().amax(1).tolist() == [127] * 8
    assert ((whole * scales[:, None] - weight).abs() <= scales[:, None] * 0.50001).all()


@torch.inference_mode()
@pytest.mark.parametrize("name", LAYERS)
def test_it_is_close_to_the_layer_that_was_not_quantised(name: str) -> None:
    torch.manual_seed(0)
    build, shape = LAYERS[name]
    layer, x = build().requires_grad_(False), torch.randn(shape).bfloat16()
    exact = product(layer, x)
    errors = (quantise(layer)(x) - exact).flatten(1).norm(dim=1) / exact.flatten(1).norm(dim=1)
    assert 0.001 < errors.max() <= 0.02


@torch.inference_mode()
@pytest.mark.parametrize("name", LAYERS)
def test_a_picture_does_not_depend_on_its_batch(name: str) -> None:
    layer, x = built(name)
    small = quantise(layer)
    together = small(x)
    assert all(torch.equal(together[k : k + 1], small(x[k : k + 1])) for k in range(len(x)))


@torch.inference_mode()
@pytest.mark.parametrize("bias", [True, False])
def test_what_a_convolution_adds_is_rounded_once(bias: bool) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(64, 64, 3, padding=1, bias=bias).requires_grad_(False)
    layer.weight.copy_(steps((64, 64, 3, 3)))
    x, plus, shift = (tensor.bfloat16() for tensor in (steps((2, 64, 6, 5)), torch.randn(2, 64, 6, 5), torch.randn(64)))
    kept = plus.clone()
    exact = product(layer, x)
    small = quantise(layer)
    for settings, expected in (
        ({"shift": shift}, exact + shift[:, None, None]),
        ({"plus": plus}, exact + plus),
        ({"shift": shift, "plus": plus}, exact + shift[:, None, None] + plus),
    ):
        assert_rounded_once(small(x, **settings), expected)
    assert torch.equal(plus, kept)


@torch.inference_mode()
@pytest.mark.parametrize("name", LAYERS)
def test_a_copy_is_the_plain_layer_of_the_weights_multiplied_with(name: str) -> None:
    layer, _ = built(name)
    copied = unpacked_copy(nn.Sequential(quantise(layer)))
    assert type(copied[0]) is type(layer)
    assert copied.state_dict().keys() == {f"0.{key}" for key in layer.state_dict()}
    assert torch.equal(copied[0].weight, layer.weight.bfloat16())  # type: ignore[union-attr, operator]
    if layer.bias is not None:
        assert torch.equal(copied[0].bias, layer.bias.bfloat16())  # type: ignore[union-attr, operator]


@torch.inference_mode()
@pytest.mark.parametrize("name", ["linear", "convolution"])
def test_nothing_gives_the_bias_and_what_is_not_finite_stays_so(name: str) -> None:
    layer, x = built(name)
    small = quantise(layer)
    nothing = small(torch.zeros_like(x)).movedim(-1 if name == "linear" else 1, 0)  # channels first
    assert (nothing.flatten(1) == small.bias[:, None]).all()  # type: ignore[index]
    for value in ("nan", "inf", "-inf"):
        broken = x.clone()
        broken[1].flatten()[3] = float(value)
        finite = small(broken).isfinite().flatten(1).any(1)
        assert finite.tolist() == [True, False, True]


@torch.inference_mode()
def test_a_feed_forward_layer_is_close_to_the_plain_one() -> None:
    torch.manual_seed(0)
    layer, x = GatedFeedForward(64).requires_grad_(False), torch.randn(3, 9, 64).bfloat16()
    exact = copy.deepcopy(layer).double()(x.double())
    small = QuantisedGatedFeedForward(layer)
    result = small(x)
    assert 0.001 < (result - exact).norm() / exact.norm() <= 0.03
    assert all(torch.equal(result[k : k + 1], small(x[k : k + 1])) for k in range(3))
    copied = unpacked_copy(nn.Sequential(small))[0]
    assert type(copied) is GatedFeedForward
    assert (copied.double()(x.double()) - exact).norm() / exact.norm() <= 0.02
    assert copied.state_dict().keys() == layer.state_dict().keys()


@torch.inference_mode()
@pytest.mark.parametrize("widths", [(64, 96), (64, 64)], ids=["projected", "as it is"])
def test_a_residual_block_of_them_is_close_to_the_plain_one(widths: tuple[int, int]) -> None:
    torch.manual_seed(0)
    exact = ResidualBlock(*widths, embedding_channels=48).requires_grad_(False)
    x, shift = torch.randn(3, widths[0], 12, 8).bfloat16(), torch.randn(1, widths[1]).bfloat16()
    small = prepare(
        nn.Sequential(copy.deepcopy(exact)),
        device=torch.device("cpu"),
        dtype=torch.bfloat16,
        forms=Forms(packed=PACKABLE, int8=True, int8_from=64),
    )[0]
    assert type(small.conv1) is type(small.conv2) is QuantisedConv
    assert not isinstance(small.embedding, QuantisedLinear)
    expected = exact.double()(x.double(), shift.double())
    assert 0.001 < (small(x, shift) - expected).norm() / expected.norm() <= 0.02
    again = unpacked_copy(small)
    assert {tensor.dtype for tensor in again.state_dict().values()} == {torch.bfloat16}
    assert type(again.conv1) is type(again.conv2) is nn.Conv2d
    assert (again.double()(x.double(), shift.double()) - expected).norm() / expected.norm() <= 0.02


@torch.inference_mode()
def test_of_a_denoiser_the_wide_layers_that_run_at_every_step() -> None:
    torch.manual_seed(0)
    config = UNetConfig(
        sample_size=8, channels=(64, 128), attention=(True, False), attention_up=(True, False), layers=(1, 1),
        depth=(1, 1), heads=(2, 4), only_cross=(False, False), context_channels=96, norm_groups=8,
    )  # fmt: skip
    unet = UNet(config).eval()
    exact = copy.deepcopy(unet)
    prepare(
        unet,
        device=torch.device("cpu"),
        dtype=torch.bfloat16,
        forms=Forms(packed=PACKABLE, phases=True, int8=True, int8_from=64),
    )
    kinds = {name: type(module).__name__ for name, module in unet.named_modules()}
    small = {name for name, kind in kinds.items() if kind in ("QuantisedConv", "QuantisedLinear")}
    plain = {"conv_in", "conv_out", "time_embedding.linear1", "down.0.residuals.0.embedding"}
    plain |= {f"down.0.transformers.0.blocks.0.attention2.{part}" for part in ("key", "value")}
    plain |= {name for name, kind in kinds.items() if kind == "PackedConvTranspose"}
    wide = {
        f"down.0.transformers.0.blocks.0.{part}"
        for part in ("attention1.project", "attention2.query", "attention2.out")
    }
    wide |= {f"middle.residuals.1.{part}" for part in ("conv1", "conv2")} | {"up.0.residuals.0.shortcut"}
    wide |= {"down.0.resample.conv", "up.1.transformers.0.project_in", "up.1.transformers.0.blocks.0.feed_forward.out"}
    assert plain <= kinds.keys() and not plain & small and wide <= small
    latents, context = torch.randn(2, 4, 8, 8), Conditioning(torch.randn(4, 7, 96))
    expected = UNetDenoiser(exact, [500.0], context)(latents, 500.0)
    error = (UNetDenoiser(unet, [500.0], context)(latents, 500.0) - expected).norm() / expected.norm()
    assert error <= 0.05
    again = float32_copy(unet)
    assert (UNetDenoiser(again, [500.0], context)(latents, 500.0) - expected).norm() / expected.norm() <= 0.05


def test_what_int8_does_not_pay_for() -> None:
    narrow: list[nn.Module] = [nn.Linear(63, 64), nn.Linear(64, 63), nn.Conv2d(4, 320, 3), nn.Conv2d(320, 4, 3)]
    other: list[Any] = [nn.ConvTranspose2d(64, 64, 4), nn.Conv2d(64, 64, 3, groups=2), nn.GroupNorm(8, 64)]
    assert not any(worth_quantising(layer, 64) for layer in narrow + other)
    assert worth_quantising(nn.Linear(64, 64), 64) and worth_quantising(nn.Conv2d(64, 64, 1), 64)


def test_operators_of_another_release_are_missed() -> None:
    assert can_quantise() and not can_quantise((*quantised.OPERATORS, "_of_another_release"))


def test_weights_that_are_not_finite_are_named() -> None:
    layer = nn.Linear(64, 64)
    with torch.no_grad():
        layer.weight[0, 0] = float("nan")
    assert nonfinite_weights(nn.Sequential(quantise(layer))) == ["0.scales"]

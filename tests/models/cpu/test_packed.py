"""Packed layers compute what torch's own layers compute, and come apart again."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

from genpipe.blocks import AddingLayer, PhaseUpsample, ResidualBlock, Upsample, is_adding, unpacked_copy
from genpipe.models.attention import GatedFeedForward, SpatialTransformer
from genpipe.models.cpu import packed
from genpipe.models.cpu.forms import PACKABLE, Forms
from genpipe.models.cpu.packed import (
    PackedGatedFeedForward,
    PatchConv,
    can_pack,
    multiplies_bf16,
    pack,
    suits_patches,
)
from genpipe.models.finite import nonfinite_weights
from genpipe.models.prepare import prepare
from tests.models.conftest import BOTH, packs_bf16, packs_fp32

pytestmark = packs_fp32

LAYERS = {
    "linear": (lambda: nn.Linear(20, 48), (2, 7, 20)),
    "linear without bias": (lambda: nn.Linear(20, 48, bias=False), (5, 20)),
    "convolution": (lambda: nn.Conv2d(4, 24, 3, padding=1), (2, 4, 9, 6)),
    "convolution without bias": (lambda: nn.Conv2d(16, 24, 1, bias=False), (2, 16, 5, 5)),
    "1 × 1 convolution": (lambda: nn.Conv2d(16, 24, 1), (2, 16, 4, 3)),
    "strided 1 × 1 convolution": (lambda: nn.Conv2d(16, 24, 1, stride=2), (2, 16, 5, 4)),
    "strided convolution": (lambda: nn.Conv2d(16, 24, 3, stride=2, padding=1), (2, 16, 9, 6)),
    "unpadded convolution": (lambda: nn.Conv2d(16, 16, 3, stride=2), (1, 16, 9, 7)),
    "convolution to one pixel": (lambda: nn.Conv2d(16, 16, 3, padding=1), (2, 16, 1, 1)),
    "transposed convolution": (lambda: nn.ConvTranspose2d(16, 24, 4, stride=2, padding=1), (2, 16, 5, 6)),
}


@torch.inference_mode()
@pytest.mark.parametrize("dtype", BOTH)
@pytest.mark.parametrize("name", LAYERS)
def test_a_packed_layer_computes_what_the_plain_one_computes(name: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    build, shape = LAYERS[name]
    layer, x = build().to(dtype), torch.randn(shape).to(dtype)
    small = pack(layer)
    assert type(small).__name__.startswith("Packed") and small.weight.is_mkldnn
    expected = copy.deepcopy(layer).double()(x.double())
    assert small(x).dtype == dtype and small(x).shape == expected.shape
    assert (small(x) - expected).abs().max() <= (1e-5 if dtype == torch.float32 else 2e-2)


@torch.inference_mode()
@pytest.mark.parametrize("name", LAYERS)
def test_a_copy_is_the_plain_layer(name: str) -> None:
    torch.manual_seed(0)
    build, shape = LAYERS[name]
    layer, x = build(), torch.randn(shape)
    copied = unpacked_copy(nn.Sequential(pack(layer)))
    assert type(copied[0]) is type(layer)
    assert torch.equal(copied(x), layer(x))
    assert copied.state_dict().keys() == {f"0.{key}" for key in layer.state_dict()}


@torch.inference_mode()
@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_that_says_that_it_adds_does_so(name: str) -> None:
    torch.manual_seed(0)
    build, shape = LAYERS[name]
    small, x = pack(build()), torch.randn(shape)
    assert isinstance(small, AddingLayer) == is_adding(small) == (name != "transposed convolution")
    if not is_adding(small):
        return
    result = small(x)
    per_channel = (-1,) if "linear" in name else (-1, 1, 1)
    plus, shift = torch.randn(result.shape), torch.randn(result.shape[-1 if "linear" in name else 1])
    assert (small(x, shift=shift, plus=plus) - (result + shift.view(per_channel) + plus)).abs().max() <= 1e-5


@torch.inference_mode()
@pytest.mark.parametrize("dtype", BOTH)
@pytest.mark.parametrize("name", [name for name in LAYERS if "conv" in name and name != "transposed convolution"])
def test_a_convolution_of_patches_computes_what_the_plain_one_computes(name: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    build, shape = LAYERS[name]
    layer, x = build().to(dtype), torch.randn(shape).to(dtype)
    patched = PatchConv(layer, strip=2000)  # most in several strips
    expected = copy.deepcopy(layer).double()(x.double())
    plus, shift = torch.randn(expected.shape).to(dtype), torch.randn(len(layer.weight)).to(dtype)
    assert patched(x).dtype == dtype and patched(x).shape == expected.shape
    assert (patched(x) - expected).abs().max() <= (1e-5 if dtype == torch.float32 else 2e-2)
    added = patched(x, shift=shift, plus=plus) - (expected + shift[:, None, None] + plus)
    assert added.abs().max() <= (1e-5 if dtype == torch.float32 else 5e-2)
    copied = unpacked_copy(nn.Sequential(patched))
    assert type(copied[0]) is nn.Conv2d and torch.allclose(copied(x), layer(x), atol=1e-2)
    assert all(torch.equal(tensor, layer.state_dict()[key]) for key, tensor in copied[0].state_dict().items())
    assert is_adding(patched)


def test_patches_suit_convolutions_that_are_wide() -> None:
    assert suits_patches(nn.Conv2d(16, 24, 3, stride=2), 16)
    assert not suits_patches(nn.Conv2d(16, 24, 3), None) and not suits_patches(nn.Conv2d(16, 24, 3), 17)
    for layer in (
        nn.Conv2d(32, 32, 1),
        nn.Conv2d(32, 32, 3, groups=2),
        nn.Conv2d(32, 32, 3, dilation=2),
        nn.ConvTranspose2d(32, 32, 4),
        nn.Linear(32, 32),
    ):
        assert not suits_patches(layer, 16)


def test_what_cannot_be_packed_stays_as_it_is() -> None:
    for layer in (nn.Conv2d(8, 8, 3, groups=2), nn.Conv2d(8, 8, 3, padding_mode="circular"), nn.GroupNorm(2, 8)):
        assert pack(layer) is layer
    assert not can_pack(torch.float32, (*packed.OPERATORS, "_of_another_release"))


def test_bf16_is_packed_only_where_the_processor_takes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert can_pack(torch.bfloat16) == multiplies_bf16() and not can_pack(torch.float16)
    monkeypatch.setattr(packed, "multiplies_bf16", lambda: False)
    assert can_pack(torch.float32) and not can_pack(torch.bfloat16)


@torch.inference_mode()
def test_a_processor_without_bf16_runs_the_plain_forms(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed, "multiplies_bf16", lambda: False)
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(256, 256, 3, padding=1), Upsample(256), nn.Conv2d(256, 8, 1)).bfloat16()
    forms = Forms(packed=PACKABLE, phases=True, winograd=True, blocked={512: 1})
    ready = prepare(copy.deepcopy(plain), device=torch.device("cpu"), dtype=torch.bfloat16, forms=forms)
    assert [type(module) for module in ready] == [nn.Conv2d, PhaseUpsample, nn.Conv2d]
    x = torch.randn(1, 256, 16, 16).bfloat16()
    assert torch.allclose(ready(x), plain(x), atol=2e-2)


def test_weights_that_are_not_finite_are_named_in_their_packing() -> None:
    layer = nn.Linear(4, 4)
    with torch.no_grad():
        layer.weight[0, 0] = float("nan")
    assert nonfinite_weights(nn.Sequential(pack(layer))) == ["0.weight"]


@torch.inference_mode()
@pytest.mark.parametrize("dtype", BOTH)
@pytest.mark.parametrize("fused", [True, False])
def test_a_packed_feed_forward_computes_what_the_plain_one_computes(dtype: torch.dtype, fused: bool) -> None:
    torch.manual_seed(0)
    layer, x = GatedFeedForward(24).to(dtype), torch.randn(2, 9, 24).to(dtype)
    small = PackedGatedFeedForward(layer, fused=fused, strip=5 * 4 * 24)  # five rows of eighteen
    expected = copy.deepcopy(layer).double()(x.double())
    assert float(expected.std()) > 0.05
    assert (small(x) - expected).abs().max() <= (1e-6 if dtype == torch.float32 else 5e-3)
    assert (small(x, plus=x) - (expected + x)).abs().max() <= (1e-6 if dtype == torch.float32 else 2e-2)
    copied = unpacked_copy(nn.Sequential(small))[0]
    assert type(copied) is GatedFeedForward
    assert all(torch.equal(copied.state_dict()[key], tensor) for key, tensor in layer.state_dict().items())


@packs_bf16
@torch.inference_mode()
@pytest.mark.parametrize("widths", [(32, 64), (64, 64)], ids=["projected", "as it is"])
@pytest.mark.parametrize("embedded", [True, False])
def test_a_packed_residual_block_rounds_less_than_the_plain_one(widths: tuple[int, int], embedded: bool) -> None:
    torch.manual_seed(0)
    exact = ResidualBlock(*widths, embedding_channels=48 if embedded else None).double().requires_grad_(False)
    plain = copy.deepcopy(exact).bfloat16()
    packed = copy.deepcopy(plain)
    for name in ("conv1", "conv2"):
        setattr(packed, name, pack(getattr(packed, name)))
    x = torch.randn(2, widths[0], 12, 20).bfloat16()
    shift = exact.shift(torch.randn(1, 48).double()).bfloat16() if embedded else None
    expected = exact(x.double(), None if shift is None else shift.double())
    scale = expected.square().mean().sqrt()
    errors = [
        float((result - expected).square().mean().sqrt() / scale) for result in (packed(x, shift), plain(x, shift))
    ]
    assert errors[0] <= errors[1] < 0.01
    again = unpacked_copy(packed)
    assert type(again.conv2) is nn.Conv2d and torch.equal(again(x, shift), plain(x, shift))
    assert list(again.state_dict()) == list(plain.state_dict())


@packs_bf16
@torch.inference_mode()
@pytest.mark.parametrize("linear", [True, False])
def test_a_packed_transformer_rounds_less_than_the_plain_one(linear: bool) -> None:
    torch.manual_seed(0)
    exact = SpatialTransformer(32, heads=2, context_channels=24, linear=linear).double().requires_grad_(False)
    plain = copy.deepcopy(exact).bfloat16()
    packed = prepare(
        nn.Sequential(copy.deepcopy(exact)),
        device=torch.device("cpu"),
        dtype=torch.bfloat16,
        forms=Forms(packed=PACKABLE),
    )[0]
    x = torch.randn(2, 32, 12, 20).bfloat16().contiguous(memory_format=torch.channels_last)
    context = torch.randn(2, 7, 24).bfloat16()

    def read(network: Any, dtype: torch.dtype) -> torch.Tensor:
        prompts = {reader: reader.keys_values(context.to(dtype)) for reader in network.cross_attentions()}
        return network(x.to(dtype), prompts).double()

    expected = read(exact, torch.float64)
    ours, theirs = ((read(one, torch.bfloat16) - expected).square().mean().sqrt() for one in (packed, plain))
    assert ours < theirs < 0.02

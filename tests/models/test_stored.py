"""Layers that keep their weights in fewer bits: how far a weight is rounded, and that a layer computes with just that."""

import copy
from typing import cast

import pytest
import torch
from torch import Tensor, nn

from genpipe.models.cpu.forms import PACKABLE, PLAIN, Forms
from genpipe.models.cuda.forms import CHANNELS_LAST
from genpipe.models.denoiser import UNetDenoiser
from genpipe.models.finite import float32_copy, nonfinite_weights
from genpipe.models.prepare import prepare
from genpipe.models.stored import FP8, StoredLayer, can_store, narrowed, widened
from tests.models.conftest import UNET_FAMILIES, UNetPair, unet_conditioning

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
STORED = [FP8, torch.int8, torch.bfloat16]


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_number_of_fp8_is_widened_as_torch_widens_it(dtype: torch.dtype) -> None:
    numbers = torch.arange(256, dtype=torch.uint8).view(FP8)
    numbers = numbers[~numbers.float().isnan()][:, None]
    scales = 2.0 ** torch.arange(len(numbers)).remainder(7).sub(3)
    assert torch.equal(widened(numbers, None, dtype) * 256, numbers.to(dtype))
    assert torch.equal(widened(numbers, scales, dtype), numbers.to(dtype) * scales[:, None].to(dtype))


def rows() -> Tensor:
    """Rows whose largest numbers lie far apart, one of them of zeros."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(6, 3, 5, 5, generator=generator) * torch.tensor([1e-4, 0.02, 1.0, 3.0, 500.0, 0.0]).view(
        -1, 1, 1, 1
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_int8_is_the_nearest_of_its_steps_in_each_row(dtype: torch.dtype) -> None:
    weight = rows()
    stored, scales = narrowed(weight, torch.int8)
    assert scales is not None and torch.equal(scales.bfloat16().float(), scales)  # so that it is not rounded again
    largest = weight.flatten(1).abs().amax(1)
    assert (scales >= largest / 127).all() and (scales <= largest.clamp(min=1e-20) / 127 * 1.02).all()
    steps = scales.view(-1, 1, 1, 1)
    nearest = (torch.arange(-127, 128).view(-1, 1, 1, 1, 1) * steps - weight).abs().amin(0)
    exact = stored.float() * steps
    assert ((exact - weight).abs() <= nearest * (1 + 1e-4) + 1e-9).all()
    assert torch.equal(widened(stored, scales, dtype)[1:], exact.to(dtype)[1:])  # the first row is below fp16's normals


def test_fp8_keeps_four_digits_of_each_number_and_what_was_fp8_as_it_was() -> None:
    weight = rows()
    stored, scales = narrowed(weight, FP8)
    exact = widened(stored, scales, torch.float32)
    large = weight.abs() >= weight.flatten(1).abs().amax(1).view(-1, 1, 1, 1) / 2**12
    assert ((exact - weight).abs() <= weight.abs() / 16)[large].all()
    assert torch.equal(widened(stored, scales, torch.bfloat16).float(), exact)  # powers of two round nothing
    before = weight.clamp(-448, 448).to(FP8).float()  # what is larger, torch 2.11 makes NaN of
    assert torch.equal(widened(*narrowed(before, FP8), torch.float32), before)


@torch.inference_mode()
@pytest.mark.parametrize("store", STORED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_stored_layer_computes_what_the_plain_layer_of_its_weights_computes(
    store: torch.dtype, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    layers = [
        (nn.Linear(12, 7), torch.randn(2, 5, 12)),
        (nn.Linear(12, 7, bias=False), torch.randn(12)),
        (nn.Conv2d(6, 8, 3, stride=2, padding=1, groups=2), torch.randn(2, 6, 9, 8)),
    ]
    for layer, x in layers:
        stored = StoredLayer(layer, store).moved(torch.device("cpu"), dtype)
        plain = float32_copy(stored)
        assert type(plain) is type(layer) and torch.equal(plain.to(dtype)(x.to(dtype)), stored(x.to(dtype)))
        assert stored.weight.dtype == store and "weight" not in dict(stored.named_parameters())
        assert 0 < float((plain.float()(x) - layer(x)).abs().max()) < 0.1


@pytest.mark.parametrize("store", STORED)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_weight_that_is_not_finite_is_still_found(store: torch.dtype, bad: float) -> None:
    layer = nn.Linear(4, 4)
    with torch.no_grad():
        layer.weight[1, 2] = bad
    stored = StoredLayer(layer, store).moved(torch.device("cpu"), torch.float32)
    assert nonfinite_weights(stored) == ["weight" if store == torch.bfloat16 else "scales"]
    assert not stored(torch.ones(1, 4)).isfinite().all()


@torch.inference_mode()
@pytest.mark.parametrize("store", STORED)
def test_a_network_of_them_is_prepared_for_any_device(store: torch.dtype, unet_pair: UNetPair) -> None:
    exact, _ = unet_pair(**UNET_FAMILIES["SDXL"])
    for name, layer in list(exact.named_modules()):
        if can_store(name, layer):
            parent, _, child = name.rpartition(".")
            exact.get_submodule(parent).register_module(child, StoredLayer(cast(nn.Linear, layer), store))
    conditioning, latents = unet_conditioning(exact, 2), torch.randn(2, 4, 8, 8)
    expected = UNetDenoiser(float32_copy(exact), [500.0], conditioning)(latents, 500.0)
    packing = Forms(packed=PACKABLE, phases=True, winograd=True, winograd_from=1, differences_from=1)
    for forms in (PLAIN, packing, CHANNELS_LAST):
        own = prepare(copy.deepcopy(exact), device=torch.device("cpu"), dtype=torch.float32, forms=forms)
        assert {module.weight.dtype for module in own.modules() if isinstance(module, StoredLayer)} == {store}
        output = UNetDenoiser(own, [500.0], conditioning)(latents, 500.0)
        assert (output - expected).abs().max() <= 1e-4


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@torch.inference_mode()
@pytest.mark.parametrize("store", STORED)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_gpu_widens_to_the_same_numbers(store: torch.dtype, dtype: torch.dtype) -> None:
    stored, scales = narrowed(rows()[1:], store)
    there = None if scales is None else scales.cuda()
    assert torch.equal(widened(stored.cuda(), there, dtype).cpu(), widened(stored, scales, dtype))

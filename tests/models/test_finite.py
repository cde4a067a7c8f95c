import torch
from torch import nn

from genpipe.blocks import Upsample
from genpipe.models.attention import GatedFeedForward
from genpipe.models.cpu.forms import PACKABLE, Forms
from genpipe.models.finite import float32_copy, nonfinite_weights
from genpipe.models.prepare import prepare
from tests.models.conftest import packs_bf16


def test_a_copy_in_fp32_leaves_the_original_as_it_is() -> None:
    network = nn.Linear(2, 2).bfloat16()
    copied = float32_copy(network)
    assert copied.weight.dtype == torch.float32
    assert network.weight.dtype == torch.bfloat16
    assert torch.equal(copied.weight.bfloat16(), network.weight)


@packs_bf16
@torch.inference_mode()
def test_a_copy_in_fp32_of_packed_modules_is_plain_and_computes_in_fp32() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(32, 32, 3, padding=1), Upsample(32), nn.Conv2d(32, 32, 1), nn.Flatten(2))
    network.append(GatedFeedForward(1024))
    plain = network.bfloat16().float()  # rounded once, as the packed weights are
    forms = Forms(packed=PACKABLE, winograd=True, winograd_from=64, differences_from=64)
    packed = prepare(float32_copy(plain), device=torch.device("cpu"), dtype=torch.bfloat16, forms=forms)
    copied = float32_copy(packed)
    assert [type(module) for module in copied] == [nn.Conv2d, Upsample, nn.Conv2d, nn.Flatten, GatedFeedForward]
    assert {tensor.dtype for tensor in copied.state_dict().values()} == {torch.float32}
    x = torch.randn(1, 32, 16, 16)
    assert torch.equal(copied(x), plain(x))
    assert all(type(module).__name__.startswith("Packed") for module in (packed[0], packed[2], packed[4]))


def test_weights_that_are_not_finite_are_named() -> None:
    last = nn.Linear(4, 4)
    network = nn.Sequential(nn.Linear(4, 4), last)
    with torch.no_grad():
        last.bias[2] = float("inf")
    assert nonfinite_weights(network) == ["1.bias"]

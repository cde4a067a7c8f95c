"""Circular convolutions: equal to plain torch's with padding_mode="circular", whatever form the network has."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from genpipe.blocks import Downsample, unpacked_copy
from genpipe.models.circular import circular
from genpipe.models.cpu.forms import PLAIN, Forms
from genpipe.models.cpu.packed import can_pack
from genpipe.models.finite import float32_copy
from genpipe.models.prepare import prepare
from genpipe.models.unet import UNet
from genpipe.models.vae import VAE
from tests.conftest import tiny_parts, tiny_xl_parts

ALL = Forms(
    packed=("linear", "convolution 1x1", "convolution 3x3", "upsampling"), phases=True, winograd=True,
    winograd_from=16, winograd_from_in_vae=8, differences_from=16,
)  # fmt: skip
FORMS: dict[str, Any] = {
    "as loaded": None,
    "plain": PLAIN,
    "phases": Forms(phases=True),
    "all": pytest.param(ALL, marks=pytest.mark.skipif(not can_pack(torch.float32), reason="no oneDNN")),
}


class _CircularDown(Downsample):
    def forward(self, x: Tensor) -> Tensor:
        if not self.asymmetric:
            return self.conv(x)
        return self.conv(F.pad(x, (0, 1, 0, 1), mode="circular"))


def by_torch(network: nn.Module) -> nn.Module:
    """The same with every convolution made circular by torch itself."""
    found = copy.deepcopy(network)
    for module in found.modules():
        if isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3) and module.padding == (1, 1):
            module.padding_mode = "circular"
            module._reversed_padding_repeated_twice = [1, 1, 1, 1]
        if isinstance(module, Downsample):
            module.__class__ = _CircularDown
    return found


def evaluated(network: Any, x: Tensor) -> Tensor:
    with torch.inference_mode():
        if isinstance(network, VAE):
            mean, logvar = network.encode(x)
            return torch.cat([mean, logvar]) if x.shape[1] == 3 else network.decode(x)
        torch.manual_seed(2)
        given = {}
        if network.config.added_channels is not None:
            given = {"pooled": torch.randn(len(x), 40), "time_ids": torch.rand(len(x), 6) * 64}
        context = torch.randn(len(x), 5, network.config.context_channels)
        return network(x, torch.full((len(x),), 500.0), context, **given)


def parts(name: str) -> Any:
    made = tiny_xl_parts() if name == "unet of SDXL" else tiny_parts()
    return made["vae" if name == "vae" else "unet"].eval().requires_grad_(False)


@pytest.mark.parametrize("forms", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("name", ["unet", "unet of SDXL", "vae"])
def test_it_is_torchs_circular_padding(name: str, forms: Forms | None) -> None:
    network = parts(name)
    expected, plain = by_torch(network), copy.deepcopy(network)
    if forms is not None:
        network = prepare(network, device=torch.device("cpu"), dtype=torch.float32, forms=forms)
    torch.manual_seed(3)
    x = torch.randn(2, 3, 32, 64) if name == "vae" else torch.randn(2, 4, 8, 12)
    found, wanted = evaluated(circular(network), x), evaluated(expected, x)
    assert (found - wanted).abs().max() <= 1e-4 * wanted.abs().max()
    assert (evaluated(plain, x) - wanted).abs().max() > 1e-2 * wanted.abs().max()
    # The network that it was made of is as it was.
    assert (evaluated(network, x) - evaluated(plain, x)).abs().max() <= 1e-4 * wanted.abs().max()


def test_a_decoder_of_copies_decodes_copies() -> None:
    vae: Any = circular(parts("vae"))
    torch.manual_seed(3)
    x = torch.randn(1, 4, 8, 8)
    with torch.inference_mode():
        once, copies = vae.decode(x), vae.decode(x.tile(1, 1, 1, 2))
    assert (copies - once.tile(1, 1, 1, 2)).abs().max() <= 1e-4 * once.abs().max()


@pytest.mark.parametrize("name", ["unet", "vae"])
def test_weights_are_shared_and_copies_for_fp32_stay_circular(name: str) -> None:
    network = parts(name)
    other = circular(network)
    mine, theirs = ({id(p) for p in each.parameters()} for each in (network, other))
    assert theirs <= mine
    torch.manual_seed(3)
    x = torch.randn(1, 3, 32, 32) if name == "vae" else torch.randn(1, 4, 8, 8)
    for copied in (float32_copy(other), unpacked_copy(other)):
        assert torch.equal(evaluated(copied, x), evaluated(other, x))


def test_an_odd_map_is_refused() -> None:
    unet: UNet = parts("unet")
    with pytest.raises(ValueError, match="has no half of"):
        evaluated(circular(unet), torch.randn(1, 4, 7, 8))

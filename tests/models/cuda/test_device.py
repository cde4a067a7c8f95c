"""The forms for CUDA give what the plain network gives in fp32, no worse than plain torch does in the same dtype."""

import copy
import importlib.util
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from genpipe.blocks import ResidualBlock
from genpipe.models.attention import TransformerBlock
from genpipe.models.cuda.forms import CHANNELS_LAST, KERNELS, NAMED, PLAIN, best_forms, evaluation, runs_kernels
from genpipe.models.cuda.fp8 import Fp8Linear
from genpipe.models.denoiser import UNetDenoiser
from genpipe.models.finite import float32_copy
from genpipe.models.prepare import prepare
from genpipe.models.stored import StoredLayer
from genpipe.models.tiny_vae import TinyVAE, TinyVAEConfig
from genpipe.models.unet import UNet
from genpipe.models.vae import VAE, VAEConfig
from tests.models.conftest import UNET_FAMILIES, UNetPair, unet_conditioning

CPU = torch.device("cpu")
TIMES = [981.0, 499.5, 0.0]
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
# Two levels of one layer: the interpreter takes long for each kernel.
SMALL: dict[str, Any] = {
    "block_out_channels": (16, 32),
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "layers_per_block": 1,
}
FUSED: dict[str, dict[str, Any]] = {
    "Stable Diffusion 1": SMALL,
    "linear projections, deep, fp32 scores": {
        **SMALL,
        "use_linear_projection": True,
        "transformer_layers_per_block": 2,
        "upcast_attention": True,
    },
    "only cross-attention": {**SMALL, "only_cross_attention": True},
}
ON_DEVICE = [
    ("Stable Diffusion 1", torch.bfloat16, "channels_last"),
    ("Stable Diffusion 1", torch.bfloat16, "kernels"),
    ("Stable Diffusion 1", torch.bfloat16, "graphs"),
    ("Stable Diffusion 1", torch.float16, "graphs"),
    ("SDXL", torch.bfloat16, "graphs"),
]


def outputs(exact: UNet, device: torch.device, dtype: torch.dtype, form: str) -> Tensor:
    """The evaluations of a copy of a U-Net in a form, at several timesteps and shapes, on the CPU in double."""
    unet = prepare(copy.deepcopy(exact), device=device, dtype=dtype, forms=NAMED[form])
    conditioning = unet_conditioning(exact, 4, device)
    evaluate = evaluation(unet, NAMED[form], device)
    found = []
    for height, width in ((8, 12), (16, 8), (7, 9), (8, 12)):
        denoiser = UNetDenoiser(unet, TIMES, conditioning, refresh=2, evaluate=evaluate)
        latents = torch.randn(2, 4, height, width, generator=torch.Generator().manual_seed(height)).to(device)
        for timestep in (TIMES[0], TIMES[1], [TIMES[2], TIMES[0]]):
            found += [denoiser(latents, timestep), denoiser(latents, timestep, last=True)]
    return torch.cat([one.flatten().double().cpu() for one in found])


@pytest.mark.gpu
@needs_gpu
@torch.inference_mode()
@pytest.mark.parametrize(("name", "dtype", "form"), ON_DEVICE)
def test_a_unet_on_a_device(name: str, dtype: torch.dtype, form: str, unet_pair: UNetPair) -> None:
    exact, _ = unet_pair(**UNET_FAMILIES[name])
    expected = outputs(exact, CPU, torch.float32, "plain")
    cuda = torch.device("cuda")
    errors = [float((outputs(exact, cuda, dtype, one) - expected).norm() / expected.norm()) for one in (form, "plain")]
    assert errors[0] <= 1.15 * errors[1] + 1e-4 and errors[1] < 0.05


@pytest.mark.gpu
@pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability() < (8, 9), reason="needs a GPU with fp8"
)
@torch.inference_mode()
def test_fp8_loses_little(unet_pair: UNetPair) -> None:
    exact, _ = unet_pair(**UNET_FAMILIES["SDXL"])
    expected = outputs(exact, CPU, torch.float32, "plain")
    output = outputs(exact, torch.device("cuda"), torch.bfloat16, "fp8")
    assert 0.001 < (output - expected).norm() / expected.norm() < 0.1


@pytest.mark.gpu
@needs_gpu
@torch.inference_mode()
@pytest.mark.parametrize(("dtype", "form"), [(torch.bfloat16, "kernels"), (torch.float16, "channels_last")])
def test_autoencoders_on_a_device(dtype: torch.dtype, form: str) -> None:
    torch.manual_seed(0)
    vae = VAE(VAEConfig(channels=(16, 32, 32), layers=1, norm_groups=4, sample_size=32))
    tiny = TinyVAE(TinyVAEConfig())
    latents, pixels = torch.randn(2, 4, 6, 10), torch.rand(2, 3, 48, 32) * 2 - 1
    for exact in (vae, tiny):
        expected = [exact.decode(latents), exact.encode(pixels)[0]]
        errors = []
        for chosen in (form, "plain"):
            network = prepare(copy.deepcopy(exact), device=torch.device("cuda"), dtype=dtype, forms=NAMED[chosen])
            given = [network.decode(latents.cuda()), network.encode(pixels.cuda())[0]]
            errors += [[float((g.cpu() - e).norm() / e.norm()) for g, e in zip(given, expected, strict=True)]]
        assert all(own <= 1.15 * other + 1e-4 and other < 0.05 for own, other in zip(*errors, strict=True))


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs Triton")
def test_kernels_are_tried_before_they_are_chosen(device: torch.device) -> None:
    def fails(device: torch.device) -> bool:
        raise RuntimeError("no C compiler\nand a page of other things")

    assert runs_kernels(device)
    with pytest.warns(UserWarning, match="^Triton compiles no kernels here, at some cost of time: no C compiler$"):
        assert not runs_kernels(device, fails)


@pytest.mark.gpu
@needs_gpu
def test_the_best_form_here_has_graphs() -> None:
    assert (
        best_forms(torch.device("cuda"), torch.bfloat16).graphs
        and best_forms(torch.device("cuda"), torch.float32).graphs
    )


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs Triton")
@torch.inference_mode()
@pytest.mark.parametrize("name", FUSED)
def test_fused_modules_compute_the_same(name: str, device: torch.device, unet_pair: UNetPair) -> None:
    exact, _ = unet_pair(**FUSED[name])
    plain, fused = (
        prepare(copy.deepcopy(exact), device=device, dtype=torch.float32, forms=forms) for forms in (PLAIN, KERNELS)
    )
    assert any(type(module).__name__ == "FusedResidualBlock" for module in fused.modules())
    checked: list[tuple[UNet, list[float]]] = [(fused, TIMES[:1])]
    if name == "Stable Diffusion 1":
        checked += [(float32_copy(fused), [TIMES[1], TIMES[0]])]  # as where what overflows is repeated
    for unet, times in checked:
        conditioning = unet_conditioning(exact, 2 * len(times), device)
        latents = torch.randn(len(times), 4, 8, 6, device=device)
        expected, output = (UNetDenoiser(each, TIMES, conditioning)(latents, times) for each in (plain, unet))
        assert (output - expected).abs().max() <= 2e-4 * expected.abs().max()


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs Triton")
@torch.inference_mode()
def test_what_overflows_in_fp8_is_repeated_by_plain_layers(device: torch.device, unet_pair: UNetPair) -> None:
    exact, _ = unet_pair(**SMALL)
    conditioning, latents = unet_conditioning(exact, 2, device), torch.randn(1, 4, 8, 6, device=device)
    forms = replace(KERNELS, fp8=True)
    plain, fp8 = (
        prepare(copy.deepcopy(exact), device=device, dtype=torch.float32, forms=each) for each in (PLAIN, forms)
    )
    assert sum(isinstance(module, Fp8Linear) for module in fp8.modules()) == 3 * 4
    copied = float32_copy(fp8)
    assert not any(isinstance(module, Fp8Linear) for module in copied.modules())
    expected, output = (UNetDenoiser(unet, TIMES, conditioning)(latents, TIMES[0]) for unet in (plain, copied))
    assert 1e-4 < (output - expected).norm() / expected.norm() < 0.05  # of the rounded weights


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs Triton")
@torch.inference_mode()
def test_weights_in_fewer_bits_stay_so(device: torch.device, unet_pair: UNetPair) -> None:
    exact, _ = unet_pair(**SMALL)
    for module in list(exact.modules()):
        if isinstance(module, ResidualBlock):
            module.conv1 = StoredLayer(module.conv1, torch.int8)  # type: ignore[assignment]
    conditioning, latents = unet_conditioning(exact, 2, device), torch.randn(1, 4, 4, 4, device=device)
    plain, fused = (
        prepare(copy.deepcopy(exact), device=device, dtype=torch.float32, forms=forms) for forms in (PLAIN, KERNELS)
    )
    expected, output = (UNetDenoiser(unet, TIMES, conditioning)(latents, TIMES[0]) for unet in (plain, fused))
    assert (output - expected).abs().max() <= 2e-4 * expected.abs().max()
    kinds = [type(module).__name__ for module in fused.modules()]
    assert kinds.count("StoredLayer") == 8 and "FusedGroupNorm" in kinds and "FusedResidualBlock" not in kinds


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs Triton")
@torch.inference_mode()
def test_a_fused_autoencoder_computes_the_same(device: torch.device) -> None:
    torch.manual_seed(0)
    exact = VAE(VAEConfig(channels=(8, 16, 16), layers=1, norm_groups=4, sample_size=32)).to(device)
    latents, pixels = torch.randn(1, 4, 3, 2, device=device), torch.rand(1, 3, 16, 12, device=device) * 2 - 1
    own = prepare(copy.deepcopy(exact), device=device, dtype=torch.float32, forms=KERNELS)
    for output, expected in (
        (own.decode(latents), exact.decode(latents)),
        (own.encode(pixels)[0], exact.encode(pixels)[0]),
    ):
        assert (output - expected).abs().max() <= 2e-4 * expected.abs().max()


@torch.inference_mode()
@pytest.mark.parametrize("name", ["Stable Diffusion 1", "SDXL"])
def test_channels_last_computes_the_same_and_no_map_leaves_it(name: str, unet_pair: UNetPair) -> None:
    exact, _ = unet_pair(**UNET_FAMILIES[name])
    conditioning, latents = unet_conditioning(exact, 4), torch.randn(2, 4, 8, 12)
    plain, last = (
        prepare(copy.deepcopy(exact), device=CPU, dtype=torch.float32, forms=forms) for forms in (PLAIN, CHANNELS_LAST)
    )
    copies = []

    def watch(module: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> None:
        if isinstance(module, TransformerBlock):
            whole = [one.is_contiguous() for one in (given[0], output)]
        else:
            whole = [one.is_contiguous(memory_format=torch.channels_last) for one in (given[0], output)]
        copies.extend(whole if module is not last.conv_in else whole[1:])

    for module in last.modules():
        if isinstance(module, nn.Conv2d | nn.GroupNorm | TransformerBlock):
            module.register_forward_hook(watch)
    outputs = [UNetDenoiser(unet, TIMES, conditioning)(latents, TIMES[0]) for unet in (plain, last)]
    assert (outputs[0] - outputs[1]).abs().max() <= 1e-5
    assert len(copies) > 100 and all(copies)


@torch.inference_mode()
def test_channels_last_autoencoders_compute_the_same() -> None:
    torch.manual_seed(0)
    latents, pixels = torch.randn(2, 4, 6, 10), torch.rand(2, 3, 48, 32) * 2 - 1
    for exact in (
        VAE(VAEConfig(channels=(8, 16, 16), layers=1, norm_groups=4, sample_size=32)),
        TinyVAE(TinyVAEConfig()),
    ):
        own = prepare(copy.deepcopy(exact), device=CPU, dtype=torch.float32, forms=CHANNELS_LAST)
        assert (own.decode(latents) - exact.decode(latents)).abs().max() <= 1e-5
        assert (own.encode(pixels)[0] - exact.encode(pixels)[0]).abs().max() <= 1e-5

"""Our T2I-Adapters compute what diffusers' `T2IAdapter` computes, alone and in a U-Net, once for all steps."""

from typing import Any

import pytest
import torch
from diffusers.models.adapter import T2IAdapter as TheirAdapter

from genpipe.checkpoints.layout import T2I_ADAPTER
from genpipe.models.control import Controls, Shown
from genpipe.models.cpu.forms import PACKABLE, Forms
from genpipe.models.cuda.graphs import Graphs
from genpipe.models.denoiser import UNetDenoiser
from genpipe.models.prepare import prepare
from genpipe.models.t2i_adapter import T2IAdapter, T2IAdapterConfig
from tests.models.conftest import SDXL_UNET, Copy, UNetPair, their_inputs, unet_conditioning
from tests.models.cuda.test_graphs import Recall

CPU, FP32 = torch.device("cpu"), torch.float32
TIMES = [981.0, 499.5, 0.0]
FORMS: dict[str, dict[str, Any]] = {
    "full": {"channels": [16, 32, 48], "downscale_factor": 4},
    "of grey images": {"channels": [16, 32, 48], "downscale_factor": 4, "in_channels": 1, "num_res_blocks": 1},
    "of XL": {"channels": [16, 32, 48, 48], "downscale_factor": 8, "adapter_type": "full_adapter_xl"},
    "light": {"channels": [16, 32], "downscale_factor": 4, "num_res_blocks": 3, "adapter_type": "light_adapter"},
}


def pair(copy_weights: Copy, name: str, seed: int = 0) -> tuple[T2IAdapter, Any]:
    torch.manual_seed(seed)
    theirs: Any = TheirAdapter(**FORMS[name])
    ours = T2IAdapter(T2IAdapterConfig.from_dict(theirs.config))
    copy_weights(theirs, ours, T2I_ADAPTER)
    return ours, theirs


@torch.inference_mode()
@pytest.mark.parametrize("name", FORMS)
def test_an_adapter_computes_what_diffusers_computes(name: str, copy_weights: Copy) -> None:
    ours, theirs = pair(copy_weights, name)
    prepare(ours, device=CPU, dtype=FP32, forms=Forms(packed=PACKABLE))
    config = ours.config
    image = torch.rand(2, config.image_channels, 5 * config.factor, 9 * config.factor)
    found, expected = ours(image), theirs(image)
    assert len(found) == len(expected) == len(config.maps)
    for one, other, (width, _) in zip(found, expected, config.maps, strict=True):
        assert one.shape == other.shape and one.shape[1] == width and other.std() > 0.01
        assert (one - other).abs().max() <= 1e-5


@torch.inference_mode()
@pytest.mark.parametrize("recorded", [False, True])
@pytest.mark.parametrize(("name", "kind"), [("Stable Diffusion 1", "full"), ("SDXL", "of XL")])
def test_a_unet_with_two_computes_what_diffusers_computes(
    name: str, kind: str, recorded: bool, unet_pair: UNetPair, copy_weights: Copy
) -> None:
    unet, their_unet = unet_pair(**({} if kind == "full" else SDXL_UNET))
    adapters, their_adapters = zip(*(pair(copy_weights, kind, seed) for seed in (1, 2)), strict=True)
    prepare(unet, device=CPU, dtype=FP32, forms=Forms(packed=PACKABLE))
    conditioning, images = unet_conditioning(unet, 4), [torch.rand(2, 3, 40, 24), torch.rand(2, 3, 40, 24)]
    calls: list[int] = []
    for adapter in adapters:
        adapter.levels[0].register_forward_hook(lambda *_: calls.append(1))
    shown = [Shown(images[0], [0.7, 0.7], TIMES), Shown(images[1], [1.5, 0.5], TIMES[:2])]
    more: Any = {"evaluate": Graphs(unet, device=CPU, capture=Recall())} if recorded else {}
    control = Controls(adapters, shown, TIMES, conditioning)
    denoiser = UNetDenoiser(unet, TIMES, conditioning, control=control, **more)
    scales = [torch.tensor(each)[:, None, None, None] for each in ([0.7, 0.7], [1.5, 0.5])]
    for time in TIMES:
        latents = torch.randn(2, 4, 10, 6)
        maps = [each * scales[0] for each in their_adapters[0](images[0])]
        if time in TIMES[:2]:
            maps = [one + each * scales[1] for one, each in zip(maps, their_adapters[1](images[1]), strict=True)]
        expected = their_unet(
            torch.cat([latents] * 2),
            time,
            down_intrablock_additional_residuals=[torch.cat([each] * 2) for each in maps],
            **their_inputs(conditioning),
        ).sample
        found = denoiser(latents, time)
        assert (found - expected).abs().max() <= 2e-5
        assert (found - UNetDenoiser(unet, TIMES, conditioning)(latents, time)).abs().max() > 0.01
        assert (denoiser(latents, time, last=True) - expected[2:]).abs().max() <= 2e-5
    assert len(calls) == 2


@torch.inference_mode()
def test_beside_a_controlnet_each_adds_its_own(unet_pair: UNetPair, copy_weights: Copy) -> None:
    from tests.models.test_controlnet import pair as controlnet_pair

    unet, their_unet = unet_pair()
    (adapter, their_adapter), (network, their_network) = pair(copy_weights, "full"), controlnet_pair(copy_weights)
    conditioning, image = unet_conditioning(unet, 2), torch.rand(1, 3, 32, 32)
    shown = [Shown(image, [1.0], TIMES), Shown(image, [0.5], TIMES)]
    control = Controls([network, adapter], shown, TIMES, conditioning)
    latents = torch.randn(1, 4, 8, 8)
    given = {"encoder_hidden_states": conditioning.context}
    twice = torch.cat([latents] * 2)
    down, middle = their_network(twice, TIMES[0], controlnet_cond=torch.cat([image] * 2), return_dict=False, **given)
    expected = their_unet(
        twice,
        TIMES[0],
        down_intrablock_additional_residuals=[torch.cat([0.5 * each] * 2) for each in their_adapter(image)],
        down_block_additional_residuals=down,
        mid_block_additional_residual=middle,
        **given,
    ).sample
    found = UNetDenoiser(unet, TIMES, conditioning, control=control)(latents, TIMES[0])
    assert (found - expected).abs().max() <= 2e-5


def test_other_forms_are_refused() -> None:
    with pytest.raises(ValueError, match="adapter_type = 'fuller' is not supported"):
        T2IAdapterConfig.from_dict({"adapter_type": "fuller"})

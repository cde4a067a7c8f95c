"""Our ControlNets compute what diffusers' `ControlNetModel` computes, alone and in a U-Net, and only where they act."""

from typing import Any

import pytest
import torch
from diffusers.models.controlnets.controlnet import ControlNetModel
from torch import Tensor

from genpipe.checkpoints.layout import CONTROLNET
from genpipe.models.control import Controls, Shown
from genpipe.models.controlnet import ControlNet, ControlNetConfig
from genpipe.models.cpu.forms import PACKABLE, Forms
from genpipe.models.cuda.graphs import Graphs
from genpipe.models.denoiser import UNetDenoiser
from genpipe.models.prepare import prepare
from tests.models.conftest import SDXL_UNET, UNET_BASE, Copy, UNetPair, their_inputs, unet_conditioning
from tests.models.cuda.test_graphs import Recall

CPU, FP32 = torch.device("cpu"), torch.float32
TIMES = [981.0, 499.5, 0.0]
OWN: dict[str, Any] = {"conditioning_embedding_out_channels": (8, 12, 16)}
PLAIN: dict[str, Any] = {key: value for key, value in UNET_BASE.items() if key not in ("up_block_types", "sample_size")}
XL: dict[str, Any] = {key: value for key, value in SDXL_UNET.items() if key != "up_block_types"}
FORMS: dict[str, dict[str, Any]] = {
    "Stable Diffusion 1": {},
    "Stable Diffusion 2": {"attention_head_dim": (2, 4, 6), "use_linear_projection": True},
    "SDXL": XL,
    "SDXL without attention": {**XL, "down_block_types": ("DownBlock2D",) * 3, "mid_block_type": "UNetMidBlock2D"},
    "channels of the image in the other order": {"controlnet_conditioning_channel_order": "bgr"},
    "means alone": {"global_pool_conditions": True},
}


def pair(copy_weights: Copy, seed: int = 0, **settings: Any) -> tuple[ControlNet, Any]:
    """Our ControlNet and diffusers', of the same random weights: none of its convolutions is at zero."""
    torch.manual_seed(seed)
    theirs: Any = ControlNetModel(**{**PLAIN, **OWN, **settings})
    for name, parameter in theirs.named_parameters():
        if name.startswith(("controlnet_", "controlnet_cond_embedding.conv_out")) and parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.1)
    ours = ControlNet(ControlNetConfig.from_dict(theirs.config))
    copy_weights(theirs, ours, CONTROLNET)
    return ours, theirs


def close(found: Any, expected: Any) -> bool:
    """Within 1e-5, and beyond 10 within the rounding of as many digits: the deepest skips reach 14."""
    return len(found) == len(expected) and all(
        one.shape[1:] == other.shape[1:] and (one - other).abs().max() <= 1e-5 * max(1.0, float(other.abs().max()) / 10)
        for one, other in zip(found, expected, strict=True)
    )


@torch.inference_mode()
@pytest.mark.parametrize("name", FORMS)
def test_a_controlnet_computes_what_diffusers_computes(name: str, copy_weights: Copy) -> None:
    ours, theirs = pair(copy_weights, **FORMS[name])
    prepare(ours, device=CPU, dtype=FP32, forms=Forms(packed=PACKABLE))
    conditioning = unet_conditioning(ours, 2)  # type: ignore[arg-type] - its config is what is read
    latents, image = torch.randn(2, 4, 9, 7), torch.rand(2, 3, 36, 28)
    time, given = torch.tensor([499.0, 20.0]), their_inputs(conditioning)
    down, middle = theirs(latents, time, controlnet_cond=image, return_dict=False, **given)
    assert min(float(each.std()) for each in (*down[1:], middle)) > 0.01  # else anything would agree
    found = ours(latents, time, conditioning.context, image, pooled=conditioning.pooled, time_ids=conditioning.time_ids)
    assert close(found, [*down, middle])


def their_output(unet: Any, nets: list[Any], latents: Tensor, time: float, given: Any, **shown: Any) -> Tensor:
    """What diffusers' U-Net gives with the sum of what its ControlNets give."""
    total: Any = None
    for net, image, scale in zip(nets, shown["images"], shown["scales"], strict=True):
        image = torch.cat([image] * (len(latents) // len(image)))
        down, middle = net(latents, time, controlnet_cond=image, conditioning_scale=scale, return_dict=False, **given)
        both = [*down, middle]
        total = both if total is None else [one + other for one, other in zip(total, both, strict=True)]
    return unet(
        latents, time, down_block_additional_residuals=total[:-1], mid_block_additional_residual=total[-1], **given
    ).sample


@torch.inference_mode()
@pytest.mark.parametrize("recorded", [False, True])
@pytest.mark.parametrize("name", ["Stable Diffusion 1", "SDXL"])
def test_a_unet_with_two_computes_what_diffusers_computes(
    name: str, recorded: bool, unet_pair: UNetPair, copy_weights: Copy
) -> None:
    unet, their_unet = unet_pair(**({} if name == "Stable Diffusion 1" else SDXL_UNET))
    nets, their_nets = zip(*(pair(copy_weights, seed, **FORMS[name]) for seed in (1, 2)), strict=True)
    for network in (unet, *nets):
        prepare(network, device=CPU, dtype=FP32, forms=Forms(packed=PACKABLE))
    conditioning = unet_conditioning(unet, 6)
    images = [torch.rand(3, 3, 36, 28), torch.rand(3, 3, 36, 28)]
    shown = [Shown(images[0], [0.7] * 3, TIMES), Shown(images[1], [1.5] * 3, TIMES)]
    control = Controls(nets, shown, TIMES, conditioning)
    more: Any = {"evaluate": Graphs(unet, device=CPU, capture=Recall())} if recorded else {}
    denoiser = UNetDenoiser(unet, TIMES, conditioning, control=control, **more)
    for time in TIMES:
        latents = torch.randn(3, 4, 9, 7)
        expected = their_output(
            their_unet,
            list(their_nets),
            torch.cat([latents] * 2),
            time,
            their_inputs(conditioning),
            images=images,
            scales=[0.7, 1.5],
        )
        found = denoiser(latents, time)
        assert (found - expected).abs().max() <= 2e-5
        assert (found - UNetDenoiser(unet, TIMES, conditioning)(latents, time)).abs().max() > 0.01
        assert (denoiser(latents, time, last=True) - expected[3:]).abs().max() <= 2e-5


@torch.inference_mode()
@pytest.mark.parametrize("guess", [False, True])
def test_each_image_is_shown_its_own_at_its_own_scale_and_step(
    guess: bool, unet_pair: UNetPair, copy_weights: Copy
) -> None:
    unet, _ = unet_pair()
    network, _ = pair(copy_weights)
    conditioning, images = unet_conditioning(unet, 4), torch.rand(2, 3, 32, 32)
    latents, scales, times = torch.randn(2, 4, 8, 8), [0.5, 1.25], [981.0, 0.0]
    shown = Shown(images, scales, TIMES)
    together = Controls([network], [shown], TIMES, conditioning, guess=guess)(latents, times).residuals
    assert together is not None
    for k in range(2):
        own = conditioning.rows([k, 2 + k])
        only = Shown(images[k : k + 1], scales[k : k + 1], TIMES)
        alone = Controls([network], [only], TIMES, own, guess=guess)(latents[k : k + 1], times[k]).residuals
        assert alone is not None
        rows = [[k, 2 + k] if len(each) == 4 else [k] for each in together]
        assert close([each[index] for each, index in zip(together, rows, strict=True)], alone)


@torch.inference_mode()
@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("name", ["Stable Diffusion 1", "means alone"])
def test_guess_mode_is_that_of_diffusers(name: str, guided: bool, copy_weights: Copy) -> None:
    ours, theirs = pair(copy_weights, **FORMS[name])
    conditioning = unet_conditioning(ours, 4 if guided else 2)  # type: ignore[arg-type]
    latents, image = torch.randn(2, 4, 8, 8), torch.rand(2, 3, 32, 32)
    down, middle = theirs(
        latents,
        TIMES[1],
        controlnet_cond=image,
        conditioning_scale=0.8,
        guess_mode=True,
        return_dict=False,
        encoder_hidden_states=conditioning.context[-2:],
    )
    control = Controls([ours], [Shown(image, [0.8] * 2, TIMES)], TIMES, conditioning, guess=True)
    found = control(latents, TIMES[1]).residuals
    assert found is not None
    if guided:
        assert all(len(each) == 4 and not each[:2].any() for each in found)
    assert close([each[-2:] for each in found], [*down, middle])
    last = control(latents, TIMES[1], last=True).residuals
    assert last is not None and close(last, [*down, middle])


@torch.inference_mode()
def test_where_none_acts_none_is_evaluated(unet_pair: UNetPair, copy_weights: Copy) -> None:
    unet, _ = unet_pair()
    networks = [pair(copy_weights, seed)[0] for seed in (1, 2)]
    seen: list[int] = []
    for number, network in enumerate(networks):
        network.conv_in.register_forward_hook(lambda *_, number=number: seen.append(number))
    conditioning, images = unet_conditioning(unet, 2), torch.rand(1, 3, 32, 32)
    shown = [Shown(images, [1.0], TIMES[:2]), Shown(images, [1.0], TIMES[1:2])]
    denoiser = UNetDenoiser(unet, TIMES, conditioning, control=Controls(networks, shown, TIMES, conditioning))
    latents = torch.randn(1, 4, 8, 8)
    for time, expected in zip(TIMES, ([0], [0, 1], []), strict=True):
        seen.clear()
        found = denoiser(latents, time)
        assert seen == expected
        plain = UNetDenoiser(unet, TIMES, conditioning)(latents, time)
        assert torch.equal(found, plain) == (not expected)


@torch.inference_mode()
def test_what_keeps_deep_features_keeps_residuals(unet_pair: UNetPair, copy_weights: Copy) -> None:
    unet, _ = unet_pair()
    network, _ = pair(copy_weights)
    seen: list[Tensor] = []
    network.conv_in.register_forward_hook(lambda *_: seen.append(torch.empty(0)))
    conditioning = unet_conditioning(unet, 2)
    control = Controls([network], [Shown(torch.rand(1, 3, 32, 32), [1.0], TIMES)], TIMES, conditioning)
    denoiser = UNetDenoiser(unet, TIMES, conditioning, refresh=2, control=control)
    latents = torch.randn(1, 4, 8, 8)
    outputs = [denoiser(latents, time) for time in (*TIMES, TIMES[1])]
    assert len(seen) == 2 and not torch.equal(outputs[0], outputs[1])
    assert denoiser(latents, TIMES[1], last=True).shape == (1, 4, 8, 8)


@pytest.mark.parametrize(
    ("key", "value"),
    [("conditioning_channels", 4), ("controlnet_conditioning_channel_order", "gbr"), ("class_embed_type", "timestep")],
)
def test_forms_that_are_not_implemented_are_refused(key: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{key} = "):
        ControlNetConfig.from_dict({**PLAIN, **OWN, key: value})

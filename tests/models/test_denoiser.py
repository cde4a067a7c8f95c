"""The denoiser of a batch computes what diffusers' `UNet2DConditionModel` computes, and no part of it twice."""

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from genpipe.models.attention import Attention
from genpipe.models.conditioning import Conditioning
from genpipe.models.contracting import TimeEmbedding
from genpipe.models.cpu.forms import PACKABLE, Forms
from genpipe.models.cpu.winograd import WinogradConv
from genpipe.models.denoiser import JoinedDenoiser, UNetDenoiser
from genpipe.models.prepare import prepare
from tests.models.conftest import BOTH, SDXL_UNET, UNET_FAMILIES, UNetPair, their_inputs, unet_conditioning

CPU, FP32 = torch.device("cpu"), torch.float32
FORMS = Forms(packed=PACKABLE, phases=True, blocked={1024: 16})
TIMES = [981.0, 499.5, 0.0]
UNETS: dict[str, dict[str, Any]] = {
    "Stable Diffusion 1": {},
    "Stable Diffusion 2.1": {
        "attention_head_dim": [2, 4, 6],
        "use_linear_projection": True,
        "upcast_attention": True,
    },
    "attention below the first level": {
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    },
    "attention in the middle alone": {"down_block_types": ("DownBlock2D",) * 3, "up_block_types": ("UpBlock2D",) * 3},
    "only cross-attention": {"only_cross_attention": True},
    "deep transformers": {"transformer_layers_per_block": 2},
}


def calls(module: nn.Module) -> list[Tensor]:
    """The inputs that `module` is called with from now on."""
    seen: list[Tensor] = []
    module.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    return seen


@torch.inference_mode()
@pytest.mark.parametrize("prompts", [1, 2])
@pytest.mark.parametrize("name", UNETS)
def test_a_denoiser_computes_what_diffusers_computes(name: str, prompts: int, unet_pair: UNetPair) -> None:
    ours, theirs = unet_pair(**UNETS[name])
    prepare(ours, device=CPU, dtype=FP32, forms=FORMS)
    torch.manual_seed(2)
    context = torch.randn(prompts * 3, 7, 24)
    denoiser = UNetDenoiser(ours, TIMES, Conditioning(context))
    for timestep in TIMES:
        latents = torch.randn(3, 4, 8, 12)
        expected = theirs(torch.cat([latents] * prompts), timestep, context).sample
        assert float(expected.std()) > 0.1  # else anything would agree
        assert (denoiser(latents, timestep) - expected).abs().max() <= 1e-5


@torch.inference_mode()
@pytest.mark.parametrize(("height", "width"), [(9, 8), (7, 11), (10, 6), (5, 5)])
def test_any_latent_size(height: int, width: int, unet_pair: UNetPair) -> None:
    ours, theirs = unet_pair()
    prepare(ours, device=CPU, dtype=FP32, forms=FORMS)
    torch.manual_seed(2)
    latents, context = torch.randn(1, 4, height, width), torch.randn(1, 7, 24)
    expected = theirs(latents, TIMES[0], context).sample
    assert (UNetDenoiser(ours, TIMES, Conditioning(context))(latents, TIMES[0]) - expected).abs().max() <= 1e-5


@torch.inference_mode()
def test_a_distilled_denoiser_takes_the_guidance_scale(unet_pair: UNetPair) -> None:
    ours, _ = unet_pair(time_cond_proj_dim=10)
    plain = copy.deepcopy(ours)
    latents, context = torch.randn(2, 4, 8, 8), torch.randn(2, 7, 24)
    prepare(ours, device=CPU, dtype=FP32, forms=FORMS)
    for scales in ([7.5, 7.5], [1.0, 8.5]):
        scale = torch.tensor(scales)
        expected = plain(latents, torch.full((2,), 981.0), context, guidance=scale)
        output = UNetDenoiser(ours, TIMES, Conditioning(context, guidance_scale=scale))(latents, 981.0)
        assert (output - expected).abs().max() <= 1e-5


@torch.inference_mode()
def test_what_does_not_change_is_computed_once(unet_pair: UNetPair) -> None:
    unet = prepare(unet_pair()[0], device=CPU, dtype=FP32, forms=FORMS)
    readers = [module for module in unet.modules() if isinstance(module, Attention)]
    keys = [calls(reader.key) for reader in readers]
    embeddings = [calls(module) for module in unet.modules() if isinstance(module, TimeEmbedding)]
    shared = [calls(unet.conv_in), calls(unet.down[0].transformers[0].blocks[0].attention1)]  # type: ignore[union-attr, index]
    denoiser = UNetDenoiser(unet, TIMES, Conditioning(torch.randn(4, 7, 24)))
    for timestep in TIMES:
        denoiser(torch.randn(2, 4, 8, 8), timestep)
    assert len(readers) == 11 and [len(seen) for seen in keys] == [1] * 11
    assert [len(seen) for seen in embeddings] == [1]
    assert [len(x) for seen in shared for x in seen] == [2] * 2 * len(TIMES)  # rows: pictures, not pictures and prompts


@torch.inference_mode()
@pytest.mark.parametrize("name", ["Stable Diffusion 1", "attention below the first level", "deep transformers"])
def test_kept_deep_features_are_those_of_the_step_before(name: str, unet_pair: UNetPair) -> None:
    """As DeepCache has it: all but the first convolution and the last layer stays as it was at the step before."""
    ours, theirs = unet_pair(**UNETS[name])
    context, early, late = torch.randn(4, 7, 24), torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8)
    seen: list[tuple[Any, ...]] = []
    hook = theirs.up_blocks[-1].resnets[-1].register_forward_pre_hook(lambda module, given: seen.append(given))
    theirs(torch.cat([early, early]), TIMES[0], context)
    hook.remove()
    deep = seen[0][0][:, :-16]

    def replaced(module: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
        return (torch.cat([deep, given[0][:, -16:]], dim=1), *given[1:])

    hook = theirs.up_blocks[-1].resnets[-1].register_forward_pre_hook(replaced)
    expected = theirs(torch.cat([late, late]), TIMES[1], context).sample
    hook.remove()
    whole = theirs(torch.cat([late, late]), TIMES[1], context).sample
    denoiser = UNetDenoiser(prepare(ours, device=CPU, dtype=FP32, forms=FORMS), TIMES, Conditioning(context), refresh=2)
    denoiser(early, TIMES[0])
    output = denoiser(late, TIMES[1])
    assert (output - expected).abs().max() <= 1e-5 < (output - whole).abs().max()
    again = denoiser(late, TIMES[2])  # refreshed
    assert (again - theirs(torch.cat([late, late]), TIMES[2], context).sample).abs().max() <= 1e-5


@torch.inference_mode()
def test_the_last_prompts_can_be_evaluated_alone(unet_pair: UNetPair) -> None:
    ours, theirs = unet_pair()
    context, latents = torch.randn(4, 7, 24), torch.randn(2, 4, 8, 8)
    prepare(ours, device=CPU, dtype=FP32, forms=FORMS)
    for refresh in (1, 2):
        denoiser = UNetDenoiser(ours, TIMES, Conditioning(context), refresh=refresh)
        alone = denoiser(latents, TIMES[0], last=True)
        assert (alone - theirs(latents, TIMES[0], context[2:]).sample).abs().max() <= 1e-5
        both = denoiser(latents, TIMES[1])  # what was kept of the last alone does not do for all
        assert (both - theirs(torch.cat([latents, latents]), TIMES[1], context).sample).abs().max() <= 1e-5
        assert denoiser(latents, TIMES[1], last=True).shape == latents.shape


@torch.inference_mode()
@pytest.mark.parametrize("name", UNET_FAMILIES)
def test_a_denoiser_of_every_family_takes_two_prompts_per_image(name: str, unet_pair: UNetPair) -> None:
    """What is embedded with the timestep, pooled text and sizes, differs by prompt."""
    ours, theirs = unet_pair(**UNET_FAMILIES[name])
    prepare(ours, device=CPU, dtype=FP32, forms=FORMS)
    latents, conditioning = torch.randn(3, 4, 8, 12), unet_conditioning(ours, 6)
    every_step, second = (UNetDenoiser(ours, TIMES, conditioning, refresh=refresh) for refresh in (1, 2))
    for number, timestep in enumerate(TIMES):
        expected = theirs(latents.repeat(2, 1, 1, 1), timestep, **their_inputs(conditioning)).sample
        assert float(expected.std()) > 0.1  # else anything would agree
        for denoiser in (every_step, second) if number % 2 == 0 else (every_step,):
            assert (denoiser(latents, timestep) - expected).abs().max() <= 1e-5
            assert (denoiser(latents, timestep, last=True) - expected[3:]).abs().max() <= 1e-5


@torch.inference_mode()
@pytest.mark.parametrize("name", ["Stable Diffusion 1", "SDXL", "Stable Diffusion 2.1 unCLIP"])
def test_each_image_may_have_its_own_timestep(name: str, unet_pair: UNetPair) -> None:
    ours, theirs = unet_pair(**UNET_FAMILIES[name])
    prepare(ours, device=CPU, dtype=FP32, forms=FORMS)
    latents, conditioning = torch.randn(2, 4, 8, 8), unet_conditioning(ours, 4)
    denoiser = UNetDenoiser(ours, TIMES, conditioning)
    for own in ([TIMES[2], TIMES[0]], [TIMES[1], TIMES[1]]):
        expected = theirs(latents.repeat(2, 1, 1, 1), torch.tensor(own * 2), **their_inputs(conditioning)).sample
        assert (denoiser(latents, own) - expected).abs().max() <= 1e-5
        assert (denoiser(latents, own, last=True) - expected[2:]).abs().max() <= 1e-5


@torch.inference_mode()
@pytest.mark.parametrize("prompts", [1, 2])
@pytest.mark.parametrize("name", ["Stable Diffusion 1", "SDXL", "Stable Diffusion 2.1 unCLIP"])
def test_images_of_schedules_of_their_own_are_evaluated_together(name: str, prompts: int, unet_pair: UNetPair) -> None:
    ours, theirs = unet_pair(**UNET_FAMILIES[name])
    prepare(ours, device=CPU, dtype=FP32, forms=FORMS)
    latents, conditioning = torch.randn(3, 4, 8, 8), unet_conditioning(ours, 3 * prompts)
    schedules = [[900.0, 20.0], [20.0, 700.5, 0.0], [333.0, 20.0]]
    parts = [
        UNetDenoiser(ours, schedule, conditioning.rows(range(image, 3 * prompts, 3)))
        for image, schedule in enumerate(schedules)
    ]
    joined = JoinedDenoiser([(part, False) for part in parts])
    for own in ([900.0, 0.0, 20.0], [20.0, 20.0, 20.0], [20.0, 700.5, 333.0]):
        given = their_inputs(conditioning)
        expected = theirs(latents.repeat(prompts, 1, 1, 1), torch.tensor(own * prompts), **given).sample
        assert (joined(latents, own) - expected).abs().max() <= 1e-5
    for image, part in enumerate(parts):  # one alone is bitwise what it is without the others' machinery
        x = latents[image : image + 1]
        assert torch.equal(JoinedDenoiser([(part, False)])(x, [20.0]), part(x, 20.0))


@torch.inference_mode()
def test_what_another_has_computed_is_not_computed_again(unet_pair: UNetPair) -> None:
    unet = prepare(unet_pair()[0], device=CPU, dtype=FP32, forms=FORMS)
    one, other = Conditioning(torch.randn(2, 7, 24)), Conditioning(torch.randn(2, 7, 24))
    keys, times = calls(unet.down[0].transformers[0].blocks[0].attention2.key), calls(unet.time_embedding)  # type: ignore[union-attr, index]
    first = UNetDenoiser(unet, TIMES, one)
    x = torch.randn(1, 4, 8, 8)
    for conditioning, timesteps, counts in (
        (Conditioning(one.context.clone()), TIMES, (1, 1)),
        (other, TIMES, (2, 1)),
        (one, TIMES[:2], (2, 2)),
    ):
        made = UNetDenoiser(unet, timesteps, conditioning, like=first)
        assert (len(keys), len(times)) == counts
        assert torch.equal(made(x, TIMES[0]), UNetDenoiser(unet, timesteps, conditioning)(x, TIMES[0]))
        del keys[counts[0] :], times[counts[1] :]


@torch.inference_mode()
def test_what_prompts_share_is_computed_once_per_image_whatever_their_steps(unet_pair: UNetPair) -> None:
    unet = prepare(unet_pair()[0], device=CPU, dtype=FP32, forms=FORMS)
    shared = [calls(unet.conv_in), calls(unet.down[0].transformers[0].blocks[0].attention1)]  # type: ignore[union-attr, index]
    parts = [(UNetDenoiser(unet, TIMES, Conditioning(torch.randn(2, 7, 24))), False) for _ in range(3)]
    JoinedDenoiser(parts)(torch.randn(3, 4, 8, 8), TIMES)
    assert [len(x) for seen in shared for x in seen] == [3, 3]


@torch.inference_mode()
@pytest.mark.parametrize("dtype", BOTH)
@pytest.mark.parametrize(("per_image", "winograd"), [(False, False), (True, True)])
def test_packed_forms_add_rows_that_differ(
    dtype: torch.dtype, per_image: bool, winograd: bool, unet_pair: UNetPair
) -> None:
    """They lose little more to rounding than the plain network of the same dtype does."""
    exact, _ = unet_pair(**SDXL_UNET, sample_size=64)
    forms = replace(FORMS, winograd=winograd, winograd_from=16, differences_from=16)
    plain, packed = (
        prepare(copy.deepcopy(exact), device=CPU, dtype=dtype, forms=chosen) for chosen in (Forms(), forms)
    )
    assert winograd == any(isinstance(module, WinogradConv) for module in packed.modules())
    latents, conditioning = torch.randn(2, 4, 16, 12), unet_conditioning(exact, 4)
    own = [TIMES[1], TIMES[0]] if per_image else TIMES[0]
    expected, rounded, output = (
        UNetDenoiser(unet, TIMES, conditioning)(latents, own).double() for unet in (exact, plain, packed)
    )
    errors = [float((one - expected).norm() / expected.norm()) for one in (output, rounded)]
    assert errors[0] <= (1e-5 if dtype == FP32 else 2 * errors[1]) and errors[1] < 0.05


@torch.inference_mode()
def test_prompts_that_agree_in_what_is_embedded_share_a_row(unet_pair: UNetPair) -> None:
    """So that the packed forms add it themselves, and no image's numbers depend on how many others there are."""
    ours, _ = unet_pair(**SDXL_UNET)
    prepare(ours, device=CPU, dtype=FP32, forms=FORMS)
    rows = calls(ours.time_embedding)
    conditioning = unet_conditioning(ours, 2).rows([1, 1, 1])
    latents = torch.randn(3, 4, 8, 8)
    output = UNetDenoiser(ours, TIMES, conditioning)(latents, TIMES[0])
    assert [len(x) for x in rows] == [len(TIMES)]
    for k in range(3):
        alone = UNetDenoiser(ours, TIMES, conditioning.rows([k]))(latents[k : k + 1], TIMES[0])
        assert (alone - output[k : k + 1]).abs().max() <= 1e-5


@torch.inference_mode()
@pytest.mark.parametrize("channels", [9, 8, 5])
def test_extra_channels_follow_the_latents_unscaled(channels: int, unet_pair: UNetPair) -> None:
    ours, theirs = unet_pair(in_channels=channels)
    prepare(ours, device=CPU, dtype=FP32, forms=FORMS)
    latents, context, extra = torch.randn(2, 4, 8, 8), torch.randn(4, 7, 24), torch.randn(4, channels - 4, 8, 8)
    denoiser = UNetDenoiser(ours, TIMES, Conditioning(context, extra_channels=extra))
    expected = theirs(torch.cat([latents.repeat(2, 1, 1, 1), extra], dim=1), TIMES[0], context).sample
    assert (denoiser(latents, TIMES[0]) - expected).abs().max() <= 1e-5
    assert (denoiser(latents, TIMES[0], last=True) - expected[2:]).abs().max() <= 1e-5


def test_what_the_network_does_not_take_is_refused(unet_pair: UNetPair) -> None:
    ours, _ = unet_pair()
    context = torch.zeros(1, 7, 24)
    with pytest.raises(ValueError, match="takes no pooled text and no sizes"):
        UNetDenoiser(ours, TIMES, Conditioning(context, pooled=torch.zeros(1, 20)))
    with pytest.raises(ValueError, match="takes no guidance scale"):
        UNetDenoiser(ours, TIMES, Conditioning(context, guidance_scale=torch.ones(1)))

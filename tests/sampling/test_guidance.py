import pytest
import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg

from genpipe.sampling.guidance import PREDICTION_TYPES, guided, output_from_x0, x0_from_output
from genpipe.sampling.schedule import Step

SHAPE = (2, 4, 8, 8)


def _tensors(count: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(SHAPE, generator=generator, dtype=torch.float64) for _ in range(count)]


@pytest.mark.parametrize("alpha", [0.05, 0.6, 0.999])
def test_each_prediction_of_a_known_mixture_gives_back_its_image(alpha: float) -> None:
    x0, eps = _tensors(2)
    sigma = (1 - alpha**2) ** 0.5
    step, flow_step = Step(500.0, alpha, sigma), Step(500.0, alpha, 1 - alpha)
    x, flow_x = alpha * x0 + sigma * eps, alpha * x0 + (1 - alpha) * eps
    for output, prediction_type in ((eps, "epsilon"), (alpha * eps - sigma * x0, "v_prediction"), (x0, "sample")):
        torch.testing.assert_close(x0_from_output(output, x, step, prediction_type), x0)
    torch.testing.assert_close(x0_from_output(eps - x0, flow_x, flow_step, "flow"), x0)


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_output_from_x0_undoes_x0_from_output(prediction_type: str) -> None:
    output, x = _tensors(2)
    step = Step(500.0, 0.3, 0.7) if prediction_type == "flow" else Step(500.0, 0.6, 0.8)
    x0 = x0_from_output(output, x, step, prediction_type)
    torch.testing.assert_close(output_from_x0(x0, x, step, prediction_type), output)


def test_pure_noise_says_nothing_of_v_and_still_gives_an_image() -> None:
    output, x = _tensors(2)
    assert torch.equal(x0_from_output(output, x, Step(999.0, 0.0, 1.0), "v_prediction"), -output)


def test_an_unknown_prediction_type_is_refused() -> None:
    (x,) = _tensors(1)
    for convert in (x0_from_output, output_from_x0):
        with pytest.raises(ValueError, match="unknown prediction_type 'score': choose one of epsilon"):
            convert(x, x, Step(1.0, 0.6, 0.8), "score")


@pytest.mark.parametrize("scale", [0.0, 1.0, 7.5])
def test_guidance_goes_from_the_unconditional_output_through_the_conditional(scale: float) -> None:
    uncond, cond = _tensors(2)
    torch.testing.assert_close(guided(uncond, cond, scale), (1 - scale) * uncond + scale * cond)


@pytest.mark.parametrize("rescale", [0.3, 0.7, 1.0])
def test_rescaled_guidance_is_that_of_diffusers(rescale: float) -> None:
    uncond, cond = _tensors(2)
    plain = guided(uncond, cond, 7.5)
    expected = rescale_noise_cfg(plain, cond, guidance_rescale=rescale)
    torch.testing.assert_close(guided(uncond, cond, 7.5, rescale), expected)


def test_full_rescaling_gives_each_image_the_deviation_of_its_own_conditional_output() -> None:
    uncond, cond = _tensors(2)
    cond = cond * torch.tensor([1.0, 3.0]).view(2, 1, 1, 1)
    result = guided(uncond, cond, 7.5, 1.0)
    torch.testing.assert_close(result.std((1, 2, 3)), cond.std((1, 2, 3)))

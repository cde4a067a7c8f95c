import subprocess
import sys

import pytest
import torch

from genpipe.sampling.names import SAMPLERS
from genpipe.sampling.samplers import make_sampler
from tests.sampling.conftest import OWN

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # diffusers' use of numpy

SD15 = {
    "_class_name": "PNDMScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "skip_prk_steps": True,
    "steps_offset": 1,
}
FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}


def test_each_name_makes_the_sampler_of_that_name() -> None:
    for name in SAMPLERS:
        sampler = make_sampler(name, FLOW if name.startswith("flow") else SD15)
        assert sampler.name == name
        assert sampler.prediction_type == ("flow" if name.startswith("flow") else "epsilon")


def test_without_a_name_the_file_decides() -> None:
    assert make_sampler(None, SD15).name == "pndm"
    dpm = SD15 | {"_class_name": "DPMSolverMultistepScheduler", "use_karras_sigmas": True}
    assert make_sampler(None, dpm).name == "dpmpp_2m_karras"
    assert make_sampler(None, dpm | {"algorithm_type": "sde-dpmsolver++"}).name == "dpmpp_2m_sde_karras"
    assert make_sampler("euler", dpm).name == "euler_karras"  # the key is in the file, so it is handed on
    assert make_sampler("euler_exponential", dpm).name == "euler_exponential"


def test_a_key_absent_from_the_file_takes_the_new_class_default() -> None:
    def times(name: str | None, config: dict) -> list[float]:
        return [step.timestep for step in make_sampler(name, config).schedule(3).steps[:-1]]

    silent = {key: value for key, value in SD15.items() if key != "steps_offset"}
    assert times(None, silent) == times(None, SD15 | {"steps_offset": 0}) == [667, 334, 1]  # corrected on loading
    assert times("ddim", SD15) == [667, 334, 1]  # handed on
    assert times("ddim", silent) == [666, 333, 0]  # DDIM's own default
    assert times("euler", SD15) == [999, 499.5, 0]  # no spacing in the file: Euler's is linspace
    assert times("euler", SD15 | {"timestep_spacing": "trailing"}) == [999, 666, 332]
    noted = SD15 | {"timestep_spacing": "leading", "_use_default_values": ["timestep_spacing"]}
    assert times("euler", noted) == [999, 499.5, 0]  # as a live diffusers config notes an absent key


ZERO_SNR = SD15 | {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}


@pytest.mark.parametrize(
    ("name", "config", "message"),
    [
        ("eulr", SD15, "unknown sampler 'eulr': did you mean euler"),
        (None, {}, "scheduler_config.json has no _class_name: name a sampler"),
        ("ddim", SD15 | {"beta_schedule": "sigmoid"}, "unknown beta_schedule 'sigmoid': choose linear"),
        (
            "ddim",
            SD15 | {"prediction_type": "score"},
            r"scheduler_config\.json: prediction_type must be .* not 'score'",
        ),
        ("euler", SD15 | {"timestep_spacing": "log"}, r"scheduler_config\.json: timestep_spacing must be .* not 'log'"),
        (
            "euler",
            SD15 | {"final_sigmas_type": "one"},
            r"scheduler_config\.json: final_sigmas_type must be .*, not 'one'",
        ),
        ("ddim", SD15 | {"trained_betas": [0.1]}, "trained_betas holds 1 values for 1000 training timesteps"),
        ("euler", ZERO_SNR | {"prediction_type": "epsilon"}, "zero terminal SNR .* does not go with .* epsilon"),
        ("heun", ZERO_SNR, "HeunDiscreteScheduler cannot start from zero terminal SNR: use ddim"),
        ("heun_karras", ZERO_SNR, "HeunDiscreteScheduler cannot start from zero terminal SNR: use ddim"),
        ("pndm", ZERO_SNR, "PNDMScheduler cannot start from zero terminal SNR: use ddim"),
        ("KDPM2DiscreteScheduler", ZERO_SNR, "KDPM2DiscreteScheduler cannot start from zero terminal SNR"),
        ("UniPCMultistepScheduler", ZERO_SNR | {"prediction_type": "epsilon"}, "zero terminal SNR .* epsilon"),
        ("flow_euler", SD15, "cannot sample a diffusion checkpoint .*PNDMScheduler.*: use euler"),
        ("euler", FLOW, "cannot sample a flow-matching checkpoint .*: use flow_euler"),
        ("UniPCMultistpScheduler", SD15, "has no scheduler .*: did you mean UniPCMultistepScheduler"),
        (None, {"_class_name": "StableDiffusionPipeline"}, "has no scheduler 'StableDiffusionPipeline'"),
        ("EDMEulerScheduler", SD15, "EDMEulerScheduler is not made for networks trained at discrete timesteps"),
        ("UniPCMultistepScheduler", SD15 | {"beta_schedule": "sigmoid2"}, "beta_schedule must be .*, not 'sigmoid2'"),
        ("UniPCMultistepScheduler", SD15 | {"beta_schedule": "sigmoid"}, "UniPCMultistepScheduler refuses: sigmoid is"),
        ("LMSDiscreteScheduler", SD15 | {"prediction_type": "score"}, "prediction_type must be .*, not 'score'"),
        ("PaintByExampleScheduler", SD15, "has no scheduler 'PaintByExampleScheduler'"),
        ("RePaintScheduler", SD15 | {"eta": 2}, "eta must be a number from 0 to 1, not 2"),
    ],
)
def test_what_cannot_be_sampled_is_refused_in_one_line(name: str | None, config: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        make_sampler(name, config)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("steps", [0, -1, 1001, 2.5, True, "20"])
def test_bad_step_counts_are_refused(steps: int) -> None:
    for name in ("euler", "UniPCMultistepScheduler"):
        with pytest.raises(ValueError, match=f"steps must be a whole number from 1 to 1000, not {steps!r}"):
            make_sampler(name, SD15).schedule(steps)


def test_lcm_refuses_more_steps_than_it_was_distilled_at() -> None:
    with pytest.raises(ValueError, match="steps 51 is more than the 50"):
        make_sampler("lcm", SD15).schedule(51)


class _Noise:
    """Zeros wherever x is."""

    generators = (torch.Generator(),)

    def __init__(self, x: torch.Tensor) -> None:
        self.x = x

    def __call__(self) -> torch.Tensor:
        return torch.zeros_like(self.x)


@pytest.mark.parametrize("name", OWN)
def test_no_step_waits_for_the_device(name: str) -> None:
    """On the meta device there is nothing to wait for: reading any value raises."""
    sampler = make_sampler(name, FLOW if name.startswith("flow") else SD15)
    x = torch.ones(2, 4, 8, 8, device="meta")
    latents = list(sampler.sample(lambda x, step: x / 2, x, sampler.schedule(6), _Noise(x)))
    assert len(latents) == 6
    assert all(y.shape == x.shape and y.dtype == torch.float32 and y.is_meta for y in latents)


def test_what_the_adapter_cannot_step_is_refused_in_one_line() -> None:
    sampler = make_sampler("KDPM2DiscreteScheduler", SD15 | {"prediction_type": "sample"})
    x = torch.ones(1, 4, 8, 8)
    with pytest.raises(ValueError, match="KDPM2DiscreteScheduler refuses: prediction_type not implemented yet"):
        list(sampler.sample(lambda x, step: x, x, sampler.schedule(3), _Noise(x)))


def test_our_own_samplers_import_neither_diffusers_nor_transformers() -> None:
    code = (
        "import sys; from genpipe.sampling.samplers import make_sampler; "
        "make_sampler('euler', {}).schedule(5); print({'diffusers', 'transformers'} & set(sys.modules))"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "set()"

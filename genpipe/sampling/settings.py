"""A sampler's settings: what a scheduler_config.json hands on to the class that will run, and that class's defaults.

The rules are those of diffusers' `NewScheduler.from_config(old.config)`: a key in the file is passed on, a key absent
from it takes the new class's default. Two corrections that `StableDiffusionPipeline` makes on loading come first.
"""

import math
from collections.abc import Mapping
from typing import Any

from genpipe.sampling.names import NO_RESPACING

Settings = dict[str, Any]

_BETAS: Settings = {
    "num_train_timesteps": 1000,
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "trained_betas": None,
    "prediction_type": "epsilon",
    "steps_offset": 0,
}
_LATENT_BETAS = _BETAS | {"beta_start": 0.00085, "beta_end": 0.012}
# How the noise levels of `use_dynamic_shifting` depend on the image's size; the defaults are FLUX's.
SIZE_SHIFT: Settings = {"base_image_seq_len": 256, "max_image_seq_len": 4096, "base_shift": 0.5, "max_shift": 1.15}

# What diffusers' classes take where a file is silent.
DEFAULTS: dict[str, Settings] = {
    "PNDMScheduler": _BETAS | {"timestep_spacing": "leading", "set_alpha_to_one": False, "skip_prk_steps": False},
    "DDIMScheduler": _BETAS
    | {"timestep_spacing": "leading", "set_alpha_to_one": True, "rescale_betas_zero_snr": False, "thresholding": False},
    "EulerDiscreteScheduler": _BETAS
    | NO_RESPACING
    | {
        "timestep_spacing": "linspace",
        "rescale_betas_zero_snr": False,
        "final_sigmas_type": "zero",
        "interpolation_type": "linear",
        "timestep_type": "discrete",
        "sigma_min": None,
        "sigma_max": None,
    },
    "EulerAncestralDiscreteScheduler": _BETAS | {"timestep_spacing": "linspace", "rescale_betas_zero_snr": False},
    "HeunDiscreteScheduler": _LATENT_BETAS | NO_RESPACING | {"timestep_spacing": "linspace"},
    "DPMSolverMultistepScheduler": _BETAS
    | NO_RESPACING
    | {
        "timestep_spacing": "linspace",
        "rescale_betas_zero_snr": False,
        "final_sigmas_type": "zero",
        "algorithm_type": "dpmsolver++",
        "solver_order": 2,
        "solver_type": "midpoint",
        "lower_order_final": True,
        "euler_at_final": False,
        "thresholding": False,
        "use_lu_lambdas": False,
        "use_flow_sigmas": False,
        "lambda_min_clipped": -math.inf,
        "variance_type": None,
    },
    "LCMScheduler": _LATENT_BETAS
    | {
        "beta_schedule": "scaled_linear",
        "timestep_scaling": 10.0,
        "original_inference_steps": 50,
        "rescale_betas_zero_snr": False,
        "thresholding": False,
    },
    "FlowMatchEulerDiscreteScheduler": NO_RESPACING
    | SIZE_SHIFT
    | {
        "num_train_timesteps": 1000,
        "shift": 1.0,
        "use_dynamic_shifting": False,
        "time_shift_type": "exponential",
        "shift_terminal": None,
        "invert_sigmas": False,
        "stochastic_sampling": False,
    },
}

# The values that genpipe's solvers are written for. A class set otherwise runs through the diffusers adapter.
_IMPLEMENTED: dict[str, tuple[Any, ...]] = {
    "prediction_type": ("epsilon", "v_prediction", "sample"),
    "skip_prk_steps": (True,),
    "thresholding": (False,),
    "interpolation_type": ("linear",),
    "timestep_type": ("discrete",),
    "sigma_min": (None,),
    "sigma_max": (None,),
    "use_beta_sigmas": (False,),
    "algorithm_type": ("dpmsolver++", "sde-dpmsolver++"),
    "solver_order": (2,),
    # The types of other multistep solvers: DPMSolverMultistepScheduler reads each as midpoint.
    "solver_type": ("midpoint", "logrho", "bh1", "bh2"),
    "use_lu_lambdas": (False,),
    "use_flow_sigmas": (False,),
    "lambda_min_clipped": (-math.inf,),
    "variance_type": (None,),
    "shift_terminal": (None,),
    "invert_sigmas": (False,),
    "stochastic_sampling": (False,),
}

_CHOICES: dict[str, tuple[str, ...]] = {
    "prediction_type": ("epsilon", "v_prediction", "sample", "flow_prediction"),
    "beta_schedule": ("linear", "scaled_linear", "squaredcos_cap_v2"),
    "timestep_spacing": ("linspace", "leading", "trailing"),
    "final_sigmas_type": ("zero", "sigma_min"),
}


def inherited(config: Mapping[str, Any], class_name: str) -> Settings:
    """What the file `config` hands on to `class_name`, which may use only some of it."""
    absent = config.get("_use_default_values", ())  # how diffusers notes which of a live config's keys no file held
    given = {key: value for key, value in config.items() if not key.startswith("_") and key not in absent}
    # On loading, the correction fills a gap as well; once the sampler is switched, a gap is the new class's default.
    if "steps_offset" in given or config.get("_class_name") == class_name:
        given["steps_offset"] = 1
    # Latents do not end at -1 and 1 as pictures do. DDIM's own default would clip them too.
    given["clip_sample"] = False
    return given


def completed(class_name: str, given: Settings) -> Settings:
    """The settings of a class in `DEFAULTS`: those given that it knows, and its defaults for the rest.

    Raises ValueError that names the first setting whose value is not one of the known.
    """
    defaults = DEFAULTS[class_name]
    settings = defaults | {key: value for key, value in given.items() if key in defaults}
    for key, choices in _CHOICES.items():
        ignored = key == "beta_schedule" and settings.get("trained_betas") is not None
        if key in settings and settings[key] not in choices and not ignored:
            raise ValueError(
                f"unknown {key} {settings[key]!r} in the scheduler config: it must be one of {', '.join(choices)}"
            )
    return settings


def implemented(settings: Settings) -> bool:
    """Whether genpipe's own solvers do what these settings say."""
    return all(settings[key] in values for key, values in _IMPLEMENTED.items() if key in settings)


def size_shift(settings: Mapping[str, Any], image_tokens: int | None) -> float:
    """How far `use_dynamic_shifting` moves the noise levels of an image of so many tokens: diffusers' `mu`.

    It is `base_shift` at `base_image_seq_len` tokens, `max_shift` at `max_image_seq_len`, and linear between and beyond,
    as in diffusers' FLUX and SD 3 pipelines (`calculate_shift`). What the settings lack is FLUX's.

    Raises:
        ValueError: the number of tokens is not given.
    """
    if image_tokens is None:
        raise ValueError(
            "this checkpoint shifts its noise levels by the image's size (use_dynamic_shifting): give image_tokens"
        )
    shift = {key: settings.get(key, default) for key, default in SIZE_SHIFT.items()}
    tokens = shift["base_image_seq_len"], shift["max_image_seq_len"]
    slope = (shift["max_shift"] - shift["base_shift"]) / (tokens[1] - tokens[0])
    return image_tokens * slope + (shift["base_shift"] - slope * tokens[0])


def refuse_zero_snr(class_name: str, prediction_type: str, *, able: bool) -> None:
    """Raise ValueError unless `class_name` (`able`: it has the setting) can start from alpha = 0 with this prediction."""
    if prediction_type == "epsilon":
        raise ValueError(
            "zero terminal SNR (rescale_betas_zero_snr) does not go with prediction_type epsilon: of pure noise the noise "
            "says nothing; it takes a checkpoint with v_prediction or sample"
        )
    if not able:
        raise ValueError(f"{class_name} cannot start from zero terminal SNR: use ddim, euler, euler_a or dpmpp_2m")

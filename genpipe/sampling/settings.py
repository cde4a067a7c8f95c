"""A sampler's settings: what a scheduler_config.json hands on to the class that will run, and that class's defaults.

The rules are those of diffusers' `NewScheduler.from_config(old.config)`: a key in the file is passed on, a key absent
from it takes the new class's default. Two corrections that `StableDiffusionPipeline` makes on loading come first.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from genpipe.checks import FLAG, NULL, Kinds, check, list_of, number, one_of, whole
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

# What each key may hold, whichever class it is handed to.
_RATIO, _POSITIVE = number(0, 1), number(0, 1e6, above=True)
_BETA = number(1e-6, 0.999)  # less is lost in float32, more leaves nothing of an image
KINDS: Kinds = {
    **dict.fromkeys(
        (
            *("clip_sample", "euler_at_final", "invert_sigmas", "lower_order_final", "predict_x0", "set_alpha_to_one"),
            *(
                "rescale_betas_zero_snr",
                "skip_prk_steps",
                "stochastic_sampling",
                "thresholding",
                "use_dynamic_shifting",
            ),
            *("use_flow_sigmas", "use_lu_lambdas"),
        ),
        FLAG,
    ),
    **dict.fromkeys(NO_RESPACING, FLAG | NULL),
    "num_train_timesteps": whole(1, 100_000),
    "beta_start": _BETA,
    "beta_end": _BETA,
    "beta_schedule": one_of("linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid"),
    "trained_betas": NULL | list_of(_BETA, 1, 100_000),
    "prediction_type": one_of("epsilon", "v_prediction", "sample", "flow_prediction"),
    "timestep_spacing": one_of("linspace", "leading", "trailing"),
    "timestep_type": one_of("discrete", "continuous"),
    "steps_offset": whole(0, 999),
    "interpolation_type": one_of("linear", "log_linear"),
    "final_sigmas_type": one_of("zero", "sigma_min"),
    "sigma_min": NULL | _POSITIVE,
    "sigma_max": NULL | _POSITIVE,
    "algorithm_type": one_of(
        *("dpmsolver", "dpmsolver++", "sde-dpmsolver", "sde-dpmsolver++"),
        *("deis", "data_prediction", "noise_prediction"),
    ),
    "solver_type": one_of("midpoint", "heun", "logrho", "bh1", "bh2"),
    "solver_order": whole(1, 10),
    "solver_p": NULL,
    "predictor_order": whole(1, 4),
    "corrector_order": whole(0, 4),
    "disable_corrector": list_of(whole(0, 100_000), 0, 1000),
    "tau_func": NULL,
    "lambda_min_clipped": number(-1e9, 1e9) | one_of(-math.inf),
    "variance_type": NULL
    | one_of("fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log", "learned", "learned_range"),
    "eta": _RATIO,
    "noise_sampler_seed": NULL | whole(0, 2**63 - 1),
    "dynamic_thresholding_ratio": _RATIO,
    "sample_max_value": _POSITIVE,
    "clip_sample_range": _POSITIVE,
    "snr_shift_scale": _POSITIVE,
    "timestep_scaling": _POSITIVE,
    "original_inference_steps": whole(1, 100_000),
    "shift": number(0, 1000, above=True),
    "flow_shift": number(0, 1000, above=True),
    "shift_terminal": NULL | number(0, 0.999),
    "time_shift_type": one_of("exponential", "linear"),
    "base_shift": number(-20, 20),
    "max_shift": number(-20, 20),
    "base_image_seq_len": whole(1, 10_000_000),
    "max_image_seq_len": whole(1, 10_000_000),
    "scale_factors": NULL | list_of(_POSITIVE, 0, 1000),
    "upscale_mode": one_of("nearest", "linear", "bilinear", "bicubic", "trilinear", "area", "nearest-exact"),
}


def inherited(config: Mapping[str, Any], class_name: str) -> Settings:
    """What the file `config` hands on to `class_name`, which may use only some of it."""
    absent = config.get("_use_default_values")  # how diffusers notes which of a live config's keys no file held
    absent = absent if isinstance(absent, list | tuple) else ()
    given = {key: value for key, value in config.items() if not key.startswith("_") and key not in absent}
    # null is false to diffusers' classes, where they do not stumble over it.
    given = {key: value for key, value in given.items() if value is not None or key not in NO_RESPACING}
    # On loading, the correction fills a gap as well; once the sampler is switched, a gap is the new class's default.
    if "steps_offset" in given or config.get("_class_name") == class_name:
        given["steps_offset"] = 1
    # Latents do not end at -1 and 1 as pixels do. DDIM's own default would clip them too.
    given["clip_sample"] = False
    return given


def completed(class_name: str, given: Settings) -> Settings:
    """The settings of a class in `DEFAULTS`: those given that it knows, and its defaults for the rest.

    Raises:
        ValueError: as `check_settings`.
    """
    defaults = DEFAULTS[class_name]
    settings = defaults | {key: value for key, value in given.items() if key in defaults}
    check_settings(settings)
    return settings


def check_settings(settings: Mapping[str, Any]) -> None:
    """Hold the settings of one class to `KINDS`, and to each other.

    Raises:
        ValueError: a value is not one that the key can have; names the file, the key, the value and what is allowed.
    """
    unread = ("beta_schedule", "beta_start", "beta_end") if settings.get("trained_betas") is not None else ()
    try:
        check({key: value for key, value in settings.items() if key not in unread}, KINDS)
        train_steps = settings.get("num_train_timesteps", 1000)
        betas, distilled = settings.get("trained_betas"), settings.get("original_inference_steps", 1)
        if betas is not None and len(betas) != train_steps:
            raise ValueError(f"trained_betas holds {len(betas)} values for {train_steps} training timesteps")
        if distilled > train_steps:
            raise ValueError(
                f"original_inference_steps must be at most num_train_timesteps {train_steps}, not {distilled}"
            )
        tokens = settings.get("base_image_seq_len"), settings.get("max_image_seq_len")
        if tokens[0] is not None and tokens[0] == tokens[1]:
            raise ValueError(f"base_image_seq_len and max_image_seq_len must differ, and both are {tokens[0]}")
    except ValueError as error:
        raise ValueError(f"scheduler_config.json: {error}") from None


def check_alphas(alphas_squared: Sequence[float], *, zero_snr: bool) -> None:
    """Check that each training timestep has noise and signal; with `zero_snr` the last may have no signal.

    Raises:
        ValueError: one has not; says which.
    """
    for timestep, square in enumerate(alphas_squared):
        if not 0 < square < 1 and not (zero_snr and timestep == len(alphas_squared) - 1):
            raise ValueError(
                f"scheduler_config.json: its betas leave {'no signal' if square <= 0 else 'no noise'} at timestep "
                f"{timestep}: beta_start 0.00085 and beta_end 0.012 are Stable Diffusion's"
            )


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
            "this checkpoint shifts its noise levels by the image's size: give image_tokens, or set use_dynamic_shifting "
            "to false in its scheduler_config.json"
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

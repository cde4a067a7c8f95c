"""`make_sampler`: a name and a checkpoint's scheduler_config.json become a schedule and a solver."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any

from genpipe.sampling import levels, solvers
from genpipe.sampling import schedule as schedules
from genpipe.sampling import settings as rules
from genpipe.sampling.names import SOLVERS, SPACINGS, canonical_name, split_name
from genpipe.sampling.sampler import Sampler
from genpipe.sampling.schedule import Schedule
from genpipe.sampling.settings import Settings
from genpipe.sampling.solvers import Solution


def make_sampler(name: str | None, config: Mapping[str, Any]) -> Sampler:
    """Make the sampler called `name` for the checkpoint whose scheduler_config.json is `config`.

    Args:
        name: any spelling that `canonical_name` takes; None means the scheduler that the file names.
        config: what it does not say is filled in as `settings` tells. A class, or a setting, that genpipe has no solver
            for runs in diffusers.

    Raises:
        ValueError: an unknown name; a file that names no scheduler (name None) or holds a value that the scheduler cannot
            have; zero terminal SNR with epsilon prediction, or with a solver that cannot start from it (heun, pndm); a
            flow sampler with a diffusion checkpoint, or the reverse. One line each.
    """
    insists: Settings = {}
    if name is None:
        class_name = config.get("_class_name")
        if not isinstance(class_name, str):
            raise ValueError("scheduler_config.json has no _class_name: name a sampler")
        canonical = class_name
    else:
        canonical = canonical_name(name)
        solver, spacing = split_name(canonical)
        class_name = canonical
        if solver in SOLVERS:
            class_name, insists = SOLVERS[solver].class_name, dict(SOLVERS[solver].insists)
        if spacing is not None:
            insists |= SPACINGS[spacing].settings
    _refuse_other_kind(class_name, config.get("_class_name"))

    given = rules.inherited(config, class_name) | insists
    if class_name in _BUILDERS:
        settings = rules.completed(class_name, given)
        if given.get("rescale_betas_zero_snr") is True:
            rules.refuse_zero_snr(class_name, settings["prediction_type"], able="rescale_betas_zero_snr" in settings)
        if rules.implemented(settings):
            sampler = _BUILDERS[class_name](settings)
            return replace(sampler, name=canonical) if canonical == f"{sampler.name}_trailing" else sampler
    from genpipe.sampling.diffusers_adapter import adapted_sampler  # imports diffusers: only now is it needed

    return adapted_sampler(canonical, class_name, given)


def _refuse_other_kind(class_name: str, source: object) -> None:
    flow = class_name.startswith("FlowMatch")
    if isinstance(source, str) and source.startswith("FlowMatch") != flow:
        kind, use = ("diffusion", "euler, ddim or dpmpp_2m") if flow else ("flow-matching", "flow_euler")
        raise ValueError(f"{class_name} cannot sample a {kind} checkpoint (it comes with {source[:60]}): use {use}")


# --- One builder for each class --------------------------------------------------------------------------------------


def _alphas_squared(settings: Settings, *, positive: bool = False) -> list[float]:
    """alpha² by training timestep. positive: a terminal 0 is replaced, for the solvers that divide by alpha."""
    zero_snr = settings.get("rescale_betas_zero_snr", False)
    squares = levels.cumulative_alphas(
        settings["beta_schedule"],
        settings["beta_start"],
        settings["beta_end"],
        settings["num_train_timesteps"],
        trained_betas=settings["trained_betas"],
        zero_terminal_snr=zero_snr,
    )
    rules.check_alphas(squares, zero_snr=zero_snr)
    return [*squares[:-1], levels.TINY_ALPHA_SQUARED] if zero_snr and positive else squares


def _timesteps(settings: Settings, steps: int, *, extra: int = 0, rounded: bool = True) -> list[float]:
    spacing, train_steps = settings["timestep_spacing"], settings["num_train_timesteps"]
    return levels.spaced_timesteps(
        spacing, steps, train_steps, offset=settings["steps_offset"], extra=extra, rounded=rounded
    )


def _respacing(settings: Settings) -> str | None:
    return next((spacing for spacing in SPACINGS if settings.get(f"use_{spacing}_sigmas")), None)


def _sampler(
    solver_name: str,
    settings: Settings,
    make_schedule: Callable[[int, int | None], Schedule],
    solve: Callable[..., Solution],
    *,
    order: int = 1,
) -> Sampler:
    respacing = _respacing(settings)
    return Sampler(
        name=f"{solver_name}_{respacing}" if respacing else solver_name,
        prediction_type=settings.get("prediction_type", "flow"),
        train_steps=settings["num_train_timesteps"],
        make_schedule=lru_cache(64)(make_schedule),  # each image of a server asks for its own, and most for the same
        solve=solve,
        order=order,
    )


def _ddim(settings: Settings) -> Sampler:
    squares = _alphas_squared(settings)

    def make(steps: int, image_tokens: int | None) -> Schedule:
        return schedules.discrete_schedule(
            squares, _timesteps(settings, steps), end_at_one=settings["set_alpha_to_one"]
        )

    return _sampler("ddim", settings, make, solvers.ddim)


def _pndm(settings: Settings) -> Sampler:
    squares, prediction_type = _alphas_squared(settings), settings["prediction_type"]

    def make(steps: int, image_tokens: int | None) -> Schedule:
        return schedules.discrete_schedule(
            squares, _timesteps(settings, steps), end_at_one=settings["set_alpha_to_one"], plms=True
        )

    return _sampler("pndm", settings, make, partial(solvers.pndm, prediction_type=prediction_type))


def _of_sigmas(solver_name: str, solve: Callable[..., Solution], settings: Settings) -> Sampler:
    squares, pairs = _alphas_squared(settings, positive=True), solver_name == "heun"

    def make(steps: int, image_tokens: int | None) -> Schedule:
        return schedules.sigma_schedule(
            squares,
            _timesteps(settings, steps, rounded=False),
            respacing=_respacing(settings),
            end_at_lowest=settings.get("final_sigmas_type") == "sigma_min",
            unit_start=settings["timestep_spacing"] == "leading",
            pairs=pairs,
        )

    return _sampler(solver_name, settings, make, solve, order=2 if pairs else 1)


def _dpm(settings: Settings) -> Sampler:
    squares = _alphas_squared(settings, positive=True)
    stochastic = settings["algorithm_type"] == "sde-dpmsolver++"

    def make(steps: int, image_tokens: int | None) -> Schedule:
        return schedules.dpm_schedule(
            squares,
            _timesteps(settings, steps, extra=1),
            respacing=_respacing(settings),
            end_at_lowest=settings["final_sigmas_type"] == "sigma_min",
            nearest=settings["beta_schedule"] != "squaredcos_cap_v2",
        )

    solve = partial(
        solvers.dpmpp_2m,
        stochastic=stochastic,
        lower_order_final=settings["lower_order_final"],
        euler_at_final=settings["euler_at_final"],
    )
    return _sampler("dpmpp_2m_sde" if stochastic else "dpmpp_2m", settings, make, solve)


def _lcm(settings: Settings) -> Sampler:
    squares, train_steps = _alphas_squared(settings), settings["num_train_timesteps"]

    def make(steps: int, image_tokens: int | None) -> Schedule:
        times = levels.consistency_timesteps(steps, train_steps, settings["original_inference_steps"])
        return schedules.consistency_schedule(squares, times)

    return _sampler("lcm", settings, make, partial(solvers.lcm, timestep_scaling=settings["timestep_scaling"]))


def _flow(settings: Settings) -> Sampler:
    train_steps = settings["num_train_timesteps"]

    def make(steps: int, image_tokens: int | None) -> Schedule:
        if settings["use_dynamic_shifting"]:
            mu = rules.size_shift(settings, image_tokens)
            sigmas = levels.shifted_flow_sigmas(steps, mu, linear=settings["time_shift_type"] == "linear")
        else:
            sigmas = levels.flow_sigmas(steps, train_steps, settings["shift"])
        return schedules.flow_schedule(sigmas, train_steps, respacing=_respacing(settings))

    return _sampler("flow_euler", settings, make, solvers.euler)


_BUILDERS: dict[str, Callable[[Settings], Sampler]] = {
    "PNDMScheduler": _pndm,
    "DDIMScheduler": _ddim,
    "EulerDiscreteScheduler": partial(_of_sigmas, "euler", solvers.euler),
    "EulerAncestralDiscreteScheduler": partial(_of_sigmas, "euler_a", solvers.euler_a),
    "HeunDiscreteScheduler": partial(_of_sigmas, "heun", solvers.heun),
    "DPMSolverMultistepScheduler": _dpm,
    "LCMScheduler": _lcm,
    "FlowMatchEulerDiscreteScheduler": _flow,
}

"""Parts of a schedule against diffusers' pipelines: img2img, SDXL's base and refiner, inpainting, steps asked for by hand."""

import inspect
from types import SimpleNamespace
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from genpipe.sampling.guidance import x0_from_output
from genpipe.sampling.names import SAMPLERS, split_name
from genpipe.sampling.sampler import Sampler
from genpipe.sampling.samplers import make_sampler
from genpipe.sampling.schedule import Step
from genpipe.sampling.solvers import Evaluation
from tests.sampling.conftest import (
    SCHEDULER_FILES,
    SeededNoise,
    check,
    diffusers_part,
    genpipe_run,
    network,
    switched,
)

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

IMAGE = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(9)).clamp(-2, 2)
SD15, SDXL = SCHEDULER_FILES["sd15"], SCHEDULER_FILES["sd15"] | {"timestep_spacing": "leading"}
# One spacing of each solver beside its plain form.
NAMES = [name for name in SAMPLERS if split_name(name)[1] in (None, "karras") and not name.startswith("flow")]


def started(pipeline: str, scheduler: Any, steps: int, *args: Any) -> int:
    """The evaluation that a pipeline of diffusers begins at."""
    scheduler.set_timesteps(steps)
    times, _ = getattr(diffusers, pipeline).get_timesteps(SimpleNamespace(scheduler=scheduler), steps, *args)
    return len(scheduler.timesteps) - len(times)


@pytest.mark.parametrize("name", [*NAMES, "SASolverScheduler"])
@pytest.mark.parametrize("strength", [0.2, 0.5, 1.0])
def test_img2img_is_that_of_diffusers(name: str, strength: float) -> None:
    for file, steps in ((SD15, 20), (SCHEDULER_FILES["sd21"], 5)):
        scheduler = switched(file, name)
        start = started("StableDiffusionImg2ImgPipeline", scheduler, steps, strength, "cpu")
        theirs, _ = diffusers_part(scheduler, start, len(scheduler.timesteps), IMAGE)
        ours = genpipe_run(name, file, steps, image=IMAGE, strength=strength)
        check(ours, theirs, f"{name}, strength {strength} of {steps} steps")


def test_strengths_that_leave_no_whole_number_of_steps_are_rounded_as_in_diffusers() -> None:
    scheduler, sampler = switched(SD15, "ddim"), make_sampler("ddim", SD15)
    for steps in (3, 7, 10, 29, 50):
        for strength in (0.29, 0.333, 0.57, 0.7, 0.75, 0.99):
            start = started("StableDiffusionImg2ImgPipeline", scheduler, steps, strength, "cpu")
            if start == steps:
                with pytest.raises(ValueError, match="is not one whole step: use at least"):
                    sampler.schedule(steps, strength=strength)
            else:
                assert sampler.schedule(steps, strength=strength).before == start


@pytest.mark.parametrize("strength", [0.15, 0.2, 0.5, 0.77, 1.0])
@pytest.mark.parametrize("name", ["flow_euler", "FlowMatchHeunDiscreteScheduler"])
def test_img2img_of_a_flow_is_that_of_sd3(name: str, strength: float) -> None:
    file = SCHEDULER_FILES["flow"]
    scheduler = switched(file, name)
    for steps in (5, 10, 28):
        start = started("StableDiffusion3Img2ImgPipeline", scheduler, steps, strength, "cpu")
        theirs, _ = diffusers_part(scheduler, start, len(scheduler.timesteps), IMAGE)
        check(genpipe_run(name, file, steps, image=IMAGE, strength=strength), theirs, f"{name}, {steps} steps")


def cutoff(scheduler: Any, share: float) -> int:
    """How many evaluations SDXL's base makes before `denoising_end`, less the half of a step of two evaluations."""
    lowest = round(1000 - share * 1000)
    count = len([t for t in scheduler.timesteps if t >= lowest])
    return count - (count % scheduler.order if count < len(scheduler.timesteps) else 0)


@pytest.mark.parametrize("name", NAMES)
def test_base_and_refiner_are_those_of_sdxl(name: str) -> None:
    scheduler = switched(SDXL, name)
    for steps, share in ((10, 0.8), (25, 0.8), (7, 0.3)):
        refined = started("StableDiffusionXLImg2ImgPipeline", scheduler, steps, 0.3, "cpu", share)
        stop = cutoff(scheduler, share)
        assert refined == stop
        base, _ = diffusers_part(scheduler, 0, stop)
        check(genpipe_run(name, SDXL, steps, last=share), base, f"{name}, base, {share} of {steps} steps")
        scheduler.set_timesteps(steps)
        refiner, _ = diffusers_part(scheduler, stop, len(scheduler.timesteps), IMAGE)
        ours = genpipe_run(name, SDXL, steps, image=IMAGE, first=share)
        check(ours, refiner, f"{name}, refiner, {share} of {steps} steps")


@pytest.mark.parametrize("name", ["ddim", "euler", "euler_karras", "euler_a", "heun", "lcm", "ddpm", "dpm2"])
def test_a_schedule_drawn_in_two_parts_ends_where_the_whole_does(name: str) -> None:
    """Of solvers without a history. The noise goes on where the first part left it."""
    sampler = make_sampler(name, SDXL)

    def run(noise: SeededNoise, x: Tensor | None = None, **part: Any) -> Tensor:
        schedule = sampler.schedule(12, **part)
        x = noise() * schedule.initial_scale if x is None else x
        return list(sampler.sample(denoiser(sampler), x, schedule, noise))[-1]

    noise = SeededNoise()
    for share in (0.4, 0.8):
        noise = SeededNoise()
        halves = run(noise, run(noise, last=share), first=share)
        torch.testing.assert_close(halves, run(SeededNoise()), rtol=1e-5, atol=1e-5)
    assert sampler.schedule(12, first=0.8).after == 0 < sampler.schedule(12, first=0.8).before


def denoiser(sampler: Sampler) -> Any:
    return lambda x, step: x0_from_output(network(x, step.timestep), x, step, sampler.prediction_type)


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ({"strength": -0.1}, "strength must be a number from 0 to 1, not -0.1"),
        ({"strength": 1.5}, "strength must be a number from 0 to 1, not 1.5"),
        ({"strength": float("nan")}, "strength must be a number from 0 to 1, not nan"),
        ({"strength": "0.5"}, "strength must be a number from 0 to 1, not '0.5'"),
        ({"first": True}, "first must be a number from 0 to 1, not True"),
        ({"strength": 0}, "strength 0 of 20 steps is not one whole step: use at least 0.05"),
        ({"strength": 0.04}, "strength 0.04 of 20 steps is not one whole step: use at least 0.05"),
        ({"strength": 0.5, "first": 0.8}, "strength 0.5 and first 0.8 both say where to begin: give one of them"),
        ({"first": 0.8, "last": 0.8}, "no step lies between first 0.8 and last 0.8 of 20 steps: move them apart"),
        ({"first": 1.0}, "no step lies between first 1 and last 1 of 20 steps"),
        ({"last": 0.0}, "no step lies between first 0 and last 0 of 20 steps"),
        ({"strength": 0.2, "last": 0.5}, "no step lies between first 0 and last 0.5 of 20 steps"),
    ],
)
@pytest.mark.parametrize("name", ["pndm", "euler", "heun", "unipc", "dpm2"])
def test_parts_that_hold_no_step_are_refused(name: str, part: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_sampler(name, SD15).schedule(20, **part)


# --- Inpainting ------------------------------------------------------------------------------------------------------

MASK = torch.zeros(1, 1, 8, 8)
MASK[..., 2:6, 3:] = 1  # to be painted


@pytest.mark.parametrize("name", ["ddim", "euler", "euler_a", "dpmpp_2m", "pndm", "unipc", "ddpm"])
@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_what_is_kept_of_an_image_is_kept_as_diffusers_inpainting_keeps_it(name: str, strength: float) -> None:
    scheduler, steps = switched(SD15, name), 10
    start = started("StableDiffusionInpaintPipeline", scheduler, steps, strength, "cpu")
    noise = SeededNoise()
    unit = noise()
    times = scheduler.timesteps[start:]
    x = scheduler.add_noise(IMAGE, unit, times[:1]) if strength < 1 else unit * scheduler.init_noise_sigma
    extra = {"generator": noise.generators} if "generator" in inspect.signature(scheduler.step).parameters else {}
    for i, t in enumerate(times):
        x = scheduler.step(network(scheduler.scale_model_input(x, t), float(t)), t, x, **extra).prev_sample
        known = scheduler.add_noise(IMAGE, unit, times[i + 1 : i + 2]) if i + 1 < len(times) else IMAGE
        x = (1 - MASK) * known + MASK * x

    sampler, noise = make_sampler(name, SD15), SeededNoise()
    schedule, unit = sampler.schedule(steps, strength=strength), noise()

    def keep(x: Tensor, step: Step) -> Tensor:
        return torch.where(MASK > 0, x, step.noised(IMAGE, unit))

    ours = schedule.steps[0].noised(IMAGE, unit) if strength < 1 else unit * schedule.initial_scale
    *_, ours = sampler.sample(denoiser(sampler), ours, schedule, noise, keep=keep)
    torch.testing.assert_close(ours, x, rtol=1e-4, atol=1e-4)
    assert torch.equal((1 - MASK) * ours, (1 - MASK) * IMAGE)


# --- Step by step ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["pndm", "ddim", "euler_a", "heun", "dpmpp_2m_sde", "lcm", "unipc", "dpm2_a"])
def test_runs_of_other_lengths_can_advance_together(name: str) -> None:
    """As in a server: each evaluation serves all the runs that wait for one, and each ends where it would have alone."""
    sampler = make_sampler(name, SD15)
    counts = (4, 7, 5)
    alone = []
    for steps in counts:
        schedule, noise = sampler.schedule(steps), SeededNoise()
        x = noise() * schedule.initial_scale
        alone.append(list(sampler.sample(denoiser(sampler), x, schedule, noise)))

    waiting: dict[int, tuple[Any, Evaluation]] = {}
    for key, steps in enumerate(counts):
        schedule, noise = sampler.schedule(steps), SeededNoise()
        run = sampler.solve(noise() * schedule.initial_scale, schedule, noise)
        waiting[key] = run, next(run)
    ended: dict[int, Tensor] = {}
    while waiting:
        batch = torch.cat([asked.x for _, asked in waiting.values()])
        times = torch.tensor([asked.step.timestep for _, asked in waiting.values()]).repeat_interleave(2)
        outputs = torch.cat([network(x[None], float(t)) for x, t in zip(batch, times, strict=True)]).split(2)
        for (key, (run, asked)), output in zip(list(waiting.items()), outputs, strict=True):
            x0 = x0_from_output(output, asked.x, asked.step, sampler.prediction_type)
            try:
                waiting[key] = run, run.send((asked.x, x0))
            except StopIteration as end:
                ended[key] = end.value
                del waiting[key]
    for key, xs in enumerate(alone):
        torch.testing.assert_close(ended[key], xs[-1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["pndm", "euler", "heun", "dpmpp_2m"])
def test_every_step_is_yielded_once_and_in_order(name: str) -> None:
    sampler, noise = make_sampler(name, SD15), SeededNoise()
    schedule = sampler.schedule(6)
    run = sampler.solve(noise(), schedule, noise)
    asked, finished = next(run), []
    while isinstance(asked, Evaluation):
        finished.append(asked.done)
        try:
            asked = run.send((asked.x, asked.x))
        except StopIteration:
            break
    assert sorted(set(finished)) == list(range(6)) and finished == sorted(finished)

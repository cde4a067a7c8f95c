"""The stages of a plan, one after the other."""

from collections.abc import Iterator, Sequence

from torch import Tensor

from genpipe.pipeline.plan import Plan
from genpipe.pipeline.run import Run
from genpipe.pipeline.start import StartState
from genpipe.pipeline.upscaling import begin_upscaled, upscaled
from genpipe.request import Request


def walk(plan: Plan, requests: Sequence[Request]) -> Iterator[tuple[int, Tensor]]:
    """Yield after each step its number, from 1, and the latents (B, C, h, w) fp32 of a batch.

    Args:
        plan: of the batch.
        requests: that go through the denoiser together.
    """
    before, latents = 0, None
    for model, schedule in plan.stages:
        count = len(schedule.steps) - 1
        begin = plan.start if latents is None else (lambda _, x=latents: StartState(x))
        for index, latents in enumerate(model.denoise(requests, plan.sampler, schedule, begin, before, plan.total)):
            yield before + index % count + 1, latents  # a second attempt begins again
        before += count
    if plan.enlarged is not None and latents is not None:
        model, count = plan.stages[0][0], len(plan.enlarged.steps) - 1
        for index, larger in enumerate(upscaled(latents, requests, model, plan.sampler, plan.enlarged, plan.total)):
            yield before + index % count + 1, larger


def begin(plan: Plan, request: Request) -> Run:
    """Begin one image that is drawn together with others at other steps, the first stage of its plan; the others follow."""

    def stage(number: int, before: int, latents: Tensor | None) -> Run:
        if number == len(plan.stages):
            assert plan.enlarged is not None and latents is not None
            run = begin_upscaled(latents, request, plan.stages[0][0], plan.sampler, plan.enlarged, plan.total)
        else:
            model, schedule = plan.stages[number]
            start = plan.start if latents is None else (lambda _: StartState(latents))
            run = model.begin(request, plan.sampler, schedule, start, before, plan.total)
        if number + 1 < len(plan.stages) + (plan.enlarged is not None):
            done = run.steps
            run.then = lambda drawn: stage(number + 1, done, drawn)
        run.steps = plan.steps
        return run

    return stage(0, 0, None)

"""How the images of a batch come about: where they begin, and which network takes which steps."""

from collections.abc import Sequence
from dataclasses import dataclass

from genpipe.fit import check_guides
from genpipe.pipeline.loaded import Loaded
from genpipe.pipeline.networks import traits_of
from genpipe.pipeline.originals import Originals
from genpipe.pipeline.start import Start, choose_start, read_depth
from genpipe.request import REFINER_START, STRENGTH, UPSCALE_STRENGTH, Request
from genpipe.sampling.sampler import Sampler
from genpipe.sampling.schedule import Schedule


@dataclass(frozen=True)
class Plan:
    """How the images of a batch come about.

    Attributes:
        sampler: of all stages.
        start: draws what the first stage begins with.
        enlarged: the schedule of the second pass over an enlarged image; None where there is none.
        stages: models one after the other, each with its part of the schedule.
    """

    sampler: Sampler
    start: Start
    stages: tuple[tuple[Loaded, Schedule], ...]
    enlarged: Schedule | None = None

    @property
    def total(self) -> int:
        """The steps of all stages, without the second pass."""
        return sum(len(schedule.steps) - 1 for _, schedule in self.stages)

    @property
    def steps(self) -> int:
        """All steps."""
        return self.total + (0 if self.enlarged is None else len(self.enlarged.steps) - 1)


def make_plan(requests: Sequence[Request], sampler: Sampler, model: Loaded, refiner: Loaded | None) -> Plan:
    """Plan a batch.

    Args:
        requests: agreeing in what a batch must agree in.
        sampler: theirs.
        model: with their LoRAs.
        refiner: draws the last part of the schedule, where there is one.

    Raises:
        ValueError: no step is left to take, or an image, a mask or a control network cannot be used or is missing.
        OSError: a file cannot be read.
        NonFiniteError: the encoding of an image is not finite, in fp32 either.
    """
    first, traits = requests[0], traits_of(model.checkpoint, refines=refiner is not None)
    check_guides(first, traits)
    factor, shown = model.vae_config(first.height, first.width).factor, traits.shown
    originals = Originals.of(requests, factor)
    strength = 1.0 if first.outpaint is not None else STRENGTH
    strength = strength if first.strength is None else first.strength
    strength = 1.0 if originals is None or shown == "image" else strength
    split = 1.0 if refiner is None else REFINER_START if first.refiner_start is None else first.refiner_start
    schedule = sampler.schedule(first.steps, strength=strength, last=split)
    start = choose_start(
        originals,
        schedule,
        lambda: model.vae(first.height, first.width, tile=first.tile),
        shown=shown,
        depth=read_depth(requests, factor, model.device) if shown == "depth" else None,
        whole=strength == 1,
        device=model.device,
        model=model.name,
    )
    stages = [(model, schedule)]
    if refiner is not None and split < 1:
        stages.append((refiner, sampler.schedule(first.steps, first=split)))
    again = UPSCALE_STRENGTH if first.upscale_strength is None else first.upscale_strength
    enlarged = sampler.schedule(first.steps, strength=again) if first.upscale > 1 else None
    if enlarged is not None and originals is not None and originals.masks is not None:
        raise ValueError(
            "upscale draws all of an image again, and its mask (or transparency) keeps a part: leave one out"
        )
    if enlarged is not None and shown in ("mask", "image"):
        raise ValueError("this checkpoint draws no second pass over what it drew: leave out upscale")
    return Plan(sampler, start, tuple(stages), enlarged)

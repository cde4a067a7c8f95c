"""What a worker says of the model that it holds."""

from genpipe.pipeline import Pipeline
from genpipe.workers.messages import Model


def describe(pipeline: Pipeline, *, fingerprint: str = "", depth: int = 1, pixels: int | None = None) -> Model:
    """Say of a model what those must know who plan its images without loading it; for the arguments see `Model`."""
    return Model(
        name=pipeline.name,
        fingerprint=fingerprint,
        dtype=str(pipeline.dtype).removeprefix("torch."),
        defaults={"": pipeline.defaults(), "lcm": pipeline.defaults("lcm")},
        traits=pipeline.traits,
        depth=depth,
        pixels=pixels,
    )

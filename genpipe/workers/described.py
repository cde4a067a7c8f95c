"""What a worker says of the model that it holds."""

from genpipe.pipeline import Pipeline
from genpipe.pipeline.networks import shown_beside
from genpipe.pipeline.requests import tile_factor
from genpipe.workers.messages import Model


def describe(pipeline: Pipeline, *, fingerprint: str = "", depth: int = 1, pixels: int | None = None) -> Model:
    """Say of a model what those must know who plan its images without loading it; for the arguments see `Model`."""
    return Model(
        name=pipeline.name,
        fingerprint=fingerprint,
        dtype=str(pipeline.dtype).removeprefix("torch."),
        defaults={"": pipeline.defaults(), "lcm": pipeline.defaults("lcm")},
        factor=pipeline.vae.config.factor,
        layers=min(len(each.layers) for each in pipeline.text_encoders),
        distilled=pipeline.distilled,
        depth=depth,
        pixels=pixels,
        controls=len(pipeline.checkpoint.controls),
        refers=pipeline.checkpoint.references is not None,
        sizes=pipeline.checkpoint.family.added_numbers,
        refines=pipeline.refiner is not None,
        shown=shown_beside(pipeline.checkpoint),
        tile_factor=tile_factor(pipeline.checkpoint),
    )

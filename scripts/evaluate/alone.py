"""Whether a model draws each of its things where nothing else is asked for."""

from collections.abc import Sequence
from typing import Any

from genpipe.judge.evaluation import measure, summary
from genpipe.judge.scene_judge import Judge
from genpipe.pipeline import Pipeline
from genpipe.scenes import canonical, caption
from genpipe.seeds import seeds_for
from scripts.evaluate.held_out import FIRST_SEED, draw

RIGHT = 0.5  # share of a thing's images that show it, below which a model is not to say that it draws it


def alone(pipeline: Pipeline, judge: Judge, pool: Sequence[str], seeds: int) -> dict[str, Any]:
    """Draw each thing of `pool` by its name from so many seeds, and measure how often the judge sees it."""
    scenes = [canonical(name) for name in pool for _ in range(seeds)]
    chosen = seeds_for(FIRST_SEED, seeds) * len(pool)
    measured = measure(judge, draw(pipeline, [caption(scene) for scene in scenes], chosen, "alone"), scenes)
    accuracy = {name: tally.share for name, tally in sorted(measured.concepts.items())}
    figures = summary(measured)
    return {
        "things": len(pool),
        "seeds": seeds,
        "object_top1_error": figures["object_top1_error"],
        "object_top5_error": figures["object_top5_error"],
        "not_drawn": ", ".join(name for name, share in accuracy.items() if share < RIGHT),
        "concept_accuracy": accuracy,
    }

"""How much the images of one prompt differ from seed to seed."""

import random
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from genpipe.judge.evaluation import Measured, mean_distance, measure
from genpipe.judge.scene_judge import Judge
from genpipe.pipeline import Pipeline
from genpipe.scenes import caption, sample, vary
from genpipe.seeds import seeds_for
from scripts.evaluate.held_out import FIRST_SEED, draw, render

SEEDS = 8  # images of a prompt


def diversity(pipeline: Pipeline, judge: Judge, pool: Sequence[str], count: int) -> dict[str, Any]:
    """Measure how far SEEDS images of a prompt are from one another in the judge's features, on average over `count`
    prompts of things, against as many drawn scenes of the same caption: 1 is as diverse as what was trained on.

    Of the same images of one thing, and by the kind of prompt, the share in which the judge sees another thing: variety is
    worth nothing where things are lost in it, and held-out combinations have no bare nouns.
    """
    rng, scenes = random.Random("diversity"), []
    while len(scenes) < count:
        scene = sample(rng, pool)
        if scene.objects:
            scenes.append(scene)
    prompts = [caption(scene) for scene in scenes for _ in range(SEEDS)]
    generated = draw(pipeline, prompts, seeds_for(FIRST_SEED, SEEDS) * count, "diversity")
    drawn = render([vary(rng, scene) for scene in scenes for _ in range(SEEDS)], pipeline.defaults()["height"])
    kinds: dict[str, list[int]] = defaultdict(list)
    for i, scene in enumerate(scenes):
        kinds[scene.kind].append(i)
    apart, alike, errors = [0.0] * count, [0.0] * count, {}
    for kind, rows in sorted(kinds.items()):
        images = [i * SEEDS + k for i in rows for k in range(SEEDS)]
        asked = [scenes[i] for i in rows for _ in range(SEEDS)]
        seen, real = (measure(judge, [given[i] for i in images], asked) for given in (generated, drawn))
        for found, measured in ((apart, seen), (alike, real)):
            for i, distance in zip(rows, distances(measured), strict=True):
                found[i] = distance
        if "object_top1" in seen.tallies:
            errors[kind] = {
                "generated": 1 - seen.tallies["object_top1"].share,
                "drawn": 1 - real.tallies["object_top1"].share,
            }
    return {
        "prompts": count,
        "seeds": SEEDS,
        "generated_distance": sum(apart) / count,
        "drawn_distance": sum(alike) / count,
        "ratio": sum(apart) / sum(alike),
        "ratio_by_kind": {
            kind: sum(apart[i] for i in rows) / sum(alike[i] for i in rows) for kind, rows in sorted(kinds.items())
        },
        "object_top1_error_by_kind": errors,
    }


def distances(measured: Measured) -> list[float]:
    """Return how far each SEEDS images are from one another."""
    return [mean_distance(part) for part in measured.features.split(SEEDS)]

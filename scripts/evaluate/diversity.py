"""How much the images of one prompt differ from seed to seed."""

import random
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image

from genpipe.judge.evaluation import mean_distance
from genpipe.judge.scene_judge import Judge
from genpipe.pipeline import Pipeline
from genpipe.scenes import caption, sample, vary
from genpipe.seeds import seeds_for
from scripts.evaluate.held_out import FIRST_SEED, draw, render

SEEDS = 8  # images of a prompt


def diversity(pipeline: Pipeline, judge: Judge, pool: Sequence[str], count: int) -> dict[str, Any]:
    """Measure how far SEEDS images of a prompt are from one another in the judge's features, on average over `count`
    prompts of things, against as many drawn scenes of the same caption: 1 is as diverse as what was trained on."""
    rng, scenes = random.Random("diversity"), []
    while len(scenes) < count:
        scene = sample(rng, pool)
        if scene.objects:
            scenes.append(scene)
    prompts = [caption(scene) for scene in scenes for _ in range(SEEDS)]
    generated = draw(pipeline, prompts, seeds_for(FIRST_SEED, SEEDS) * count, "diversity")
    drawn = render([vary(rng, scene) for scene in scenes for _ in range(SEEDS)], pipeline.defaults()["height"])
    apart, alike = distances(judge, generated), distances(judge, drawn)
    kinds: dict[str, list[int]] = defaultdict(list)
    for i, scene in enumerate(scenes):
        kinds[scene.kind].append(i)
    return {
        "prompts": count,
        "seeds": SEEDS,
        "generated_distance": sum(apart) / count,
        "drawn_distance": sum(alike) / count,
        "ratio": sum(apart) / sum(alike),
        "ratio_by_kind": {
            kind: sum(apart[i] for i in rows) / sum(alike[i] for i in rows) for kind, rows in sorted(kinds.items())
        },
    }


def distances(judge: Judge, images: Sequence[Image.Image]) -> list[float]:
    """Return how far each SEEDS images are from one another."""
    features = torch.stack([observation.features for observation in judge.observe(images)]).cpu()
    return [mean_distance(part) for part in features.split(SEEDS)]

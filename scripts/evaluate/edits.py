"""Measure what the embedded model makes of its own images: other settings, things put in, variations, enlargements.

    python -m scripts.evaluate.edits --json
    python -m scripts.evaluate.edits --images 40 --parts inpaint

A judge that had no part in drawing says what an image shows. Only images of which it says, before they are edited, that they
show their prompt count: what it does not see before, an edit cannot lose. Progress goes to stderr; stdout gets a table, or with
--json one JSON object. Parts:

    setting     img2img at 0.7 into another setting: how often the thing is kept, and the new setting shown
    inpaint     another thing in the masked place of the first: how often it is there, and whether all else is untouched
    vary        how far variations of 0.1 to 0.5 are from their image, in levels, and of how many images they are in order
    upscale     enlarged twice: how often the thing is still seen
"""

import argparse
import json
import random
import sys
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from genpipe.embedded import JUDGES, learned_concepts
from genpipe.judge.scene_judge import Judge
from genpipe.pipeline import Pipeline
from genpipe.progress import Progress
from genpipe.scenes.captions import SETTING_PHRASES
from genpipe.seeds import seeds_for
from genpipe.vision.scene_model import INPUT_SIDE
from scripts.evaluate.held_out import FIRST_SEED, draw

STRENGTH = 0.7
SHARES = (0.1, 0.2, 0.3, 0.4, 0.5)
MARGIN = 6  # pixels around a thing that is painted over
AIMS = {
    "setting": {"kept": 0.9, "shown": 0.9},
    "inpaint": {"shown": 0.7, "untouched": 1.0},
    "vary": {"in_order_on_average": 1.0},
    "upscale": {"kept": 1.0},
}
Drawn = tuple[str, str, int, Image.Image]  # a thing, its setting, the seed, and the image that shows both


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder or hub id (default: the embedded model)")
    parser.add_argument("--images", type=int, default=200, help="images of each part (%(default)s)")
    parser.add_argument(
        "--parts", nargs="+", choices=tuple(AIMS), default=tuple(AIMS), metavar="PART", help="only these"
    )
    parser.add_argument(
        "--judges", type=Path, default=JUDGES, metavar="DIR", help="folder of judges (default: those that ship)"
    )
    parser.add_argument("--device", help="cuda, cuda:1, mps or cpu (default: the best there is)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args(given)
    if arguments.images < 1:
        parser.error(f"--images {arguments.images} is too few: use 1 or more")
    try:
        report = evaluate(arguments)
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from error
    print(json.dumps(report) if arguments.json else table(report))


def evaluate(arguments: argparse.Namespace) -> dict[str, Any]:
    pipeline = Pipeline.from_pretrained(arguments.model, device=arguments.device)
    judge = Judge.load(arguments.judges / "second.safetensors", device=arguments.device)
    pool = [name for name in pipeline.checkpoint.defaults.get("concepts", learned_concepts()) if name in judge.concepts]
    rng = random.Random("edits")
    asked = [(rng.choice(pool), rng.choice(judge.settings)) for _ in range(arguments.images)]
    seeds = seeds_for(FIRST_SEED, len(asked))
    images = draw(pipeline, [prompt(*each) for each in asked], seeds, "before")
    right = [kept and shown for kept, shown in seen(judge, images, asked)]
    base = [(*each, seed, image) for each, seed, image, ok in zip(asked, seeds, images, right, strict=True) if ok]
    if not base:
        raise ValueError("no image shows what it was drawn for, as the judge sees it: nothing is left to edit")
    jobs: dict[str, Callable[[], dict[str, Any]]] = {
        "setting": lambda: settings(pipeline, judge, base, rng),
        "inpaint": lambda: inpainted(pipeline, judge, base, rng, pool),
        "vary": lambda: varied(pipeline, base),
        "upscale": lambda: upscaled(pipeline, judge, base),
    }
    report: dict[str, Any] = {"model": pipeline.name, "drawn": len(asked), "right_before": len(base)}
    return report | {part: jobs[part]() for part in AIMS if part in arguments.parts}


def prompt(thing: str, setting: str) -> str:
    return f"{thing} {SETTING_PHRASES['en'][setting][0]}"


def seen(judge: Judge, images: Sequence[Image.Image], asked: Sequence[tuple[str, str]]) -> list[tuple[bool, bool]]:
    """Whether the judge sees the thing, and the setting, in each image."""
    checks = [
        {one.part: one.right for one in score.checks} for score in judge.scores(images, [prompt(*a) for a in asked])
    ]
    return [(each.get("object", False), each.get("setting", False)) for each in checks]


def edited(pipeline: Pipeline, base: Sequence[Drawn], title: str, **own: Callable[[int], Any]) -> list[Image.Image]:
    """Draw an image from each, with settings that are functions of its number."""
    images = []
    with Progress(len(base), unit="image", label=title) as progress:
        for number, (_, _, seed, _) in enumerate(base):
            given = {name: value(number) for name, value in own.items()}
            images.append(pipeline(given.pop("prompt"), seed=seed, progress=False, **given))
            progress.update()
    return images


def settings(pipeline: Pipeline, judge: Judge, base: Sequence[Drawn], rng: random.Random) -> dict[str, Any]:
    asked = [(thing, rng.choice([one for one in judge.settings if one != setting])) for thing, setting, _, _ in base]
    images = edited(
        pipeline,
        base,
        "another setting",
        prompt=lambda number: prompt(*asked[number]),
        image=lambda number: base[number][3],
        strength=lambda _: STRENGTH,
    )
    found = seen(judge, images, asked)
    return {
        "images": len(found),
        "strength": STRENGTH,
        "kept": share(kept for kept, _ in found),
        "shown": share(shown for _, shown in found),
    }


def inpainted(
    pipeline: Pipeline, judge: Judge, base: Sequence[Drawn], rng: random.Random, pool: Sequence[str]
) -> dict[str, Any]:
    asked = [(rng.choice([name for name in pool if name != thing]), setting) for thing, setting, _, _ in base]
    masks = [place(judge, image) for _, _, _, image in base]
    images = edited(
        pipeline,
        base,
        "another thing",
        prompt=lambda number: prompt(*asked[number]),
        image=lambda number: base[number][3],
        mask=lambda number: masks[number],
    )
    found = seen(judge, images, asked)
    return {
        "images": len(found),
        "masked": float(np.mean([np.asarray(mask).mean() / 255 for mask in masks])),
        "shown": share(shown for shown, _ in found),
        "untouched": share(
            bool(np.array_equal(levels(image)[outside], levels(before)[outside]))
            for image, (_, _, _, before), mask in zip(images, base, masks, strict=True)
            for outside in [np.asarray(mask) == 0]
        ),
    }


def place(judge: Judge, image: Image.Image) -> Image.Image:
    """A mask of the box of the surest thing that the judge sees, and a margin around it."""
    objects = judge.observe([image])[0].objects
    scale = np.array([image.width, image.height] * 2) / INPUT_SIDE
    left, top, right, bottom = (int(edge) for edge in objects.boxes[0].cpu().numpy() * scale)
    mask = Image.new("L", image.size, 0)
    mask.paste(255, (max(0, left - MARGIN), max(0, top - MARGIN), right + MARGIN, bottom + MARGIN))
    return mask


def varied(pipeline: Pipeline, base: Sequence[Drawn]) -> dict[str, Any]:
    distances = []
    for share_of in SHARES:
        images = edited(
            pipeline,
            base,
            f"vary {share_of:g}",
            prompt=lambda number: prompt(*base[number][:2]),
            vary=lambda _, share_of=share_of: share_of,
        )
        distances.append([distance(image, before) for image, (_, _, _, before) in zip(images, base, strict=True)])
    means = [float(np.mean(each)) for each in distances]
    return {
        "images": len(base),
        "mean_distance": dict(zip(map(str, SHARES), means, strict=True)),
        "in_order_on_average": float(all(a < b for a, b in pairwise(means))),
        "in_order": share(all(a < b for a, b in pairwise(of_one)) for of_one in zip(*distances, strict=True)),
    }


def upscaled(pipeline: Pipeline, judge: Judge, base: Sequence[Drawn]) -> dict[str, Any]:
    images = edited(pipeline, base, "upscale 2", prompt=lambda number: prompt(*base[number][:2]), upscale=lambda _: 2.0)
    found = seen(judge, images, [(thing, setting) for thing, setting, _, _ in base])
    return {
        "images": len(found),
        "size": "x".join(map(str, images[0].size)),
        "kept": share(kept for kept, _ in found),
        "setting": share(shown for _, shown in found),
    }


def levels(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("RGB"), dtype=int)


def distance(one: Image.Image, other: Image.Image) -> float:
    """Mean difference in levels."""
    return float(np.abs(levels(one) - levels(other)).mean())


def share(found: Any) -> float:
    """The share that is true."""
    return float(np.mean(list(found)))


def table(report: dict[str, Any]) -> str:
    lines = [
        f"{report['model']}: {report['right_before']} of {report['drawn']} images show their prompt before they are edited"
    ]
    lines += ["", "| part | figure | measured | aim |", "|---|---|---|---|"]
    for part, aims in AIMS.items():
        for name, value in report.get(part, {}).items():
            shown = f"{value:.3g}" if isinstance(value, float) else str(value)
            lines.append(f"| {part} | {name} | {shown} | {f'{aims[name]:g}' if name in aims else ''} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())

"""Measure a model of genpipe's world on combinations that it was never trained on, by judges that saw only drawn scenes.

    python -m scripts.evaluate.embedded --json
    python -m scripts.evaluate.embedded --model runs/embedded/checkpoint --images 200 --parts images vae
    python -m scripts.evaluate.embedded --parts best-of --prompts 300

Progress goes to stderr; stdout gets a table, or with --json one JSON object. Parts:

    images      generated images of held-out combinations, their objects, colours, counts and settings; the same scenes
                drawn, which is the judge's own ceiling; Russian against English; how far both are from drawn images;
                whether they are copies of canonical training images
    vae         how well the autoencoder gives back unseen scenes, and what the judge still sees in them
    judge       the judges on unseen scenes of the whole world
    cost        size, operations and time of an image
    diversity   how much the images of one prompt differ from seed to seed, against drawn scenes of the same caption
    alone       each of the model's things by its name
    best-of     one draw against the best of eight, measured by a second judge that had no part in the choice
"""

import argparse
import json
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from genpipe.embedded import JUDGES
from genpipe.images import to_pil
from genpipe.judge import Score, Unscored, best_index, judged
from genpipe.judge.evaluation import Measured, average_precision_50, frechet_distance, measure, summary
from genpipe.judge.scene_judge import Judge
from genpipe.judge.scene_segmentation import CATEGORIES, Segmentation
from genpipe.pipeline import Pipeline
from genpipe.scenes import caption, concepts, names, sample
from genpipe.scenes.captions import Language
from genpipe.scenes.compose import Composer
from genpipe.seeds import seeds_for
from genpipe.training.autoencoder import psnr
from genpipe.training.judge import category_maps
from genpipe.vision.metrics import confusion_matrix, mean_average_precision, mean_iou
from genpipe.vision.scene_model import INPUT_SIDE
from scripts.evaluate.alone import alone
from scripts.evaluate.copies import copies
from scripts.evaluate.cost import cost
from scripts.evaluate.diversity import diversity
from scripts.evaluate.held_out import COMBINATIONS, FIRST_SEED, chunks, draw, held_out_scenes, render

PARTS = ("images", "vae", "judge", "cost", "diversity", "alone", "best-of")
UNSEEN = 1000  # drawn scenes that the autoencoder and the judges are measured on


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder or hub id (default: the embedded model)")
    parser.add_argument(
        "--images", "--pictures", type=int, default=1000, help="held-out images in English (%(default)s)"
    )
    parser.add_argument(
        "--seeds", type=int, default=4, help="images of each scene, and of each thing alone (%(default)s)"
    )
    parser.add_argument("--things", type=int, default=1000, help="of the model's that are drawn alone (%(default)s)")
    parser.add_argument(
        "--core", action="store_true", help="only of the world's core things, which most people ask for"
    )
    parser.add_argument("--prompts", type=int, default=300, help="of diversity and best-of (%(default)s)")
    parser.add_argument("--best-of", type=int, default=8, help="images that it chooses from (%(default)s)")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, metavar="PART", help="only these")
    parser.add_argument("--unseen", type=int, default=UNSEEN, help="drawn scenes for vae and judge (%(default)s)")
    parser.add_argument(
        "--judges", type=Path, default=JUDGES, metavar="DIR", help="folder of judges (default: those that ship)"
    )
    parser.add_argument("--device", help="cuda, cuda:1, mps or cpu (default: the best there is)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args(given)
    for name in ("images", "seeds", "things", "prompts", "best_of", "unseen"):
        if getattr(arguments, name) < 1:
            parser.error(f"--{name.replace('_', '-')} {getattr(arguments, name)} is too few: use 1 or more")
    try:
        report = evaluate(arguments)
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from error
    if arguments.json:
        # What was not there to be measured is NaN, which strict JSON lacks.
        report = json.loads(json.dumps(report), parse_constant=lambda _: None)
    print(json.dumps(report, ensure_ascii=False) if arguments.json else table(report))


def evaluate(arguments: argparse.Namespace) -> dict[str, Any]:
    pipeline = Pipeline.from_pretrained(arguments.model, device=arguments.device)
    pool = tuple(pipeline.checkpoint.defaults.get("concepts", names()))
    if arguments.core:
        pool = tuple(name for name in pool if concepts()[name].core)
    folder = arguments.judges
    judge = Judge.load(folder / "model.safetensors", device=arguments.device)

    def critic() -> Judge:
        """What people's images are classified by; it measures nothing."""
        return Judge.load(folder / "critic.safetensors", device=arguments.device)

    def second() -> Judge:
        """Another architecture, trained from another seed; it takes no part in choosing."""
        return Judge.load(folder / "second.safetensors", device=arguments.device)

    report: dict[str, Any] = {"model": pipeline.name, "concepts": len(pool)}
    jobs: dict[str, Callable[[], dict[str, Any]]] = {
        "images": lambda: held_out_images(pipeline, judge, pool, arguments.images, arguments.seeds),
        "vae": lambda: autoencoder(pipeline, judge, pool, arguments.unseen),
        "judge": lambda: judges(judge, second(), critic(), folder / "segmentation.safetensors", arguments.unseen),
        "cost": lambda: cost(pipeline),
        "diversity": lambda: diversity(pipeline, judge, pool, arguments.prompts),
        "alone": lambda: alone(pipeline, judge, pool[: arguments.things], arguments.seeds),
        "best-of": lambda: best_of(pipeline, judge, second(), pool, arguments.prompts, arguments.best_of),
    }
    for part in PARTS:
        if part in arguments.parts:
            report[part] = jobs[part]()
    return report


def held_out_images(pipeline: Pipeline, judge: Judge, pool: Sequence[str], count: int, seeds: int) -> dict[str, Any]:
    size = pipeline.defaults()["height"]
    scenes = held_out_scenes(random.Random("held out"), pool, max(1, count // seeds))
    asked = [scene for scene in scenes for _ in range(seeds)]
    chosen = [seed for _ in scenes for seed in seeds_for(FIRST_SEED, seeds)]

    def generated(language: Language) -> list[Image.Image]:
        prompts = [caption(scene, language=language) for scene in asked]
        return draw(pipeline, prompts, chosen, f"held out, {language}")

    english, russian = generated("en"), generated("ru")
    drawn = render(scenes, size)
    seen, real = measure(judge, english, asked), measure(judge, drawn, scenes)
    training = render([sample(random.Random(f"training/{i}"), pool) for i in range(len(drawn))], size)
    in_russian = summary(measure(judge, russian, asked))
    return {
        "images": len(english),
        "seeds": seeds,
        "kinds": {kind: sum(scene.kind == kind for scene in asked) for kind in COMBINATIONS},
        "generated": summary(seen),
        "drawn": summary(real),
        "russian": in_russian,
        "russian_behind_english_points": behind(in_russian, summary(seen)),
        "frechet_distance": frechet_distance(seen.features, real.features),
        "frechet_distance_of_training_scenes": frechet_distance(features(judge, training), real.features),
        "core_object_top1_error": 1 - core_share(seen),
        "worst_concepts": seen.worst(10),
        "concept_accuracy": {name: tally.share for name, tally in sorted(seen.concepts.items())},
        "copies": copies(english, asked, pool, size),
    }


def features(judge: Judge, images: Sequence[Image.Image]) -> Tensor:
    return torch.stack([observation.features for observation in judge.observe(images)])


def core_share(seen: Measured) -> float:
    """Return the share of the images of one core thing that show it; NaN where there are none."""
    tallies = [tally for name, tally in seen.concepts.items() if concepts()[name].core]
    total = sum(tally.total for tally in tallies)
    return sum(tally.right for tally in tallies) / total if total else float("nan")


def behind(shares: dict[str, float], others: dict[str, float]) -> float:
    """Return by how many points the worst of the shares is behind the same of the others; errors count the other way."""
    signs = {name: -1 if name.endswith("_error") else 1 for name in shares}
    return 100 * max(signs[name] * (others[name] - shares[name]) for name in shares)


def autoencoder(pipeline: Pipeline, judge: Judge, pool: Sequence[str], count: int) -> dict[str, Any]:
    scenes = [sample(random.Random(f"unseen/{i}"), pool) for i in range(count)]
    composer, vae = Composer(size=pipeline.defaults()["height"]), pipeline.vae
    decibels, images = 0.0, []
    with torch.inference_mode():
        for part in chunks(scenes, 16):
            pixels = composer.render(part).to(pipeline.device, pipeline.dtype)
            decibels += psnr(vae, pixels) * len(part)
            images += to_pil(vae.decode(vae.scale(vae.encode(pixels)[0])))
    return {"images": count, "psnr_db": decibels / count, "reconstructed": summary(measure(judge, images, scenes))}


def judges(judge: Judge, second: Judge, critic: Judge, segmentation_file: Path, count: int) -> dict[str, Any]:
    scenes = [sample(random.Random(f"unseen/{i}")) for i in range(count)]
    composer, images, boxes, labels = Composer(), [], [], []
    segmentation = Segmentation.load(segmentation_file, judge)
    kinds = len(CATEGORIES)
    confusion = torch.zeros(kinds, kinds, dtype=torch.int64)
    for part in chunks(scenes):
        pixels, truths = composer.truth(part)
        drawn = to_pil(pixels)
        images += drawn
        confusion += confusion_matrix(segmentation(drawn), category_maps(truths, composer.size).long(), kinds)
        for truth in truths:
            visible = truth.boxes[:, 2] > truth.boxes[:, 0]
            boxes.append(truth.boxes[visible])
            labels.append(truth.concepts[visible])
    report: dict[str, Any] = {"images": count, "segmentation_mean_iou": mean_iou(confusion)}
    for name, one in (("first", judge), ("second", second), ("critic", critic)):
        observed = one.observe(images)
        report[name] = {
            **summary(measure(one, images, scenes)),
            "ap50": average_precision_50(observed, boxes, composer.size),
            "mean_ap50_of_concepts": mean_average_precision(
                [observation.objects.boxes * (composer.size / INPUT_SIDE) for observation in observed],
                [observation.objects.scores * observation.objects.concepts.amax(1) for observation in observed],
                [observation.objects.concepts.argmax(1) for observation in observed],
                boxes,
                labels,
            ),
        }
    return report


def best_of(
    pipeline: Pipeline, judge: Judge, second: Judge, pool: Sequence[str], count: int, many: int
) -> dict[str, Any]:
    """Measure by the second judge how much better the best of `many` images is than one, choosing by the first."""
    scenes = held_out_scenes(random.Random("best of"), pool, count)
    prompts = [caption(scene) for scene in scenes]
    repeated = [prompt for prompt in prompts for _ in range(many)]
    images = draw(pipeline, repeated, seeds_for(FIRST_SEED, many) * len(scenes), f"best of {many}")
    best = chosen(images, judged(images, repeated, judge), many)
    shown = {"one": images[::many], "best": best, "drawn": render(scenes, pipeline.defaults()["height"])}
    shares = {name: measure(second, of, scenes).tallies["satisfied"].share for name, of in shown.items()}
    return {
        "prompts": len(prompts),
        "best_of": many,
        **{f"satisfied_{name}": share for name, share in shares.items()},
        "share_of_missing_made_good": made_good(**shares),
    }


def chosen(images: Sequence[Image.Image], scores: Sequence[Score | Unscored], many: int) -> list[Image.Image]:
    """Return of every `many` images the one with the highest score."""
    return [images[start + best_index(scores[start : start + many])] for start in range(0, len(images), many)]


def made_good(one: float, best: float, drawn: float) -> float:
    """Return how much of what one draw lacks, to what the judge says of drawn scenes, the best of several has; NaN where
    it lacks nothing."""
    return (best - one) / (drawn - one) if drawn > one else float("nan")


AIMS = {  # of a model trained on a CPU, and on a GPU
    "object_top1_error": ("≤ 6 %", "≤ 3 %"),
    "object_top5_error": ("≤ 0.9 %", "≤ 0.5 %"),
    "setting": ("≥ 95 %", "≥ 99 %"),
    "colour": ("≥ 95 %", "≥ 98 %"),
    "pair": ("≥ 92 %", "≥ 97 %"),
    "count": ("≥ 95 %", "≥ 99 %"),
}


def table(report: dict[str, Any]) -> str:
    """Return the report as Markdown: a table of the held-out images, and a line for every other figure."""
    lines = [f"{report['model']}, {report['concepts']} concepts", ""]
    if "images" in report:
        part = report["images"]
        columns = ("generated", "drawn", "russian")
        lines += [
            f"| held out, {part['images']} images | aim, CPU | aim, GPU | {' | '.join(columns)} |",
            "|---" * 6 + "|",
        ]
        rows = {**AIMS, "relation": ("", ""), "satisfied": ("", "")}
        for name, aims in rows.items():
            cells = [f"{part[column][name]:.1%}" if name in part[column] else "" for column in columns]
            lines.append(f"| {name} | {' | '.join((*aims, *cells))} |")
    for name in (part for part in PARTS if part in report):
        lines += ["", f"{name}:"]
        lines += [
            f"- {key}: {_shown(value)}" for key, value in _flatten(report[name]) if not key.startswith("concept_acc")
        ]
    return "\n".join(lines)


def _flatten(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(f"{name} {share:.0%} of {count}" for name, share, count in value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    sys.exit(main())

"""Whether `genpipe classify` knows the things that the embedded model draws, by labels that a person has checked.

    python -m scripts.evaluate.named --out runs/named      # draws 300 images, named after what they are to show
    python -m scripts.evaluate.named --out runs/named      # once the folder is there: classifies what is in it

In between, look at the sheets, and remove from the folder the images that do not show what they are named after: an error of
the classifier is to be told from one of the model. Of the images a third each are of a thing alone, in some place, and in
some colour, each thing at most once.
"""

import argparse
import random
import sys
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw

from genpipe.pipeline import Pipeline
from genpipe.scenes import Scene, caption, names, sample
from genpipe.seeds import seeds_for
from genpipe.vision.classify import classify
from scripts.evaluate.held_out import FIRST_SEED, draw

KINDS = ("bare", "setting", "colour")
COLUMNS, ROWS, SIDE, LINE = 10, 5, 128, 14  # of a sheet


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the images")
    parser.add_argument("--model", help="draws them (default: the embedded one)")
    parser.add_argument("--images", type=int, default=300, help="how many are drawn (%(default)s)")
    parser.add_argument("--device", help="cuda, cuda:1, mps or cpu (default: the best there is)")
    arguments = parser.parse_args(given)
    try:
        if arguments.out.exists():
            print(measured(arguments.out, arguments.device))
        else:
            pipeline = Pipeline.from_pretrained(arguments.model, device=arguments.device)
            print(drawn(pipeline, arguments.images, arguments.out))
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from error


def scenes(pool: Sequence[str], count: int) -> list[Scene]:
    """Return scenes of one thing, of each of KINDS as many, with no thing twice.

    Raises:
        ValueError: there are fewer things.
    """
    if not 1 <= count <= len(pool):
        raise ValueError(f"{count} images of things of their own cannot be drawn: give 1 to {len(pool)}")
    rng = random.Random("named")
    things = rng.sample(list(pool), count)
    return [sample(rng, (thing,), kind=KINDS[number % len(KINDS)]) for number, thing in enumerate(things)]


def drawn(pipeline: Pipeline, count: int, folder: Path) -> str:
    """Draw the images into a folder, with sheets beside it."""
    asked = scenes(tuple(pipeline.checkpoint.defaults.get("concepts", names())), count)
    prompts = [caption(scene) for scene in asked]
    images = draw(pipeline, prompts, seeds_for(FIRST_SEED, count), "named")
    folder.mkdir(parents=True)
    labels = [f"{number:03} {scene.objects[0].concept}" for number, scene in enumerate(asked)]
    for label, image in zip(labels, images, strict=True):
        image.save(folder / f"{label}.png")
    for start in range(0, count, COLUMNS * ROWS):
        sheet = Image.new("RGB", (COLUMNS * SIDE, ROWS * (SIDE + LINE)), "white")
        pen = ImageDraw.Draw(sheet)
        for place, number in enumerate(range(start, min(count, start + COLUMNS * ROWS))):
            x, y = SIDE * (place % COLUMNS), (SIDE + LINE) * (place // COLUMNS)
            sheet.paste(images[number].resize((SIDE, SIDE)), (x, y))
            pen.text((x + 2, y + SIDE), labels[number], fill="black")
        sheet.save(folder.parent / f"{folder.name}-{start:03}.png")
    return f"{count} images in {folder}: remove those that do not show what they are named after, then run this again"


def measured(folder: Path, device: str | None) -> str:
    """Classify what is in the folder.

    Raises:
        ValueError: there are no images.
    """
    files = sorted(folder.glob("*.png"))
    if not files:
        raise ValueError(f"{folder} has no images: remove the folder, and they are drawn again")
    wrong, far = [], 0
    for file, prediction in zip(files, classify(list(files), top=5, device=device), strict=True):
        thing, told = file.stem.partition(" ")[2], [each.name for each in prediction.labels]
        if told[0] != thing:
            wrong.append(f"{thing}: {told[0]}")
            far += thing not in told
    shares = f"top-1 error {len(wrong) / len(files):.1%}, top-5 error {far / len(files):.1%}"
    return "\n".join([f"{len(files)} images: {shares}", *wrong])


if __name__ == "__main__":
    sys.exit(main())

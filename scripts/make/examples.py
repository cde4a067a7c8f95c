"""The image at the head of the README: what the embedded model draws of 24 prompts, all with seed 1.

python -m scripts.make.examples --output .assets/examples.png
"""

import argparse
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from genpipe.images import grid, save_image
from genpipe.pipeline import Pipeline

PROMPTS = (
    "pirate ship", "pirate ship at sunset", "pirate ship in space", "sailboat", "lion", "penguin",
    "castle in the snow", "house at night", "red car", "blue car in the desert", "rocket in space", "plane",
    "cat", "a cat and a dog", "two apples", "three balloons", "pizza", "strawberry",
    "sunflower", "palm tree on the beach", "robot", "pumpkin at night", "snowman", "teddy bear",
)  # fmt: skip
SEED = 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("examples.png"), help="where to save (%(default)s)")
    parser.add_argument("--model", help="a checkpoint to draw with instead of the embedded model")
    arguments = parser.parse_args()
    pipe = Pipeline.from_pretrained(arguments.model)
    images = pipe(list(PROMPTS), seeds=[SEED] * len(PROMPTS))
    save_image(grid([labelled(*pair) for pair in zip(images, PROMPTS, strict=True)], columns=6), arguments.output)


def labelled(image: Image.Image, prompt: str) -> Image.Image:
    """The image with its prompt below."""
    line = image.width // 7
    sheet = Image.new("RGB", (image.width + 4, image.height + line), "white")
    sheet.paste(image, (2, 2))
    ImageDraw.Draw(sheet).text(
        (sheet.width / 2, image.height + line / 2 + 1),
        prompt,
        "black",
        ImageFont.load_default(image.width // 12),
        "mm",
    )
    return sheet


if __name__ == "__main__":
    main()

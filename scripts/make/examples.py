"""What the embedded model draws: the image at the head of the README, 24 prompts with seed 1, and that of its model card.

python -m scripts.make.examples --output .assets/examples.png
python -m scripts.make.examples --seeds 8 --output .assets/seeds.png
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
# One per row, where each is drawn of several seeds.
OF_SEEDS = (
    "pirate ship", "castle", "cat", "a red car in the snow", "house", "tree", "rocket in space", "a dog and a cat",
    "two apples", "tiny mouse",
)  # fmt: skip
SEED = 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("examples.png"), help="where to save (%(default)s)")
    parser.add_argument("--model", help="a checkpoint to draw with instead of the embedded model")
    parser.add_argument("--seeds", type=int, help="ten prompts at half the size, each of so many seeds")
    arguments = parser.parse_args()
    if arguments.seeds is not None and arguments.seeds < 1:
        parser.error(f"--seeds {arguments.seeds} is too few: use 1 or more")
    pipe = Pipeline.from_pretrained(arguments.model)
    count = arguments.seeds or 1
    drawn = [(prompt, SEED + k) for prompt in (OF_SEEDS if arguments.seeds else PROMPTS) for k in range(count)]
    usual = pipe.defaults()
    half = {name: usual[name] // 2 for name in ("height", "width")} if arguments.seeds else {}
    images = pipe([prompt for prompt, _ in drawn], seeds=[seed for _, seed in drawn], **half)
    cells = [
        labelled(image, prompt if seed == SEED else "") for image, (prompt, seed) in zip(images, drawn, strict=True)
    ]
    save_image(grid(cells, columns=arguments.seeds or 6), arguments.output)


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

"""What the embedded model is trained on: scenes of the world with their captions, and captions alone for its text encoder."""

import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path

from accelerate import Accelerator
from torch import Tensor

from genpipe.checkpoints import Checkpoint
from genpipe.models.text_encoder import TextEncoder
from genpipe.models.tokenizer import Tokenizer
from genpipe.scenes.captions import Style, caption, details, in_full
from genpipe.scenes.compose import Composer
from genpipe.scenes.concepts import concepts
from genpipe.scenes.world import Pool, Scene, sample
from genpipe.training.diffusion import Wording
from genpipe.training.loop import Budget, fit
from genpipe.training.text_encoder import Reader, reading_loss
from genpipe.training.text_to_image import RATE

TOKENS = 32  # of a prompt
GPU_BATCH = 256  # images per step of the denoiser
KEPT = 40_000  # scenes: as many as `LatentPool` holds, and some
READ_MORE = {"pair": 0.3}  # captions that are surely of a kind, on top of the world's own share
DRAWN_MORE = {"pair": 0.27, "colour": 0.12, "count": 0.08}  # images that the denoiser learns from
SAMPLES = ("pirate ship", "pirate ship in space", "red car", "cat", "castle in the snow", "пиратский корабль",
           "a dog and a cat", "two apples", "rocket in space", "blue flower", "tree", "house at night")  # fmt: skip


def teach(
    encoder: TextEncoder,
    tokenizer: Tokenizer,
    directory: Path,
    budget: Budget,
    accelerator: Accelerator,
    seed: int,
    stop: Callable[[], bool] | None = None,
) -> TextEncoder:
    """Train the text encoder to read the captions of the whole world, also of what the denoiser is not to learn yet."""
    averaged = fit(
        Reader(encoder),
        reading_loss(partial(draw_scene, more=READ_MORE), word, tokenizer),
        directory=directory,
        budget=budget,
        peak_rate=RATE,
        accelerator=accelerator,
        seed=seed,
        stop=stop,
    )
    assert isinstance(averaged, Reader)
    return averaged.encoder


def draw_scene(rng: random.Random, pool: Pool | None = None, *, more: Mapping[str, float]) -> Scene:
    """A scene of the world, but so often surely of a kind: some are harder than the rest both to read and to draw."""
    kind = rng.choices((None, *more), (1 - sum(more.values()), *more.values()))[0]
    alone = pool is not None and len(pool.names) < 2
    return sample(rng, pool, kind=None if alone and kind == "pair" else kind)


def of_scenes(model: Checkpoint, concepts: Sequence[str]) -> Checkpoint:
    """Have a model say that it draws these concepts, and reads prompts as the world's captions, which leave nothing open."""
    return replace(model, defaults={**model.defaults, "prompt": "scenes", "details": True, "concepts": list(concepts)})


class Scenes:
    """The procedural world as images to train on.

    Args:
        size: of the images, in pixels.
        concepts: that they show.
        accuracy: of an evaluation, as in `Pool`.
        seed: of the sequence.
    """

    period: int | None = None

    def __init__(
        self, size: int, *, concepts: Sequence[str], seed: int, accuracy: Mapping[str, float] | None = None
    ) -> None:
        self.size = size
        self._composer, self._pool, self._seed = Composer(size=size), Pool(concepts, accuracy), seed
        self._scene = lru_cache(KEPT)(self._sampled)

    def draw(self, rng: random.Random, count: int) -> Tensor:
        return self._composer.render([sample(rng, self._pool) for _ in range(count)])

    def pixels(self, start: int, stop: int) -> Tensor:
        return self._composer.render([self._scene(index) for index in range(start, stop)])

    def wording(self, index: int) -> Wording:
        return partial(word, self._scene(index))

    def _sampled(self, index: int) -> Scene:
        return draw_scene(random.Random(f"{self._seed}/{index}"), self._pool, more=DRAWN_MORE)


def read_accuracy(path: Path) -> dict[str, float]:
    """Read the accuracy of each concept from what `python -m scripts.evaluate.embedded --json` prints.

    That is of the images of held-out combinations, of things alone, or the mean of both.

    Raises:
        ValueError: it is something else.
        OSError: there is no such file.
    """
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        parts = [report[part]["concept_accuracy"] for part in ("images", "alone") if part in report]
        shares = {name: [float(part[name]) for part in parts if name in part] for part in parts for name in part}
        known = {name: sum(each) / len(each) for name, each in shares.items()}
        if not known:
            raise ValueError("it says nothing of single concepts")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is not what an evaluation prints with --json --parts images alone") from error
    if odd := [name for name, share in known.items() if name not in concepts() or not 0 <= share <= 1]:
        raise ValueError(f"{path}: {odd[0]!r} is no concept of genpipe.scenes with an accuracy of 0 to 1")
    return known


def word(scene: Scene, rng: random.Random) -> str:
    """One caption of a scene that leaves nothing open: two in five English, the rest Russian, in sentences or in the few
    words people type."""
    language = "ru" if rng.random() < 0.6 else "en"
    style: Style = rng.choices(("full", "short", "bare"), (4, 4, 1))[0]
    return in_full(caption(scene, rng, language=language, style=style), details(scene, language))

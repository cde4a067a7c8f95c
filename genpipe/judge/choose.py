"""Which judge: the one that ships, a CLIP model, or your own.

score(image, "two red cats in the snow").total
"""

import importlib
import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import torch
from PIL import Image

from genpipe.embedded import JUDGES
from genpipe.judge.scene_judge import Judge
from genpipe.judge.scores import Score, Scorer
from genpipe.vision.reading import read_image

_IN_A_MODULE = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


@lru_cache(maxsize=1)
def choose_judge(name: str | Path | None = None, *, device: str | torch.device | None = None) -> Scorer:
    """Return the judge of this name; the last one stays loaded.

    Args:
        name: None is the embedded judge. "module:name" imports the module: there the name is a `Scorer`, a class of
            them, or a function of (image, prompt) that returns a `Score`. Everything else is a CLIP model, a folder or a
            hub id.
        device: of the embedded judge and of a CLIP model; None takes the best there is.

    Raises:
        ValueError: there is no such judge, or it cannot be loaded.
    """
    if name is None:
        return Judge.load(JUDGES / "model.safetensors", device=device)
    if isinstance(name, str) and _IN_A_MODULE.fullmatch(name):
        return _imported(name)
    from genpipe.judge.clip import ClipJudge

    return ClipJudge.from_pretrained(name, device=device)


def score(image: str | Path | Image.Image, prompt: str, *, judge: str | Path | Scorer | None = None) -> Score:
    """Score an image by how well it shows what `prompt` asks for.

    Args:
        image: a file or a PIL image; one that is not square is judged by the square in its middle.
        judge: None is the embedded judge, which knows genpipe's world; else a name, see `choose_judge`, or a judge that
            is loaded already.

    Raises:
        ValueError: not an image, a prompt that the judge cannot read, or a judge that cannot be loaded.
        OSError: a file cannot be read.
    """
    scorer = choose_judge(judge) if judge is None or isinstance(judge, str | Path) else judge
    scorer.check_prompt(prompt)
    return scorer.scores([read_image(image)], [prompt])[0]


class FunctionJudge:
    """A judge made of a function of (image, prompt), which reads every prompt."""

    def __init__(self, function: Callable[[Image.Image, str], Score]) -> None:
        self.function = function

    def check_prompt(self, prompt: str) -> None:
        """See `Scorer`."""

    def scores(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> list[Score]:
        """See `Scorer`."""
        return [self.function(image, prompt) for image, prompt in zip(images, prompts, strict=True)]


def _imported(name: str) -> Scorer:
    module, _, attribute = name.partition(":")
    try:
        found: Any = getattr(importlib.import_module(module), attribute)
        found = found() if isinstance(found, type) else found
    except (ImportError, AttributeError, TypeError) as error:
        raise ValueError(f"judge {name!r} cannot be imported: {error}") from error
    if callable(found) and not isinstance(found, Scorer):
        return FunctionJudge(cast(Callable[[Image.Image, str], Score], found))
    if not isinstance(found, Scorer):
        raise ValueError(
            f"judge {name!r} is of type {type(found).__name__}: name a function, or a judge with a method scores"
        )
    return found

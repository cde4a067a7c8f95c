"""Drawing a few steps, comparing two images, and what of a pipeline a test looks into."""

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from genpipe.pipeline import Pipeline


@cache
def loaded(folder: Path, **options: Any) -> Pipeline:
    """Our pipeline in fp32, loaded once for all tests that do not change it."""
    return Pipeline.from_pretrained(folder, device="cpu", dtype="fp32", **options)


@cache
def loaded_by_diffusers(kind: Any, folder: Path, **options: Any) -> tuple[Any, Any]:
    """A pipeline of diffusers', loaded once for all tests that change nothing of it but its scheduler, and that one's config."""
    pipe = kind.from_pretrained(folder, **options)
    pipe.set_progress_bar_config(disable=True)
    return pipe, pipe.scheduler.config


def draw(pipe: Pipeline, prompt: Any = "a red cat", **settings: Any) -> Any:
    given: Any = {"seed": 5, "steps": 4, "guidance_scale": 4.0, "progress": False, **settings}
    return pipe(prompt, **given)


def difference(one: Image.Image, other: Image.Image) -> int:
    return int(np.abs(np.asarray(one, dtype=int) - np.asarray(other, dtype=int)).max())


def ids(pipe: Pipeline, prompt: str) -> torch.Tensor:
    return torch.tensor(pipe.tokenizers[0]([prompt]).ids)


def middle(pipe: Pipeline) -> torch.nn.Module:
    """The bottom of the U-Net, which every evaluation runs that is not of kept features."""
    assert pipe.unet.middle is not None
    return pipe.unet.middle

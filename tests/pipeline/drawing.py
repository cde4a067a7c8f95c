"""Drawing a few steps, comparing two images, and what of a pipeline a test looks into."""

from typing import Any

import numpy as np
import torch
from PIL import Image

from genpipe.pipeline import Pipeline


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

"""The images that pipelines of diffusers are given and that they return; these as diffusers itself rounds them to 8 bits."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from genpipe.models.finite import NonFiniteError
from genpipe.request import Request


def pixels_of(images: Any, model: str) -> Tensor:
    """Give the images that a pipeline returned as uint8 (B, 3, H, W).

    Args:
        images: (B, H, W, 3) in 0 … 1, or a list of PIL images.
        model: what the error calls the model.

    Raises:
        NonFiniteError: they hold NaN or infinity.
    """
    if isinstance(images, Sequence) and images and isinstance(images[0], Image.Image):
        levels = np.stack([np.asarray(image.convert("RGB")) for image in images])
    else:
        array = images.detach().float().cpu().numpy() if isinstance(images, Tensor) else np.asarray(images)
        array = array.squeeze(1) if array.ndim == 5 else array  # videos of one frame
        if not np.isfinite(array).all():
            raise NonFiniteError(
                f"{model} gave values that are not finite: use bf16 or fp32 (--dtype), or try another seed"
            )
        levels = (array * 255).round().astype(np.uint8)
    return torch.from_numpy(levels).movedim(-1, 1)


def pictures_of(request: Request) -> dict[str, Image.Image]:
    """Give the image that a request begins from and its mask as arguments, at the size of the request.

    Raises:
        ValueError: one of them is not an image.
        OSError: a file cannot be read.
    """
    size, found = (request.width, request.height), {}
    if request.image is not None:
        image = request.image.open().convert("RGB")
        found["image"] = image if image.size == size else image.resize(size, Image.Resampling.LANCZOS)
    if request.mask is not None:
        mask = request.mask.open().convert("L")
        found["mask_image"] = mask if mask.size == size else mask.resize(size, Image.Resampling.NEAREST)
    return found

"""A batch's images that are referred to, as an IP-Adapter makes tokens of them."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from genpipe.models.ip_adapter import References
from genpipe.pipeline.conditions import Conditions
from genpipe.request import Request

# Mean and spread of the pixels, 0 … 1, that CLIP was trained on.
MEAN, SPREAD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def refer(
    guidance: Conditions, references: References, requests: Sequence[Request], guided: bool, device: torch.device
) -> Conditions:
    """Give what guides a batch the tokens of its references; negative prompts read those of no image.

    Args:
        guidance: of the batch.
        references: the model's.
        requests: the batch; each has a reference.
        guided: whether each image has a negative prompt, whose rows come first.
        device: where the denoiser runs.

    Raises:
        ValueError: an image cannot be used.
        OSError: a file cannot be read.
    """
    opened = [request.reference.open() for request in requests if request.reference is not None]
    pixels = [clip_pixels(image, references.encoder.config.image_size).to(device) for image in opened]
    shown, nothing = references.tokens(pixels)
    count = len(guidance.conditionings[0]) // len(requests)  # rows per image
    unshown = (2 if guidance.image_scale is not None else 1) if guided else 0
    tokens = torch.cat([nothing] * unshown + [shown] * (count - unshown))
    scales = torch.tensor([request.ip_scale for request in requests] * count, dtype=torch.float32, device=device)
    made = (replace(each, image_tokens=tokens, image_scales=scales) for each in guidance.conditionings)
    return replace(guidance, conditionings=tuple(made))


def clip_pixels(image: Image.Image, size: int) -> Tensor:
    """Make of an image what CLIP's image encoder takes: its middle, (1, 3, size, size), scaled by mean and spread."""
    image = image.convert("RGB")
    shorter = min(image.size)
    scaled = image.resize([int(size * side / shorter) for side in image.size], Image.Resampling.BICUBIC)
    left, top = ((side - size) // 2 for side in scaled.size)
    levels = np.asarray(scaled.crop((left, top, left + size, top + size)), dtype=np.float32) / 255
    normed = (levels - np.asarray(MEAN, dtype=np.float32)) / np.asarray(SPREAD, dtype=np.float32)
    return torch.from_numpy(normed).permute(2, 0, 1)[None]

"""What the requests of a batch tell the denoiser."""

from collections.abc import Sequence
from dataclasses import replace

import torch

from genpipe.checkpoints import Checkpoint
from genpipe.models.conditioning import Conditioning
from genpipe.prompts.encoder import PromptEncoder
from genpipe.request import Request

# What SDXL's refiner is told of how good the image is, and of how good it is not to be.
AESTHETIC_SCORE, NEGATIVE_AESTHETIC_SCORE = 6.0, 2.5


def condition(
    encode: PromptEncoder,
    requests: Sequence[Request],
    checkpoint: Checkpoint,
    *,
    guided: bool,
    device: torch.device,
) -> Conditioning:
    """Encode the requests of a batch.

    Args:
        encode: of the model's text encoders.
        requests: they agree in clip_skip.
        checkpoint: says what its denoiser takes besides the prompt (sizes, the scale of guidance), and whether an empty
            negative prompt is zeros and not the encoding of no words.
        guided: whether each image has a negative prompt too, whose rows come first.
        device: where the denoiser runs.

    Returns:
        A row per prompt: 2B where guided, else B.
    """
    sizes = checkpoint.family.added_numbers
    negative = [request.negative_prompt for request in requests] if guided else []
    clip_skip = requests[0].clip_skip
    # For SDXL diffusers leaves layers out of what is to be drawn alone.
    skips = [*([0 if sizes else clip_skip] * len(negative)), *([clip_skip] * len(requests))]
    conditioning = encode([*negative, *(request.prompt for request in requests)], clip_skip=skips)
    if checkpoint.zero_empty_negative:
        conditioning = conditioning.zeroed([row for row, text in enumerate(negative) if not text])
    if sizes:
        numbers = [
            *(time_ids(request, count=sizes, negative=True) for request in requests if guided),
            *(time_ids(request, count=sizes) for request in requests),
        ]
        conditioning = replace(conditioning, time_ids=torch.tensor(numbers, dtype=torch.float32, device=device))
    if checkpoint.unet.config.guidance_channels is not None:
        scales = torch.tensor([request.guidance_scale for request in requests], dtype=torch.float32, device=device)
        conditioning = replace(conditioning, guidance_scale=scales)
    return conditioning


def time_ids(request: Request, *, count: int, negative: bool = False) -> tuple[float, ...]:
    """Give the numbers that SDXL is told beside the prompt ("SDXL", arXiv 2307.01952, section 2.2).

    They are the size that the training image had, how far from its top and left it was cropped, and the size that it was
    wanted at, each in pixels, height before width; for the refiner a score from 1 to 10 comes in the place of the last.

    Args:
        request: sizes that it does not give are the image's own, and a crop that it does not give is none.
        count: 6, or 5 for the refiner.
        negative: of the negative prompt: the same, except that the refiner is told of no crop and of a low score.
    """
    own = (request.height, request.width)
    original, crop, target = request.original_size or own, request.crop or (0, 0), request.target_size or own
    if count == 6:
        return (*original, *crop, *target)
    return (*original, 0, 0, NEGATIVE_AESTHETIC_SCORE) if negative else (*original, *crop, AESTHETIC_SCORE)

"""What the requests of a batch tell the denoiser."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from genpipe.checkpoints import Checkpoint
from genpipe.models.conditioning import Conditioning, common_length
from genpipe.pipeline.networks import shown_beside
from genpipe.prompts.encoder import PromptEncoder
from genpipe.prompts.reading import Stage, chosen, read_prompts
from genpipe.prompts.syntax import Span, plain_text
from genpipe.request import IMAGE_GUIDANCE, Request
from genpipe.sampling.schedule import Step
from genpipe.sampling.speed import SPEEDS

# What SDXL's refiner is told of how good the image is, and of how good it is not to be.
AESTHETIC_SCORE, NEGATIVE_AESTHETIC_SCORE = 6.0, 2.5


@dataclass(frozen=True, eq=False)
class Conditions:
    """What guides a batch, step by step.

    Attributes:
        conditionings: each as `condition` makes it; most often one.
        turns: for each step, which of them.
        weights: (parts, B), how much each of an image's prompts counts; None where each image has one, of weight 1.
        image_scale: weight of the image that the denoiser is shown, where each image has its negative prompt twice: first
            without the image, and then with it; None where it has one.
        between: guidance applies where sigma / alpha is above the first and not above the second.
    """

    conditionings: tuple[Conditioning, ...]
    turns: tuple[int, ...]
    weights: Tensor | None = None
    image_scale: float | None = None
    between: tuple[float, float] = (0.0, math.inf)

    def leads(self, step: Step) -> bool:
        """Say whether guidance applies at a step, if the batch is guided: elsewhere the prompt is evaluated alone.

        Prompts that AND joins are always evaluated in full.
        """
        return self.weights is not None or self.between[0] < step.ratio <= self.between[1]

    def showing(self, extra: Tensor | None) -> "Conditions":
        """Give the same with channels (B, C, h, w) that follow each image's latents, of every prompt; None adds none."""
        if extra is None:
            return self
        rows = torch.cat([extra] * (len(self.conditionings[0]) // len(extra)))
        if self.image_scale is not None:
            rows = torch.cat([torch.zeros_like(extra), rows[len(extra) :]])
        return replace(self, conditionings=tuple(replace(one, extra_channels=rows) for one in self.conditionings))


def conditions(
    encode: PromptEncoder,
    requests: Sequence[Request],
    checkpoint: Checkpoint,
    *,
    guided: bool,
    total: int,
    steps: range,
    device: torch.device,
) -> Conditions:
    """Encode what the requests of a batch say at each step; see `condition`.

    Args:
        requests: of one of the groups that `alike` gives.
        total: steps of the whole image, by which prompts change.
        steps: numbers of those that are taken, from 1; beyond `total` the prompts say what they say in the end.

    Raises:
        ValueError: a prompt cannot be drawn as it is; AND joins prompts where there is no guidance.
    """
    read = [stages_of(request, total, checkpoint) for request in requests]
    edits = guided and shown_beside(checkpoint) == "image"
    scale = IMAGE_GUIDANCE if requests[0].image_guidance_scale is None else requests[0].image_guidance_scale
    weights = None
    if any(len(stages[0].parts) > 1 for stages in read):
        if not guided:
            raise ValueError("AND joins prompts by guidance: raise guidance_scale above 1, or write 'and'")
        if edits:
            raise ValueError("AND joins prompts, and this checkpoint takes one instruction: write 'and'")
        rows = [[part.weight for part in stages[0].parts] for stages in read]
        weights = torch.tensor(rows, dtype=torch.float32, device=device).T  # (parts, B)
    found: dict[tuple[str, ...], Conditioning] = {}
    turns = []
    changes = {stage.steps.start for stages in read for stage in stages}
    for step in steps:
        if turns and step not in changes:
            turns.append(turns[-1])
            continue
        now = [next(stage for stage in stages if min(step, total) in stage.steps) for stages in read]
        texts = [[stage.negative for stage in now]] * (int(guided) + edits)
        texts += [list(parts) for parts in zip(*([part.text for part in stage.parts] for stage in now), strict=True)]
        key = tuple(text for each in texts for text in each)
        if key not in found:
            found[key] = condition(encode, requests, checkpoint, texts=texts, guided=guided, edits=edits, device=device)
        turns.append(list(found).index(key))
    between = SPEEDS[requests[0].speed].guided
    return Conditions(tuple(found.values()), tuple(turns), weights, scale if edits else None, between)


def alike(
    encode: PromptEncoder, requests: Sequence[Request], checkpoint: Checkpoint, *, guided: bool, steps: int
) -> list[list[int]]:
    """Group the requests of a batch by the form of what guides them, so that none changes what another is told.

    Within a group all images have as many prompts, and at each step contexts that are repeated to the same length.
    """
    if len(requests) == 1:
        return [[0]]
    groups: dict[tuple[tuple[int, ...], ...], list[int]] = {}
    for index, request in enumerate(requests):
        form: list[tuple[int, ...]] = []
        for stage in stages_of(request, steps, checkpoint):
            texts = [part.text for part in stage.parts] + ([stage.negative] if guided else [])
            length = common_length(encode.lengths(texts, syntax=request.prompt_syntax))
            if form and form[-1][1:] == (len(stage.parts), length):
                form.pop()
            form.append((stage.steps[-1], len(stage.parts), length))
        groups.setdefault(tuple(form), []).append(index)
    return list(groups.values())


def condition(
    encode: PromptEncoder,
    requests: Sequence[Request],
    checkpoint: Checkpoint,
    *,
    guided: bool,
    device: torch.device,
    texts: Sequence[Sequence[str]] | None = None,
    edits: bool = False,
) -> Conditioning:
    """Encode the requests of a batch.

    Args:
        encode: of the model's text encoders.
        requests: they agree in clip_skip and prompt_syntax.
        checkpoint: says what its denoiser takes besides the prompt (sizes, the scale of guidance), and whether an empty
            negative prompt is zeros and not the encoding of no words.
        guided: whether each image has a negative prompt too, whose rows come first.
        device: where the denoiser runs.
        edits: whether these are there twice, as InstructPix2Pix is guided.
        texts: what the requests say, one list per row of an image; None is what they say first, and of prompts that AND joins
            the first.

    Returns:
        A row per prompt: 2B where guided, else B; more where AND joins prompts.
    """
    if texts is None:
        begun = [stages_of(request, request.steps, checkpoint)[0] for request in requests]
        negatives = [[stage.negative for stage in begun]] * (int(guided) + edits)
        texts = [*negatives, [stage.parts[0].text for stage in begun]]
    sizes, first = checkpoint.family.added_numbers, requests[0]
    negative = [text for each in texts[: int(guided) + edits] for text in each]
    rows = [text for each in texts for text in each]
    # For SDXL diffusers leaves layers out of what is to be drawn alone.
    skips = [0 if sizes and row < len(negative) else first.clip_skip for row in range(len(rows))]
    conditioning = encode(rows, clip_skip=skips, syntax=first.prompt_syntax)
    if checkpoint.zero_empty_negative:
        conditioning = conditioning.zeroed([row for row, text in enumerate(negative) if not text])
    if sizes:
        numbers = [
            time_ids(request, count=sizes, negative=number < int(guided) + edits)
            for number in range(len(texts))
            for request in requests
        ]
        conditioning = replace(conditioning, time_ids=torch.tensor(numbers, dtype=torch.float32, device=device))
    if checkpoint.unet.config.guidance_channels is not None:
        scales = torch.tensor([request.guidance_scale for request in requests], dtype=torch.float32, device=device)
        conditioning = replace(conditioning, guidance_scale=scales)
    return conditioning


def stages_of(request: Request, steps: int, checkpoint: Checkpoint) -> tuple[Stage, ...]:
    """Read what a request says to a model at each step of an image.

    Of models that were trained on captions that leave nothing open, the seed says what the prompt does not: see
    `genpipe.scenes.details`. It does not where an image is given, which says it, or where the prompt is to be read as it is.
    """
    stages = read_prompts(
        request.prompt, request.negative_prompt, seed=request.seed, steps=steps, syntax=request.prompt_syntax
    )
    if not checkpoint.defaults.get("details") or request.image is not None or request.prompt_syntax == "plain":
        return stages
    from genpipe.scenes.details import open_details

    def in_full(part: Span) -> Span:
        added = open_details(plain_text(part.text), request.seed, checkpoint.concepts)
        return part._replace(text=f"{part.text} {added}".rstrip())

    return tuple(replace(stage, parts=tuple(map(in_full, stage.parts))) for stage in stages)


def written(request: Request, checkpoint: Checkpoint) -> tuple[str, str]:
    """Give a request's prompt and negative prompt as programs take them that know no choice by the seed."""
    first, *later = stages_of(request, request.steps, checkpoint)
    part, *others = first.parts
    if later or others:
        return chosen(request.prompt, request.negative_prompt, seed=request.seed, syntax=request.prompt_syntax)
    return part.text, first.negative


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

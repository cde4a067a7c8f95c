"""Drawing several images for one that is asked for, and keeping the one that a judge says shows the prompt best."""

import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from genpipe.images import Picture
from genpipe.judge import Scorer, Unscored, best_index, choose_judge, judged
from genpipe.metadata import annotate_choice
from genpipe.prompts.reading import words_of
from genpipe.request import Request
from genpipe.seeds import seeds_for


def candidates(request: Request, best_of: int) -> list[Request]:
    """Give the requests that one image is chosen from: the same with `best_of` seeds, from its own on."""
    return [replace(request, seed=seed) for seed in seeds_for(request.seed, best_of)]


def choose_scorer(judge: str | Path | Scorer | None, *, embedded: bool, device: torch.device) -> Scorer:
    """Return the judge to choose by.

    Args:
        judge: one, or the name of one, see `genpipe.judge.choose_judge`.
        embedded: whether the images are the embedded model's.
        device: of a judge that is loaded here.

    Raises:
        ValueError: there is no such judge, or it does not know what is to be drawn.
    """
    if judge is None and not embedded:
        raise ValueError("the embedded judge knows only what the embedded model draws: give a CLIP model as judge")
    return choose_judge(judge, device=device) if judge is None or isinstance(judge, str | Path) else judge


def shown(request: Request) -> str:
    """Give what an image is to show, in words without signs, for a judge."""
    return words_of(request.prompt, seed=request.seed, syntax=request.prompt_syntax)


def best(images: Sequence[Picture], requests: Sequence[Request], best_of: int, scorer: Scorer) -> list[Picture]:
    """Return of every `best_of` images the one with the highest score, the first of equals, with all scores in its info.

    Where the judge scores none of them, as of a prompt that it cannot read, the first is kept and one warning says why.
    """
    scores = judged(images, [shown(request) for request in requests], scorer)
    chosen, unscored = [], {}
    for start in range(0, len(images), best_of):
        group = scores[start : start + best_of]
        image = images[start + best_index(group)]
        seeds = [request.seed for request in requests[start : start + best_of]]
        annotate_choice(image, [{"seed": seed, **one.to_dict()} for seed, one in zip(seeds, group, strict=True)])
        if (reasons := [one.reason for one in group if isinstance(one, Unscored)]) and len(reasons) == len(group):
            unscored[reasons[0]] = None
        chosen.append(image)
    for reason in unscored:
        warnings.warn(
            f"the first of {best_of} images is kept, as the judge scores none of them: {reason}", stacklevel=3
        )
    return chosen

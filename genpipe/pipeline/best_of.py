"""Drawing several pictures for one that is asked for, and keeping the one that a judge says shows the prompt best."""

from collections.abc import Sequence
from pathlib import Path

from genpipe.images import Picture
from genpipe.judge import Scorer, choose_judge
from genpipe.metadata import annotate_choice
from genpipe.request import Request


def choose_scorer(judge: str | Path | Scorer | None, requests: Sequence[Request], *, embedded: bool) -> Scorer:
    """The judge to choose by, once it has said that it can judge the prompts.

    Args:
        judge: one, or what `genpipe.judge.scene_judge.choose_judge` makes one of.
        embedded: whether the pictures are the embedded model's.

    Raises:
        ValueError: the judge does not know what is to be drawn.
    """
    if judge is None and not embedded:
        raise ValueError("the embedded judge knows only what the embedded model draws: give a CLIP model as judge")
    scorer = choose_judge(judge) if judge is None or isinstance(judge, str | Path) else judge
    for prompt in dict.fromkeys(request.prompt for request in requests):
        scorer.check_prompt(prompt)
    return scorer


def best(images: Sequence[Picture], requests: Sequence[Request], best_of: int, scorer: Scorer) -> list[Picture]:
    """Of every `best_of` pictures the one with the highest score, the first of equals, with all scores in its info."""
    scores = scorer.scores(images, [request.prompt for request in requests])
    chosen = []
    for start in range(0, len(images), best_of):
        group = range(start, start + best_of)
        image = images[max(group, key=lambda i: scores[i].total)]
        annotate_choice(image, [{"seed": requests[i].seed, **scores[i].to_dict()} for i in group])
        chosen.append(image)
    return chosen

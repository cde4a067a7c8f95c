"""Of several images that were drawn for one, the best by the judge's word."""

from collections.abc import Sequence
from typing import Any

from genpipe.images import Picture
from genpipe.judge import Scorer, best_index, judged
from genpipe.metadata import annotate_choice
from genpipe.pipeline.best_of import shown
from genpipe.request import Request
from genpipe.workers.chunks import Failure


def chosen(
    images: Sequence[Picture | Failure], requests: Sequence[Request], judge: Scorer | None
) -> tuple[Picture | Failure, dict[str, Any] | None]:
    """Choose the image with the highest score, with its seed and what the judge said; of images that all failed, the first.

    Args:
        images: drawn from `requests`, at least one.
        judge: None takes the first, and says nothing.
    """
    drawn = [(x, request) for x, request in zip(images, requests, strict=True) if not isinstance(x, Failure)]
    if judge is None or not drawn:
        return (drawn[0][0] if drawn else images[0]), None
    scores = judged([image for image, _ in drawn], [shown(request) for _, request in drawn], judge)
    index = best_index(scores)
    image, request = drawn[index]
    annotate_choice(
        image, [{"seed": one.seed, **score.to_dict()} for (_, one), score in zip(drawn, scores, strict=True)]
    )
    said = scores[index].to_dict()
    return image, {"seed": request.seed, "total": said["total"], "score": said}

"""Whether an image shows what its prompt asks for."""

from genpipe.judge.choose import choose_judge, score
from genpipe.judge.scores import Check, Score, Scorer

__all__ = ["Check", "Score", "Scorer", "choose_judge", "score"]

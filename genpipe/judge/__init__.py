"""Whether an image shows what its prompt asks for."""

from genpipe.judge.choose import choose_judge, score
from genpipe.judge.scores import Check, Score, Scorer, Unscored, best_index, judged

__all__ = ["Check", "Score", "Scorer", "Unscored", "best_index", "choose_judge", "judged", "score"]

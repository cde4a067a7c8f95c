"""Teaching the text encoder what captions say, before the denoiser has to draw it.

Captions are cheap and images are not: an encoder that can already tell every thing, colour and place of the world from
the caption leaves the denoiser to learn only what they look like.
"""

import random
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.profiler import record_function

from genpipe.models.text_encoder import TextEncoder
from genpipe.models.tokenizer import Tokenizer
from genpipe.scenes.colours import COLOURS
from genpipe.scenes.concepts import names
from genpipe.scenes.places import SETTINGS
from genpipe.scenes.world import RELATIONS, Scene
from genpipe.training.loop import Randomness, StagedLoss, quick_attention

# Each question about a scene and its possible answers; None stands for "there is none".
QUESTIONS: dict[str, tuple[str | int | None, ...]] = {
    "first": (None, *names()),
    "second": (None, *names()),
    "colour": (None, *COLOURS),
    "setting": SETTINGS,
    "relation": (None, *RELATIONS),
    "count": (0, 1, 2, 3, 4),
    "size": (None, "small", "big"),
}
_NUMBERS = {question: {answer: i for i, answer in enumerate(answers)} for question, answers in QUESTIONS.items()}


def answers(scene: Scene) -> list[int]:
    """Return what a caption of the scene tells: the number of the right answer to each of `QUESTIONS`."""
    things = [placed.concept for placed in scene.objects]
    said = {
        "first": things[0] if things else None,
        "second": next((thing for thing in things if thing != things[0]), None),
        "colour": scene.objects[0].colour if things else None,
        "setting": scene.setting,
        "relation": scene.relation,
        "count": len(things),
        "size": scene.size,
    }
    return [_NUMBERS[question][answer] for question, answer in said.items()]


class Reader(nn.Module):
    """The text encoder, with one linear layer per question on top of its vector at the end of the caption."""

    def __init__(self, encoder: TextEncoder) -> None:
        super().__init__()
        self.encoder = encoder
        self.heads = nn.ModuleList(
            nn.Linear(encoder.config.hidden_size, len(options)) for options in QUESTIONS.values()
        )

    def forward(self, ids: Tensor) -> list[Tensor]:
        """Return the logits (B, answers) of each question for token ids (B, T)."""
        pooled = self.encoder(ids).pooled
        return [head(pooled) for head in self.heads]


def reading_loss(
    draw_scene: Callable[[random.Random], Scene],
    word: Callable[[Scene, random.Random], str],
    tokenizer: Tokenizer,
    *,
    batch: int = 128,
) -> StagedLoss[tuple[np.ndarray, np.ndarray]]:
    """Return the cross-entropy of all answers, summed over the questions.

    Args:
        draw_scene: draws a scene of the world; its image is not needed.
        word: words one of the scene's captions.
    """

    def prepare(step: int, randomness: Randomness) -> tuple[np.ndarray, np.ndarray]:
        with record_function("training/captions"):
            scenes: Sequence[Scene] = [draw_scene(randomness.choices) for _ in range(batch)]
            ids = tokenizer([word(scene, randomness.choices) for scene in scenes]).ids
            return np.array(ids), np.array([answers(scene) for scene in scenes])

    def admit(prepared: tuple[np.ndarray, np.ndarray], step: int, randomness: Randomness) -> tuple[Tensor, ...]:
        ids, right = (torch.from_numpy(each) for each in prepared)
        longest = int((ids != tokenizer.eos_id).sum(1).max()) + 1
        return ids[:, :longest], right  # a token sees none after it: padding is idle

    def value(model: nn.Module, ids: Tensor, right: Tensor) -> Tensor:
        with quick_attention(ids.device, ids.shape[1]):
            told = model(ids)
        parts = [F.cross_entropy(logits.float(), right[:, i]) for i, logits in enumerate(told)]
        return torch.stack(parts).sum()

    return StagedLoss(prepare, admit, value)

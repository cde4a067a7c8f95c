"""Judging any image by any prompt with a CLIP model, for checkpoints that draw more than genpipe's world.

"Learning Transferable Visual Models From Natural Language Supervision" (Radford et al., 2021), through transformers, which
is imported only when such a model is loaded.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from genpipe.hardware import choose_device
from genpipe.judge.scores import BATCH, Score

WEIGHT = 2.5  # of the cosine in "CLIPScore" (Hessel et al., 2021), which stretches it to about 0 … 1


class ClipJudge:
    """A CLIP model and its processor; `from_pretrained` makes one."""

    def __init__(self, model: Any, processor: Any) -> None:
        self.model, self.processor = model.eval(), processor

    @classmethod
    def from_pretrained(cls, path_or_id: str | Path, *, device: str | torch.device | None = None) -> "ClipJudge":
        """Load a CLIP model in the layout of transformers, from safetensors.

        Args:
            path_or_id: a folder, or a hub id such as "openai/clip-vit-large-patch14".
            device: None takes the best there is.

        Raises:
            ValueError: there is no such model, or it is not CLIP's, or not whole.
        """
        from transformers import CLIPModel, CLIPProcessor

        try:
            model = CLIPModel.from_pretrained(path_or_id, use_safetensors=True)
            processor = CLIPProcessor.from_pretrained(path_or_id)
        except (OSError, ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise ValueError(f"judge {str(path_or_id)!r} is not a CLIP model that can be loaded: {reason}") from error
        return cls(model.to(choose_device(device)), processor)  # pyright: ignore[reportArgumentType]

    def check_prompt(self, prompt: str) -> None:
        """Accept every prompt; one that is longer than the model's positions is cut there."""

    @torch.inference_mode()
    def scores(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> list[Score]:
        """Return the CLIPScore of each image and its prompt, clipped to 0 … 1."""
        found = []
        for start in range(0, len(images), BATCH):
            converted = [image.convert("RGB") for image in images[start : start + BATCH]]
            texts = list(prompts[start : start + BATCH])
            inputs = self.processor(text=texts, images=converted, return_tensors="pt", padding=True, truncation=True)
            output = self.model(**inputs.to(self.model.device))
            cosines = torch.cosine_similarity(output.image_embeds.float(), output.text_embeds.float(), dim=1)
            totals = (WEIGHT * cosines).clamp(0, 1).tolist()
            found += [Score(text, total) for text, total in zip(texts, totals, strict=True)]
        return found

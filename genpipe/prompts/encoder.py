"""Prompts to the vectors that the denoiser attends to."""

import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from genpipe.hardware import float32_copy
from genpipe.models.finite import NonFiniteError
from genpipe.models.text_encoder import TextEncoder
from genpipe.models.tokenizer import Tokenizer


class PromptEncoder:
    """A tokenizer and its text encoder. Called with prompts it gives their context; each distinct one is encoded once.

    Args:
        tokenizer: of the text encoder's vocabulary.
        text_encoder: gives it, ready to run, for as long as it is needed.
        device: where it runs.
        model: what errors call the model.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        text_encoder: Callable[[], AbstractContextManager[TextEncoder]],
        *,
        device: torch.device,
        model: str,
    ) -> None:
        self._tokenizer, self._text_encoder, self._device, self._model = tokenizer, text_encoder, device, model
        # The context of the empty prompt, which guidance leads away from: encoded once for all pictures, by clip_skip.
        self._empty: dict[int, Tensor] = {}

    def __call__(self, prompts: Sequence[str], *, clip_skip: int = 0) -> Tensor:
        """Prompts to their context (B, T, D).

        A prompt that is longer than the text encoder's positions is cut there, with a warning that quotes what was cut.

        Raises:
            NonFiniteError: the context is not finite, in fp32 either.
        """
        distinct = list(dict.fromkeys(prompts))
        tokens = self._tokenizer(distinct)
        for cut in filter(None, tokens.cut):
            quoted = cut if len(cut) <= 60 else f"{cut[:60]}…"
            warnings.warn(
                f"the prompt is cut after {self._tokenizer.length - 2} tokens, leaving out {quoted!r}", stacklevel=3
            )
        ids = torch.tensor(tokens.ids, device=self._device)
        known = {"": self._empty[clip_skip]} if clip_skip in self._empty else {}

        def encoded(text_encoder: TextEncoder) -> Tensor:
            # One at a time: an encoding must not depend on what else is in the batch.
            rows = zip(distinct, ids, strict=True)
            return torch.cat(
                [
                    known[text] if text in known else text_encoder(row[None], clip_skip=clip_skip).context
                    for text, row in rows
                ]
            )

        with self._text_encoder() as text_encoder:
            contexts = encoded(text_encoder)
            if not contexts.isfinite().all():
                contexts = encoded(float32_copy(text_encoder))
            if not contexts.isfinite().all():
                raise NonFiniteError.of("text encoder", text_encoder, self._model)
        if "" in distinct:
            self._empty[clip_skip] = contexts[[distinct.index("")]]
        return contexts[[distinct.index(prompt) for prompt in prompts]]

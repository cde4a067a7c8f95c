"""Prompts to what they tell the denoiser."""

import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from threading import Lock

import torch

from genpipe.models.conditioning import Conditioning
from genpipe.models.finite import NonFiniteError, float32_copy
from genpipe.models.text_encoder import TextEncoder
from genpipe.models.tokenizer import Tokenizer

# Bytes of encoded prompts that are kept: some 500 prompts of Stable Diffusion 1 in 16 bits, 200 of SDXL.
KEPT_BYTES = 64 * 2**20


class PromptEncoder:
    """Encode prompts with a tokenizer and its text encoder; those used last are kept, and not encoded again.

    Args:
        tokenizer: of the text encoder's vocabulary.
        text_encoder: gives it, ready to run, for as long as it is needed.
        device: where it runs.
        model: what errors call the model.
        kept_bytes: memory for encoded prompts.

    Attributes:
        seconds: spent on encoding so far.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        text_encoder: Callable[[], AbstractContextManager[TextEncoder]],
        *,
        device: torch.device,
        model: str,
        kept_bytes: int = KEPT_BYTES,
    ) -> None:
        self._tokenizer, self._text_encoder, self._device, self._model = tokenizer, text_encoder, device, model
        self._kept_bytes = kept_bytes
        self._kept: dict[tuple[str, int], Conditioning] = {}  # of one row each, the least recently used first
        self._lock = Lock()
        self.seconds = 0.0

    def __call__(self, prompts: Sequence[str], *, clip_skip: int = 0) -> Conditioning:
        """Encode prompts, a row each.

        A prompt that is longer than the text encoder's positions is cut there, with a warning that quotes what was cut.

        Args:
            prompts: at least one.
            clip_skip: last layers of the text encoder to leave out.

        Raises:
            NonFiniteError: the context is not finite, in fp32 either.
        """
        keys = [(prompt, clip_skip) for prompt in prompts]
        with self._lock:
            encoded = {key: self._kept[key] for key in keys if key in self._kept}
        missing = [prompt for prompt, _ in dict.fromkeys(keys) if (prompt, clip_skip) not in encoded]
        if missing:
            started = time.perf_counter()
            rows = self._encode(missing, clip_skip)
            encoded |= {(prompt, clip_skip): row for prompt, row in zip(missing, rows, strict=True)}
            with self._lock:
                self.seconds += time.perf_counter() - started
        with self._lock:
            self._keep(encoded)
        return Conditioning.join([encoded[key] for key in keys])

    def _keep(self, used: dict[tuple[str, int], Conditioning]) -> None:
        for key, row in used.items():
            self._kept.pop(key, None)
            self._kept[key] = row
        size = sum(row.nbytes for row in self._kept.values())
        while size > self._kept_bytes:
            size -= self._kept.pop(next(iter(self._kept))).nbytes

    def _encode(self, prompts: Sequence[str], clip_skip: int) -> list[Conditioning]:
        tokens = self._tokenizer(prompts)
        for cut in filter(None, tokens.cut):
            quoted = cut if len(cut) <= 60 else f"{cut[:60]}…"
            warnings.warn(
                f"the prompt is cut after {self._tokenizer.length - 2} tokens, leaving out {quoted!r}", stacklevel=4
            )
        ids = torch.tensor(tokens.ids, device=self._device)
        with self._text_encoder() as text_encoder:
            # One at a time: an encoding must not depend on what else is in the batch.
            contexts = [text_encoder(row[None], clip_skip=clip_skip).context for row in ids]
            finite = [bool(context.isfinite().all()) for context in contexts]
            if not all(finite):
                in_fp32 = float32_copy(text_encoder)
                for index in (index for index, whole in enumerate(finite) if not whole):
                    contexts[index] = in_fp32(ids[[index]], clip_skip=clip_skip).context
                    if not contexts[index].isfinite().all():
                        raise NonFiniteError.of("text encoder", text_encoder, self._model)
        return [Conditioning(context) for context in contexts]

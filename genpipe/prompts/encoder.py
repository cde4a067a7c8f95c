"""Prompts to what they tell the denoiser."""

import time
import warnings
from collections.abc import Sequence
from threading import Lock

import torch
from torch import Tensor

from genpipe.messages import quoted
from genpipe.models.conditioning import Conditioning
from genpipe.models.finite import NonFiniteError, float32_copy
from genpipe.models.text_encoder import TextEncoder, TextEncoding
from genpipe.prompts.embeddings import missing
from genpipe.prompts.text_part import TextPart

__all__ = ["PromptEncoder", "TextPart"]

# Bytes of encoded prompts that are kept: some 500 prompts of Stable Diffusion 1 in 16 bits, 200 of SDXL.
KEPT_BYTES = 64 * 2**20


class PromptEncoder:
    """Encode prompts with one or more text encoders; the prompts used last are kept, and not encoded again.

    Args:
        parts: the text encoders, in the order in which their vectors are joined.
        pooled: whether the denoiser also takes one vector for the whole prompt, as SDXL's do. It is the last encoder's,
            and the context is then of the penultimate layers, without the final norms.
        device: where the encoders run.
        model: what errors call the model.
        kept_bytes: memory for encoded prompts.

    Attributes:
        seconds: spent on encoding so far.
    """

    def __init__(
        self,
        parts: Sequence[TextPart],
        *,
        device: torch.device,
        model: str,
        pooled: bool = False,
        kept_bytes: int = KEPT_BYTES,
    ) -> None:
        self._parts, self._pooled, self._device, self._model = tuple(parts), pooled, device, model
        self._kept_bytes = kept_bytes
        self._kept: dict[tuple[str, int], Conditioning] = {}  # of one row each, the least recently used first
        self._lock = Lock()
        self.seconds = 0.0

    @torch.inference_mode()
    def __call__(self, prompts: Sequence[str], *, clip_skip: int | Sequence[int] = 0) -> Conditioning:
        """Encode prompts, a row each.

        A prompt that is longer than a text encoder's positions is cut there, with a warning that quotes what was cut.

        Args:
            prompts: at least one.
            clip_skip: last layers of the text encoders to leave out, for all prompts or for each.

        Returns:
            The context (rows, T, D), with the vectors of all encoders side by side, and pooled (rows, P) if asked for.

        Raises:
            NonFiniteError: an encoding is not finite, in fp32 either.
        """
        skips = [clip_skip] * len(prompts) if isinstance(clip_skip, int) else clip_skip
        keys = list(zip(prompts, skips, strict=True))
        with self._lock:
            encoded = {key: self._kept[key] for key in keys if key in self._kept}
        missing = [key for key in dict.fromkeys(keys) if key not in encoded]
        if missing:
            started = time.perf_counter()
            encoded |= zip(missing, self._encode(missing), strict=True)
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

    def _encode(self, keys: Sequence[tuple[str, int]]) -> list[Conditioning]:
        """A row for each prompt and the layers to leave out for it."""
        prompts, skips = zip(*keys, strict=True)
        for name in dict.fromkeys(missing(prompts, self._parts[0].tokenizer.words)):
            warnings.warn(
                f"there is no textual inversion {quoted(name)}, and the prompt keeps it as words: give it with --embeddings",
                stacklevel=4,
            )
        tokens = [part.tokenizer(prompts) for part in self._parts]
        for cut in dict.fromkeys(text for each in tokens for text in each.cut if text):
            left_out = cut if len(cut) <= 60 else f"{cut[:60]}…"
            length = min(part.tokenizer.length for part in self._parts)
            warnings.warn(f"the prompt is cut after {length - 2} tokens, leaving out {left_out!r}", stacklevel=4)
        encodings = [
            self._encode_part(part, torch.tensor(each.ids, device=self._device), skips)
            for part, each in zip(self._parts, tokens, strict=True)
        ]
        return [
            Conditioning(
                torch.cat([encoding.context for encoding in each], dim=-1),
                pooled=each[-1].pooled if self._pooled else None,
            )
            for each in zip(*encodings, strict=True)
        ]

    def _encode_part(self, part: TextPart, ids: Tensor, skips: Sequence[int]) -> list[TextEncoding]:
        """What one encoder makes of each row of token ids, (prompts, T)."""

        def encode(encoder: TextEncoder, index: int) -> TextEncoding:
            # One at a time: an encoding must not depend on what else is in the batch.
            return encoder(ids[[index]], clip_skip=skips[index], penultimate=self._pooled, learned=part.learned)

        with part.lend() as encoder:
            rows = [encode(encoder, index) for index in range(len(ids))]
            overflowed = [index for index, row in enumerate(rows) if not self._finite(row)]
            in_fp32 = float32_copy(encoder) if overflowed else encoder
            for index in overflowed:
                rows[index] = encode(in_fp32, index)
                if not self._finite(rows[index]):
                    raise NonFiniteError.of("text encoder", encoder, self._model)
        return rows

    def _finite(self, encoding: TextEncoding) -> bool:
        tensors = encoding if self._pooled else (encoding.context,)
        return all(bool(tensor.isfinite().all()) for tensor in tensors)

"""Prompts to what they tell the denoiser."""

import time
import warnings
from collections.abc import Sequence
from functools import lru_cache
from threading import Lock
from typing import NamedTuple

import torch
from torch import Tensor

from genpipe.messages import Notice, quoted
from genpipe.models.conditioning import Conditioning
from genpipe.models.finite import NonFiniteError, float32_copy
from genpipe.models.text_encoder import TextEncoder, TextEncoding
from genpipe.prompts.chunks import MAX_CHUNKS, Chunk, cut_notice, read_chunks
from genpipe.prompts.embeddings import missing
from genpipe.prompts.text_part import TextPart
from genpipe.prompts.weighting import weighted

__all__ = ["PromptEncoder", "TextPart"]

# Bytes of encoded prompts that are kept: some 500 prompts of Stable Diffusion 1 in 16 bits, 200 of SDXL.
KEPT_BYTES = 64 * 2**20
# Chunks of prompts that are encoded at once on a GPU.
GPU_ROWS = 16
# Prompts whose tokens are kept.
KEPT_READ = 2048

# A prompt, the last layers to leave out for it, and the syntax that it is read in.
_Key = tuple[str, int, str]


class _Encoded(NamedTuple):
    """What a prompt becomes, a row, and what of it is not drawn as it was meant."""

    row: Conditioning
    notices: tuple[Notice, ...]


class PromptEncoder:
    """Encode prompts with one or more text encoders; the prompts used last are kept, and not encoded again.

    Args:
        parts: the text encoders, in the order in which their vectors are joined.
        pooled: whether the denoiser also takes one vector for the whole prompt, as SDXL's do. It is the last encoder's,
            and the context is then of the penultimate layers, without the final norms.
        device: where the encoders run.
        model: what errors call the model.
        kept_bytes: memory for encoded prompts.
        rows: chunks of 75 tokens that are encoded at once; always so many, or what one becomes would depend on how many
            others there are. By default 1 on a CPU, and `GPU_ROWS` on a GPU, which takes about as long for them as for one.

    Attributes:
        parts: the text encoders.
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
        rows: int | None = None,
    ) -> None:
        self.parts, self._pooled, self._device, self._model = tuple(parts), pooled, device, model
        self._kept_bytes = kept_bytes
        self._rows = rows if rows is not None else 1 if device.type == "cpu" else GPU_ROWS
        self._kept: dict[_Key, _Encoded] = {}  # the least recently used first
        # Prompts that are drawn are read twice, and many have the same negative prompt.
        self._read = lru_cache(KEPT_READ)(read_chunks)
        self._size = 0  # bytes of what is kept
        self._lock = Lock()
        self.seconds = 0.0

    @torch.inference_mode()
    def __call__(
        self, prompts: Sequence[str], *, clip_skip: int | Sequence[int] = 0, syntax: str = "a1111"
    ) -> Conditioning:
        """Encode prompts, a row each.

        Rows of different lengths are repeated to one length, see `Conditioning.join`. What a prompt holds past the last token
        that is read is cut off, with a warning that quotes it, each time that the prompt is asked for.

        Args:
            prompts: at least one.
            clip_skip: last layers of the text encoders to leave out, for all prompts or for each.
            syntax: "a1111" weights words by their brackets, and reads prompts of any length in chunks, see
                `genpipe.prompts.syntax` and `genpipe.prompts.chunks`; "plain" reads one chunk of each, as it stands.

        Returns:
            The context (rows, T, D), with the vectors of all encoders side by side, and pooled (rows, P) if asked for,
            which is that of the first chunk.

        Raises:
            ValueError: a weight is out of range, or a prompt is not text.
            NonFiniteError: an encoding is not finite, in fp32 either.
        """
        skips = [clip_skip] * len(prompts) if isinstance(clip_skip, int) else clip_skip
        keys = [(prompt, skip, syntax) for prompt, skip in zip(prompts, skips, strict=True)]
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
        for notice in dict.fromkeys(notice for key in keys for notice in encoded[key].notices):
            warnings.warn(notice, stacklevel=3)
        if self._device.type == "cuda":
            # They may have been made in another stream, which must not take their memory while this one reads it.
            stream = torch.cuda.current_stream(self._device)
            for tensor in (tensor for row, _ in encoded.values() for tensor in (row.context, row.pooled)):
                if tensor is not None:
                    tensor.record_stream(stream)
        return Conditioning.join([encoded[key].row for key in keys])

    def lengths(self, prompts: Sequence[str], *, syntax: str = "a1111") -> list[int]:
        """Give how many vectors the context of each prompt has."""
        if syntax == "plain":
            return [self.parts[0].tokenizer.length] * len(prompts)
        return [
            max(
                len(self._read(prompt, part.tokenizer, syntax=syntax).chunks) * part.tokenizer.length
                for part in self.parts
            )
            for prompt in prompts
        ]

    def _keep(self, used: dict[_Key, _Encoded]) -> None:
        for key, encoded in used.items():
            if self._kept.pop(key, None) is None:
                self._size += encoded.row.nbytes
            self._kept[key] = encoded
        while self._size > self._kept_bytes:
            self._size -= self._kept.pop(next(iter(self._kept))).row.nbytes

    def _encode(self, keys: Sequence[_Key]) -> list[_Encoded]:
        """A row for each prompt, read in its syntax, and the layers to leave out for it."""
        found = [
            [self._read(prompt, part.tokenizer, syntax=syntax) for prompt, _, syntax in keys] for part in self.parts
        ]
        # Vocabularies may differ, and with them the number of chunks; the vectors of all encoders stand side by side.
        counts = [max(len(each.chunks) for each in of_prompt) for of_prompt in zip(*found, strict=True)]
        encodings = []
        for part, of_part in zip(self.parts, found, strict=True):
            empty = self._read("", part.tokenizer, syntax="plain").chunks
            rows = [
                each.chunks + empty * (count - len(each.chunks)) for each, count in zip(of_part, counts, strict=True)
            ]
            encodings.append(self._encode_part(part, rows, [skip for _, skip, _ in keys]))
        rows = [
            Conditioning(
                torch.cat([encoding.context for encoding in each], dim=-1),
                pooled=each[-1].pooled if self._pooled else None,
            )
            for each in zip(*encodings, strict=True)
        ]
        notices = [
            self._notices(prompt, syntax, [each.cut for each in of_prompt])
            for (prompt, _, syntax), of_prompt in zip(keys, zip(*found, strict=True), strict=True)
        ]
        return list(map(_Encoded, rows, notices))

    def _notices(self, prompt: str, syntax: str, cuts: Sequence[str]) -> tuple[Notice, ...]:
        """What of a prompt is not drawn as it was meant, `cuts` being the ends that the encoders leave out."""
        form = "there is no textual inversion {name}, and the prompt keeps it as words: give it with --embeddings"
        absent = [Notice(form, name=quoted(name)) for name in missing([prompt], self.parts[0].tokenizer.words)]
        length = min(part.tokenizer.length for part in self.parts) - 2
        length = length if syntax == "plain" else length * MAX_CHUNKS
        return *absent, *(cut_notice(length, cut) for cut in dict.fromkeys(filter(None, cuts)))

    def _encode_part(
        self, part: TextPart, prompts: Sequence[Sequence[Chunk]], skips: Sequence[int]
    ) -> list[TextEncoding]:
        """What one encoder makes of the chunks of each prompt: context (1, T, D), pooled (1, P)."""
        chunks = [(chunk, skip) for own, skip in zip(prompts, skips, strict=True) for chunk in own]
        with part.lend() as encoder:
            encoded = self._run(encoder, chunks, part.learned)
            overflowed = [index for index, finite in enumerate(self._finite(encoded)) if not finite]
            if overflowed:
                repeated = self._run(float32_copy(encoder), [chunks[index] for index in overflowed], part.learned)
                if not all(self._finite(repeated)):
                    raise NonFiniteError.of("text encoder", encoder, self._model)
                for index, encoding in zip(overflowed, repeated, strict=True):
                    encoded[index] = encoding
        left = iter(encoded)
        rows = []
        for own in prompts:
            mine = [next(left) for _ in own]
            contexts = [weighted(each.context[0], chunk.weights) for each, chunk in zip(mine, own, strict=True)]
            rows.append(TextEncoding(torch.cat(contexts)[None], mine[0].pooled))
        return rows

    def _run(
        self, encoder: TextEncoder, chunks: Sequence[tuple[Chunk, int]], learned: Tensor | None
    ) -> list[TextEncoding]:
        """The encoding of each chunk, with its number of last layers to leave out: context (1, T, D), pooled (1, P)."""
        encoded: dict[int, TextEncoding] = {}
        for skip in dict.fromkeys(skip for _, skip in chunks):
            wanted = [index for index, (_, its) in enumerate(chunks) if its == skip]
            for start in range(0, len(wanted), self._rows):
                batch = wanted[start : start + self._rows]
                ids = [chunks[index][0].ids for index in batch]
                ids += ids[-1:] * (self._rows - len(ids))
                found = encoder(
                    torch.tensor(ids, device=self._device), clip_skip=skip, penultimate=self._pooled, learned=learned
                )
                rows = zip(found.context.split(1), found.pooled.split(1), strict=True)
                encoded |= {index: TextEncoding(*row) for index, row in zip(batch, rows, strict=False)}
        return [encoded[index] for index in range(len(chunks))]

    def _finite(self, encodings: Sequence[TextEncoding]) -> list[bool]:
        finite = torch.cat([each.context for each in encodings]).isfinite().all(dim=2).all(dim=1)  # (rows,)
        if self._pooled:
            finite &= torch.cat([each.pooled for each in encodings]).isfinite().all(dim=1)
        return finite.tolist()

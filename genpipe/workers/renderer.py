"""What a worker does with a batch: networks, judge, files. The only part of rendering that loads torch."""

import gc
import hashlib
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Lock
from typing import Any, TypeVar

import torch
from torch import Tensor

from genpipe.checkpoints.fingerprint import checkpoint_files, fingerprint
from genpipe.embedded import EMBEDDED
from genpipe.hardware import one_thread, peak_memory
from genpipe.images import Picture, encode_image
from genpipe.judge import best_index, judged
from genpipe.metadata import annotate_choice
from genpipe.models.finite import NonFiniteError
from genpipe.pipeline import Pipeline
from genpipe.pipeline.best_of import candidates, choose_scorer, shown
from genpipe.request import Request
from genpipe.workers.messages import THUMBNAIL, Drawn, Job, Model, Result, Task, thumbnail_path
from genpipe.workers.storage import open_storage

T = TypeVar("T")
R = TypeVar("R")

# Images decoded together: the decoder's memory peaks far above the denoiser's.
CHUNK = 4
# What a batch may take where its best size is measured.
LARGEST = {"cuda": 64, "mps": 16, "cpu": 16}


class Failure(str):
    """Why there is no image."""


@dataclass
class Begun:
    """A batch half drawn: candidates are `best_of` a task; `chosen` has the best of them and what the judge said."""

    tasks: Sequence[Task]
    candidates: list[Request]
    latents: list[Tensor | Failure] = field(default_factory=list)
    chosen: list[tuple[Picture | Failure, dict[str, Any] | None]] = field(default_factory=list)
    result: Result = field(default_factory=Result)


class Renderer:
    """A loaded model that turns tasks into files.

    A batch is drawn in two halves, `begin` and `finish`, so that files are written while the next batch's networks run.

    Raises:
        ValueError: the model, the dtype or the judge is not there.
    """

    def __init__(self, job: Job, device: str | None = None) -> None:
        self.job = job
        self.pipeline = Pipeline.from_pretrained(replace(job.spec, device=device))
        embedded = self.pipeline.name == "embedded"
        self.judge = choose_scorer(job.judge, embedded=embedded) if job.judged else None
        self._storage = open_storage(job.out)
        self._writers = ThreadPoolExecutor(4, "write")
        self._cuda = self.pipeline.device.type == "cuda"
        self._decoding = Lock()
        self._fits: dict[str, int] = {}

    def model(self) -> Model:
        """Say what the coordinator must know to plan."""
        pipeline, spec = self.pipeline, self.job.spec
        return Model(
            name=pipeline.name,
            fingerprint=fingerprint(
                checkpoint_files(
                    EMBEDDED if spec.model is None else spec.model,
                    spec.revision,
                    model_dir=spec.model_dir,
                    parts={name: getattr(spec, name) for name in ("vae", "text_encoder", "embeddings", "refiner")},
                )
            ),
            dtype=str(pipeline.dtype).removeprefix("torch."),
            defaults={"": pipeline.defaults(), "lcm": pipeline.defaults("lcm")},
            factor=pipeline.vae.config.factor,
            layers=min(len(each.layers) for each in pipeline.text_encoders),
            distilled=pipeline.distilled,
        )

    def begin(self, tasks: Sequence[Task], shape: str = "", measure: bool = False) -> Begun:
        """Run the networks over a batch; one thread at a time.

        Args:
            tasks: images that agree in what a batch must agree in.
            shape: the batch's, by which sizes that fit are remembered.
            measure: find out first how many images of this shape a batch should take.
        """
        requests: list[tuple[Task, Request]] = []
        refused: list[tuple[int, str]] = []
        for task in tasks:
            try:
                requests.append((task, Request.from_dict(task.request)))
            except ValueError as error:  # its image or LoRA has changed since it was planned
                refused.append((task.number, str(error)))
        drawn = [one for _, request in requests for one in candidates(request, self.job.best_of)]
        begun = Begun([task for task, _ in requests], drawn, result=Result(failed=refused))
        with one_thread(self.job.deterministic):
            if measure and drawn and not self.job.deterministic:
                started = time.perf_counter()
                self._fits[shape] = begun.result.size = self._best_size(drawn[0])
                begun.result.seconds["measure"] = time.perf_counter() - started
            encoder = self.pipeline.prompt_encoder
            fits, encoded, started = self._fits.get(shape), encoder.seconds, time.perf_counter()
            begun.latents = self._denoised(drawn, shape)
            text = encoder.seconds - encoded
            begun.result.seconds |= {"text": text, "denoise": time.perf_counter() - started - text}
            if self._fits.get(shape) != fits:
                begun.result.size = self._fits[shape]
            # A GPU decodes a batch beside the next one's denoising; a CPU has nothing left to do it with.
            if not self._cuda:
                self._decode(begun)
        return begun

    def finish(self, begun: Begun) -> Result:
        """Encode and write a batch's images; may run beside the next one's `begin`.

        Raises:
            OSError: a file cannot be written.
        """
        if self._cuda:
            with self._decoding, torch.cuda.stream(torch.cuda.Stream(self.pipeline.device)):
                self._decode(begun)
        result = begun.result
        self._write_all(begun, result)
        result.peak = peak_memory()
        if self._cuda:
            result.peak = torch.cuda.max_memory_allocated(self.pipeline.device)
        return result

    def _decode(self, begun: Begun) -> None:
        """Images of the latents, and of each task's candidates the best."""
        started = time.perf_counter()
        images = self._decoded(begun.latents, begun.candidates)
        begun.latents = []
        decoded, n = time.perf_counter(), self.job.best_of
        begun.chosen = [
            self._best(images[start : start + n], begun.candidates[start : start + n])
            for start in range(0, len(images), n)
        ]
        begun.result.seconds |= {"decode": decoded - started, "judge": time.perf_counter() - decoded}

    def _denoised(self, requests: list[Request], shape: str) -> list[Tensor | Failure]:
        """Denoise each request to its latents (C, h, w)."""

        def run(batch: list[Request]) -> list[Tensor]:
            latents = torch.empty(0)
            for state in self.pipeline.stream(batch):
                latents = state.latents
            return list(latents)

        size = 1 if self.job.deterministic else self._fits.get(shape, len(requests))
        return self._in_chunks(run, requests, size, lambda fits: self._fits.__setitem__(shape, fits))

    def _decoded(self, latents: list[Tensor | Failure], requests: list[Request]) -> list[Picture | Failure]:
        """Decode latents to images; what failed before stays as it is."""
        pairs = [(x, request) for x, request in zip(latents, requests, strict=True) if not isinstance(x, Failure)]

        def run(chunk: list[tuple[Tensor, Request]]) -> list[Picture]:
            return self.pipeline.decode(torch.stack([x for x, _ in chunk]), [request for _, request in chunk])

        decoded = iter(self._in_chunks(run, pairs, 1 if self.job.deterministic else CHUNK))
        return [x if isinstance(x, Failure) else next(decoded) for x in latents]

    def _in_chunks(
        self,
        run: Callable[[list[T]], list[R]],
        items: list[T],
        size: int,
        fits: Callable[[int], None] = lambda size: None,
    ) -> list[R | Failure]:
        """`run` over items, `size` at a time: fewer when memory runs out, one by one where a chunk cannot be drawn."""
        results: list[R | Failure] = []
        retried = False
        while len(results) < len(items):
            chunk = items[len(results) : len(results) + size]
            try:
                results += run(chunk)
                retried = False
                continue
            except OSError:
                raise
            except Exception as error:
                if "CUDA error" in str(error):  # it would fail for ever after: the process has to end
                    raise
                reason, short = _reason(error), _out_of_memory(error)
            # Out here the failed attempt's tensors are gone.
            if short and not (retried and len(chunk) == 1):
                _free_memory()
                if len(chunk) > 1:
                    size = len(chunk) // 2
                    fits(size)
                retried = len(chunk) == 1  # others may have had the memory for a moment
            elif len(chunk) == 1:
                results.append(Failure(reason))
                retried = False
            else:
                for item in chunk:
                    results += self._in_chunks(run, [item], 1)
        return results

    def _best(
        self, images: list[Picture | Failure], requests: list[Request]
    ) -> tuple[Picture | Failure, dict[str, Any] | None]:
        """Choose the image with the highest score, with its seed and what the judge said; of images that all failed, the first."""
        drawn = [(x, request) for x, request in zip(images, requests, strict=True) if not isinstance(x, Failure)]
        if self.judge is None or not drawn:
            return (drawn[0][0] if drawn else images[0]), None
        scores = judged([image for image, _ in drawn], [shown(request) for _, request in drawn], self.judge)
        index = best_index(scores)
        image, request = drawn[index]
        annotate_choice(
            image, [{"seed": one.seed, **score.to_dict()} for (_, one), score in zip(drawn, scores, strict=True)]
        )
        said = scores[index].to_dict()
        return image, {"seed": request.seed, "total": said["total"], "score": said}

    def _write_all(self, begun: Begun, result: Result) -> None:
        written = []
        for task, (image, detail) in zip(begun.tasks, begun.chosen, strict=True):
            if isinstance(image, Failure):
                result.failed.append((task.number, str(image)))
            else:
                written.append(self._writers.submit(self._write, task, image, detail))
        seconds = {"encode": 0.0, "write": 0.0}
        for future in written:
            drawn, encode, write = future.result()
            result.drawn.append(drawn)
            seconds = {"encode": seconds["encode"] + encode, "write": seconds["write"] + write}
        result.seconds |= seconds

    def _write(self, task: Task, image: Picture, detail: dict[str, Any] | None) -> tuple[Drawn, float, float]:
        started = time.perf_counter()
        data = encode_image(image, Path(task.path).suffix)
        small = None
        if max(image.size) > THUMBNAIL:
            thumbnail = image.copy()
            thumbnail.thumbnail((THUMBNAIL, THUMBNAIL))
            small = encode_image(thumbnail, ".webp")
        encoded = time.perf_counter()
        if small is not None:
            self._storage.write(thumbnail_path(task.id), small)
        self._storage.write(task.path, data)
        drawn = (task.number, len(data), hashlib.sha256(data).hexdigest(), detail)
        return drawn, encoded - started, time.perf_counter() - encoded

    def _best_size(self, request: Request) -> int:
        """Measure how many images of this shape a batch should take: doubled for as long as the time of two steps per image falls."""
        best, rate, size = 1, 0.0, 1
        short = replace(request, steps=min(2, request.steps))
        while size <= LARGEST[self.pipeline.device.type]:
            try:
                for _ in range(2 if size == 1 else 1):  # the very first is slow by itself
                    started = time.perf_counter()
                    for _ in self.pipeline.stream(candidates(short, size)):
                        pass
                    seconds = time.perf_counter() - started
            except Exception as error:  # noqa: BLE001 - what is wrong with it, the drawing will tell
                if not _out_of_memory(error):
                    break
                seconds = float("inf")
            if size / seconds < 1.03 * rate:
                break
            best, rate, size = size, size / seconds, 2 * size
        _free_memory()
        return best


def _out_of_memory(error: Exception) -> bool:
    text = str(error).lower()
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and ("out of memory" in text or "can't allocate memory" in text)
    )


def _reason(error: Exception) -> str:
    if _out_of_memory(error):
        return "out of memory, with one image at a time too: make it smaller"
    text = " ".join(str(error).split())
    return text if isinstance(error, ValueError | NonFiniteError) else f"{type(error).__name__}: {text}"


def _free_memory() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()

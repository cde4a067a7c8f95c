"""What a worker does with a batch: networks, judge, files. The only part of rendering that loads torch."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from threading import Lock
from typing import Any

import torch
from torch import Tensor

from genpipe.checkpoints.fingerprint import checkpoint_files, fingerprint
from genpipe.embedded import EMBEDDED
from genpipe.hardware import one_thread, peak_memory
from genpipe.images import Picture
from genpipe.pipeline import Pipeline
from genpipe.pipeline.best_of import candidates, choose_scorer
from genpipe.processors import processors
from genpipe.request import Request
from genpipe.spec import FILES
from genpipe.workers.batch_size import Memory
from genpipe.workers.busy import Busy
from genpipe.workers.choosing import chosen
from genpipe.workers.chunks import Failure, in_chunks, is_lost
from genpipe.workers.described import describe
from genpipe.workers.kept_sizes import KeptSizes
from genpipe.workers.measuring import GPU_PIXELS, Drawn, Watch, device_memory, measured_size
from genpipe.workers.messages import Job, Model, Result, Task
from genpipe.workers.writing import Writer, writer_processes

# Pixels decoded together on a GPU, and images on another device: the decoder's memory peaks far above the denoiser's.
CHUNK_PIXELS, CHUNK = 4 * 512 * 512, 4
# Batches that a worker has at a time: one in the networks and one that is written or waits; or beside that in the networks
# one that is prepared, one whose last steps the device is at, one that is decoded and written, and one that waits.
DEPTH, DEPTH_BESIDE = 2, 5


@dataclass
class BatchInProgress:
    """A batch half drawn: candidates are `best_of` a task; `chosen` has the best of them and what the judge said."""

    tasks: Sequence[Task]
    candidates: list[Request]
    shape: str = ""
    latents: list[Tensor | Failure] = field(default_factory=list)
    chosen: list[tuple[Picture | Failure, dict[str, Any] | None]] = field(default_factory=list)
    result: Result = field(default_factory=Result)


class Renderer:
    """A loaded model that turns tasks into files.

    A batch is drawn in three parts, `prepare`, `begin` and `finish`, of which the first and the last may run beside
    another batch's `begin`.

    Args:
        job: what the run's workers have to know.
        device: this worker's; None takes the best there is.
        kept: batch sizes that earlier runs found; by default those in the user's cache folder.
        beside: prepare and decode batches beside the networks. By default on a GPU: a CPU has nothing left to do it with.
        writers: processes that write images, 0 for threads; None is as many as there are processors for, beside a GPU.

    Raises:
        ValueError: the model, the dtype or the judge is not there.
    """

    def __init__(
        self,
        job: Job,
        device: str | None = None,
        *,
        kept: KeptSizes | None = None,
        beside: bool | None = None,
        writers: int | None = None,
    ) -> None:
        self.job = job
        self.pipeline = Pipeline.from_pretrained(replace(job.spec, device=device))
        embedded = self.pipeline.name == "embedded"
        self.judge = choose_scorer(job.judge, embedded=embedded, device=self.pipeline.device) if job.judged else None
        sign = None
        if job.sign is not None:
            from genpipe.signing import Signer

            sign = Signer(job.sign)
        self._kept = KeptSizes() if kept is None else kept
        self._cuda = self.pipeline.device.type == "cuda"
        self._beside = self._cuda if beside is None else beside
        self._depth = DEPTH_BESIDE if self._beside else DEPTH
        if writers is None:
            writers = writer_processes(processors()) if self._beside else 0
        self._writer = Writer(job.out, sign=sign, signs_with=job.sign, processes=writers)
        self._pixels = GPU_PIXELS if self._beside else None
        # One each for all batches: torch keeps memory by stream.
        self._stream = torch.cuda.Stream(self.pipeline.device) if self._cuda else None
        self._text_stream = torch.cuda.Stream(self.pipeline.device) if self._cuda else None
        if self._text_stream is not None:  # the weights come first
            self._text_stream.wait_stream(torch.cuda.current_stream(self.pipeline.device))
        self._decoding, self._busy = Lock(), Busy()
        self._fits: dict[str, int] = {}
        self._chunk_fits: dict[str, int] = {}
        self._peak = 0
        # Prompts are encoded ahead unless that changes networks that are running, as other LoRAs do.
        self._ahead = self._beside and not self.pipeline.is_wrapped and not job.spec.low_memory
        # Those that are in the networks for certain, and those of the batch that was prepared last.
        self._loras: tuple[Any, ...] | None = None
        self._prepared: tuple[Any, ...] | None = None
        self._fingerprint: str | None = None

    def model(self) -> Model:
        """Say what the coordinator must know to plan."""
        fingerprint = self._model_fingerprint()
        return describe(self.pipeline, fingerprint=fingerprint, depth=self._depth, pixels=self._pixels)

    def _model_fingerprint(self) -> str:
        if self._fingerprint is None:
            spec = self.job.spec
            files = checkpoint_files(
                EMBEDDED if spec.model is None else spec.model,
                spec.revision,
                file=spec.file,
                model_dir=spec.model_dir,
                parts={
                    # Of one file or folder each; drafts alone depend on a tiny autoencoder.
                    **{name: getattr(spec, name) for name in FILES if name not in ("control_model", "tiny_vae")},
                    "control_model": ",".join(spec.control_model),
                },
            )
            self._fingerprint = fingerprint(files)
        return self._fingerprint

    def prepare(self, tasks: Sequence[Task]) -> BatchInProgress:
        """Read the requests of a batch; on a GPU their prompts are encoded, too. One thread at a time.

        Args:
            tasks: images that agree in what a batch must agree in.
        """
        requests: list[tuple[Task, Request]] = []
        refused: list[tuple[int, str]] = []
        for task in tasks:
            try:
                requests.append((task, Request.from_dict(task.request)))
            except ValueError as error:  # its image or LoRA has changed since it was planned
                refused.append((task.number, str(error)))
        n = self.job.best_of
        drawn = (
            [request for _, request in requests]
            if n == 1
            else [one for _, request in requests for one in candidates(request, n)]
        )
        begun = BatchInProgress([task for task, _ in requests], drawn, result=Result(failed=refused))
        if self._ahead and drawn:
            before, self._prepared = self._prepared, drawn[0].loras
            if before == self._prepared == self._loras:
                # In the stream of the steps it would wait for all that are launched, and the next batch for it.
                self._encode(begun, self._text_stream)
        return begun

    def _encode(self, begun: BatchInProgress, stream: torch.cuda.Stream | None) -> bool:
        """Encode the prompts, which the pipeline's encoder keeps until they are wanted; False where that cannot be."""
        started = time.perf_counter()
        try:  # most of it is reading, which gives the device no work
            with torch.cuda.stream(stream):
                self.pipeline.encode(begun.candidates)
            if stream is not None:
                stream.synchronize()  # whichever stream reads it
            return True
        except Exception as error:
            if is_lost(error):
                raise
            return False
        finally:
            begun.result.seconds["text"] = time.perf_counter() - started

    def begin(
        self, begun: BatchInProgress, shape: str = "", waiting: int = 0, launched: Callable[[], None] = lambda: None
    ) -> BatchInProgress:
        """Run the networks over a batch that `prepare` gave; one thread at a time.

        Args:
            launched: called, maybe more than once, when all steps have been given to a device that works by itself: another
                batch may begin.
            shape: the batch's, by which sizes that fit are remembered.
            waiting: how many images of this shape there are to draw, if it is to be found out how many of them a batch
                should take; else 0. This batch is drawn first, and tells what trying other sizes may cost and save.
        """
        begun.shape, drawn, result = shape, begun.candidates, begun.result
        with one_thread(self.job.deterministic), self._busy:
            if self._ahead and drawn and drawn[0].loras != self._loras:
                steps = torch.cuda.current_stream(self.pipeline.device) if self._cuda else None
                self._loras = None
                if self._encode(begun, steps):  # which puts them in
                    self._loras = drawn[0].loras
            watch = Watch(self.pipeline.device) if waiting and not self.job.deterministic else None
            fits, encoded, started = self._fits.get(shape), self.pipeline.text_seconds, time.perf_counter()
            begun.latents = self._denoised(drawn, shape, launched, watch)
            text = 0.0 if self._beside else self.pipeline.text_seconds - encoded
            result.seconds.setdefault("text", text)
            result.seconds["denoise"] = time.perf_counter() - started - text
            if watch is not None and watch.drawn is not None:
                started = time.perf_counter()
                left = waiting - self._depth * len(begun.tasks)  # the other batches are made already
                self._measure(drawn[0], shape, watch.drawn, max(0, left), result)
                result.seconds["measure"] = time.perf_counter() - started
            if self._fits.get(shape) != fits:
                result.size = self._fits[shape]
            if not self._beside:
                self._decode(begun)
        return begun

    def finish(self, begun: BatchInProgress) -> Result:
        """Encode and write a batch's images; may run beside the next ones' `prepare` and `begin`.

        Raises:
            OSError: a file cannot be written.
        """
        if self._beside:
            with self._decoding, torch.cuda.stream(self._stream):  # None is no other
                self._decode(begun)
        result = begun.result
        self._write_all(begun, result)
        if self._cuda:
            self._peak = max(self._peak, torch.cuda.max_memory_allocated(self.pipeline.device))
        result.peak = self._peak if self._cuda else peak_memory()
        result.seconds["busy"] = self._busy.take()
        return result

    def _measure(self, request: Request, shape: str, drawn: Drawn, waiting: int, result: Result) -> None:
        """Find how many images of a shape a batch should take, after one was drawn; an error leaves it as it is."""
        told = device_memory(self.pipeline.device)

        def memory() -> Memory:
            assert told is not None
            seen = told()
            self._peak = max(self._peak, seen.used)
            return seen

        spec = self.job.spec.to_dict()
        depends_on = {
            "model": self._model_fingerprint(),
            **{name: value for name, value in spec.items() if name not in ("model", "model_dir")},
            "dtype": str(self.pipeline.dtype),
            "shape": shape,
        }
        try:
            with self._decoding:  # another batch's would disturb the timing
                size, result.said = measured_size(
                    self.pipeline,
                    request,
                    drawn=drawn,
                    waiting=waiting * self.job.best_of,
                    depends_on=depends_on,
                    kept=self._kept,
                    pixels=self._pixels,
                    memory=None if told is None else memory,
                )
        except Exception as error:
            if is_lost(error):
                raise
            return
        self._fits[shape] = result.size = size

    def _decode(self, begun: BatchInProgress) -> None:
        """Images of the latents, and of each task's candidates the best."""
        started = time.perf_counter()
        with self._busy:
            images = self._decoded(begun.latents, begun.candidates, begun.shape)
        begun.latents = []
        decoded, n = time.perf_counter(), self.job.best_of
        begun.chosen = [
            chosen(images[start : start + n], begun.candidates[start : start + n], self.judge)
            for start in range(0, len(images), n)
        ]
        begun.result.seconds |= {"decode": decoded - started, "judge": time.perf_counter() - decoded}

    def _denoised(
        self, requests: list[Request], shape: str, launched: Callable[[], None], watch: Watch | None
    ) -> list[Tensor | Failure]:
        """Denoise each request to its latents (C, h, w)."""

        def run(batch: list[Request]) -> list[Tensor]:
            latents, states = torch.empty(0), self.pipeline.stream(batch)
            for state in states if watch is None else watch.over(states, len(batch)):
                latents = state.latents
                # What follows waits for the device, and looks at what it gave.
                if (
                    self._beside
                    and watch is None
                    and not self.job.deterministic
                    and batch[-1] is requests[-1]
                    and state.step == state.steps
                ):
                    launched()
            return list(latents)

        size = 1 if self.job.deterministic else self._fits.get(shape, len(requests))
        return in_chunks(run, requests, size, lambda fits: self._fits.__setitem__(shape, fits))

    def _decoded(self, latents: list[Tensor | Failure], requests: list[Request], shape: str) -> list[Picture | Failure]:
        """Decode latents to images; what failed before stays as it is."""
        pairs = [(x, request) for x, request in zip(latents, requests, strict=True) if not isinstance(x, Failure)]

        def run(chunk: list[tuple[Tensor, Request]]) -> list[Picture]:
            return self.pipeline.decode(torch.stack([x for x, _ in chunk]), [request for _, request in chunk])

        size = 1 if self.job.deterministic or not pairs else self._chunk(pairs[0][1], shape)
        decoded = iter(in_chunks(run, pairs, size, lambda fits: self._chunk_fits.__setitem__(shape, fits)))
        return [x if isinstance(x, Failure) else next(decoded) for x in latents]

    def _chunk(self, request: Request, shape: str) -> int:
        usual = max(1, CHUNK_PIXELS // (request.width * request.height)) if self._beside else CHUNK
        return self._chunk_fits.get(shape, usual)

    def _write_all(self, begun: BatchInProgress, result: Result) -> None:
        writing = []
        for task, (image, detail) in zip(begun.tasks, begun.chosen, strict=True):
            if isinstance(image, Failure):
                result.failed.append((task.number, str(image)))
            else:
                writing.append((task, detail, self._writer.submit(task.id, task.path, image)))
        seconds = {"encode": 0.0, "write": 0.0}
        for task, detail, future in writing:
            written = future.result()
            result.drawn.append((task.number, written.size, written.sha256, detail))
            seconds = {stage: before + getattr(written, stage) for stage, before in seconds.items()}
        result.seconds |= seconds

"""What a worker's networks do: many images, each at a step of its own, evaluated together where they can be."""

import warnings
from collections import deque
from collections.abc import Hashable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import RLock

import torch
from torch import Tensor

from genpipe.images import Picture, encode_image
from genpipe.messages import Notice, one_line
from genpipe.pipeline import Pipeline
from genpipe.pipeline.progress import Progress
from genpipe.pipeline.run import Run, Together
from genpipe.server.jobs import Drawn, Failed, Job, News, Stepped
from genpipe.server.paths import without_paths
from genpipe.server.sizes import Sizes
from genpipe.workers.chunks import Failure, free_unused, in_chunks, is_lost, is_out_of_memory, reason_of

# Images decoded together: the decoder's memory peaks far above the denoiser's.
CHUNK = 4
_HEARING = RLock()  # what catches warnings is one per process, not one per thread


@dataclass(eq=False)
class _Image:
    """A job that is being drawn, by a run that others can join, or by a stream of its own."""

    job: Job
    run: Run | None = None
    stream: Iterator[Progress] | None = None
    latents: Tensor | None = None
    ticked: int = 0  # when it was last evaluated
    apart: bool = False  # evaluated with nobody else, after an accident
    warnings: dict[Notice, None] = field(default_factory=dict)


class Batches:
    """The images that one worker draws. Those of one form take every evaluation of the network together.

    Args:
        pipelines: the models, by name.
        sizes: how many images go through a network together.
    """

    def __init__(self, pipelines: Mapping[str, Pipeline], sizes: Sizes) -> None:
        self._pipelines, self.sizes = pipelines, sizes
        self._images: list[_Image] = []
        self._together: dict[Hashable, Together] = {}
        self._fits: dict[Hashable, int] = {}
        self._tick = 0
        self._encoders = ThreadPoolExecutor(2, "encode")
        self._encoding: deque[Future[News]] = deque()

    def __len__(self) -> int:
        return len(self._images) + len(self._encoding)

    def add(self, job: Job) -> list[News]:
        """Begin a job; what is wrong with it is told at once."""
        image = _Image(job)
        try:
            with _heard(image):
                self._begin(image)
        except Exception as error:
            if is_lost(error):
                raise
            return [_failure(job, error)]
        self._images.append(image)
        return []

    def cancel(self, identifier: str) -> None:
        """Let go of a job."""
        self._images = [image for image in self._images if image.job.id != identifier]

    def tick(self) -> tuple[list[News], int]:
        """Take the images whose turn it is one evaluation further.

        Returns:
            What became of them and of those that were being written, and how many were evaluated.
        """
        news: list[News] = []
        chosen, form = self._turn()
        if chosen:
            self._tick += 1
            try:
                self._advance(chosen, form, news)
            except Exception as error:
                if is_lost(error):
                    raise
                self._recover(chosen, form, error, news)
            for image in chosen:
                image.ticked = self._tick
            self._finish([image for image in chosen if image.latents is not None], news)
        while self._encoding and (not self._images or self._encoding[0].done()):
            news.append(self._encoding.popleft().result())
        return news, len(chosen)

    def _begin(self, image: _Image) -> None:
        pipeline = self._pipelines[image.job.model]
        image.latents, image.stream, image.run = None, None, pipeline.begin(image.job.request)
        if image.run is None:
            image.stream = pipeline.stream([image.job.request])

    def _turn(self) -> tuple[list[_Image], Hashable]:
        """The images that are evaluated next, and their form: the one that has waited longest, and others of its form."""
        if not self._images:
            return [], None
        first = min(self._images, key=lambda image: image.ticked)
        if self._pipelines[first.job.model].is_wrapped:  # it draws one batch at a time, to its end
            begun = [image for image in self._images if image.job.model == first.job.model and image.ticked]
            return [*begun, first][:1], None
        forms = {image: _form(image) for image in self._images if image.run is not None}
        for gone in self._together.keys() - set(forms.values()):
            del self._together[gone]
        if first.run is None or first.apart:
            return [first], forms.get(first)
        form = forms[first]
        alike = [image for image, own in forms.items() if own == form and not image.apart]
        alike.sort(key=lambda image: image.ticked)
        height, width = first.run.latents.shape[-2:]
        return alike[: self._fits.get(form, self.sizes.of(first.job.model, height * width))], form

    def _advance(self, images: Sequence[_Image], form: Hashable, news: list[News]) -> None:
        first = images[0]
        if first.run is None:
            self._advance_stream(first, news)
            return
        runs = [image.run for image in images if image.run is not None]
        before = [run.step for run in runs]
        with _heard(*images):
            self._together.setdefault(form, Together())(runs)
        for image, run, step in zip(images, runs, before, strict=True):
            if run.step > step:
                news.append(self._stepped(image, run.step, run.steps, run.latents))
            if run.done:
                self._go_on(image, run, news)

    def _go_on(self, image: _Image, run: Run, news: list[News]) -> None:
        """Do what follows on a run: the next, decoding, or, where 16 bits have overflowed, a stream, which mends that in fp32."""
        if not bool(run.latents.isfinite().all()):
            image.run, image.stream = None, self._pipelines[image.job.model].stream([image.job.request])
        elif run.then is None:
            image.latents = run.latents
        else:
            try:
                with _heard(image), torch.inference_mode():
                    image.run = run.then(run.latents)
            except Exception as error:
                if is_lost(error):
                    raise
                self._images.remove(image)
                news.append(_failure(image.job, error))

    def _advance_stream(self, image: _Image, news: list[News]) -> None:
        assert image.stream is not None
        with _heard(image):
            state = next(image.stream)
        news.append(self._stepped(image, state.step, state.steps, state.latents))
        if state.step == state.steps:
            with _heard(image):
                later = next(image.stream, None)  # an image that is not finite begins again
            if later is None:
                image.latents = state.latents

    def _stepped(self, image: _Image, step: int, steps: int, latents: Tensor) -> Stepped:
        preview = None
        if image.job.previews:
            (picture,) = self._pipelines[image.job.model].preview(latents)
            preview = encode_image(picture, ".jpg")
        return Stepped(image.job.id, step, steps, preview)

    def _recover(self, images: Sequence[_Image], form: Hashable, error: Exception, news: list[News]) -> None:
        """Begin images again after an accident: fewer together where memory was short, else each alone."""
        if is_out_of_memory(error):
            free_unused()
            self._fits[form] = max(1, len(images) // 2)
        if len(images) == 1:
            self._images.remove(images[0])
            news.append(_failure(images[0].job, error))
            return
        for image in images:
            image.apart = not is_out_of_memory(error)
            try:
                self._begin(image)
            except Exception as again:  # noqa: BLE001 - as in `add`
                self._images.remove(image)
                news.append(_failure(image.job, again))

    def _finish(self, images: Sequence[_Image], news: list[News]) -> None:
        """Decode what is done, and have it written by another thread."""
        self._images = [image for image in self._images if image not in images]
        for group in _by_shape(images):
            pipeline = self._pipelines[group[0].job.model]

            def decode(chunk: list[_Image], pipeline: Pipeline = pipeline) -> list[Picture]:
                latents = torch.cat([image.latents for image in chunk if image.latents is not None])
                with _heard(*chunk):
                    return pipeline.decode(latents, [image.job.request for image in chunk])

            for image, picture in zip(group, in_chunks(decode, group, CHUNK), strict=True):
                if isinstance(picture, Failure):
                    news.append(Failed(image.job.id, str(picture)))
                else:
                    self._encoding.append(self._encoders.submit(_written, image, picture))


def _form(image: _Image) -> Hashable:
    """What images must agree in to be evaluated together."""
    assert image.run is not None
    return image.job.model, image.run.form


def _by_shape(images: Sequence[_Image]) -> list[list[_Image]]:
    """Images whose latents can be decoded together."""
    groups: dict[Hashable, list[_Image]] = {}
    for image in images:
        request = image.job.request
        assert image.latents is not None
        # Of latents of one shape a model may make images of two sizes.
        size = (request.height, request.width, request.upscale)
        key = (image.job.model, tuple(image.latents.shape), size, request.speed, request.tile)
        # Images to begin from may have parts that stay or not; each is put together by itself.
        groups.setdefault(key if request.image is None else image, []).append(image)
    return list(groups.values())


def _written(image: _Image, picture: Picture) -> News:
    """The file of an image, which says nothing of where files of this machine lie."""
    try:
        picture.info |= without_paths(picture.info)
        return Drawn(image.job.id, encode_image(picture, image.job.suffix), tuple(image.warnings))
    except Exception as error:  # noqa: BLE001 - it runs in another thread, where nobody would hear of it
        return _failure(image.job, error)


def _failure(job: Job, error: Exception) -> Failed:
    return Failed(job.id, one_line(reason_of(error)), "refused" if isinstance(error, ValueError) else "failed")


@contextmanager
def _heard(*images: _Image) -> Iterator[None]:
    """Keep what is warned of for those who asked, and not for the log: it quotes their prompts."""
    with _HEARING, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for category in (DeprecationWarning, PendingDeprecationWarning, FutureWarning):
            warnings.simplefilter("ignore", category)
        yield
    for warning in caught:
        said = warning.message
        notice = said if isinstance(said, Notice) else Notice("{text}", text=one_line(str(said)))
        for image in images:
            image.warnings[notice] = None

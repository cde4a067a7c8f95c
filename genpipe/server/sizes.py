"""How many images go through a server's networks together: measured while there is nothing else to do, and kept on disk."""

import time
from collections.abc import Callable, Mapping

from PIL import Image

from genpipe.pipeline import Pipeline
from genpipe.request import Request
from genpipe.server.jobs import USUAL
from genpipe.workers.kept_sizes import KeptSizes
from genpipe.workers.measuring import BATCHES, GPU_PIXELS, device_memory, measured_size

# The most images that go together: others wait for each evaluation.
MOST = 64


class Sizes:
    """The batch sizes of a worker's models.

    Args:
        pipelines: the models, by name.
        most: for all of them; None measures.
        kept: what was found before; None is the file in the user's cache folder.
        clock: gives seconds.
    """

    def __init__(
        self,
        pipelines: Mapping[str, Pipeline],
        *,
        most: int | None = None,
        kept: KeptSizes | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._pipelines, self._most, self._clock = pipelines, most, clock
        self._kept = KeptSizes() if kept is None else kept
        self._found: dict[str, int] = {}
        own = [name for name, pipeline in pipelines.items() if not pipeline.is_wrapped]
        self._unknown = own if most is None else []

    @property
    def unknown(self) -> bool:
        """Whether there is something to measure."""
        return bool(self._unknown)

    @property
    def largest(self) -> int:
        """The most images that are worth having at a time."""
        return max(USUAL, *self._found.values(), 0) if self._most is None else self._most

    def of(self, model: str, latent_pixels: int) -> int:
        """Say how many images of so many latent pixels go together: as many as have the pixels of those that were measured."""
        if self._most is not None:
            return self._most
        pipeline = self._pipelines[model]
        usual, factor = pipeline.defaults(), pipeline.traits.factor
        own = usual["width"] * usual["height"] // factor**2
        return min(MOST, max(1, self._found.get(model, USUAL) * own // latent_pixels))

    def measure(self, wanted: Callable[[], bool]) -> bool:
        """Find the size of one model whose size is not known; False where there is none, or it cannot be found.

        Args:
            wanted: whether the worker has something else to do: asked at each step, and the search is given up.
        """
        while self._unknown:
            model = self._unknown[0]
            try:
                self._found[model] = self._measured(self._pipelines[model], wanted)
            except _Wanted:
                return False
            except (ValueError, RuntimeError, MemoryError, OSError):  # the usual size has to do
                self._unknown.pop(0)
                continue
            self._unknown.pop(0)
            return True
        return False

    def _measured(self, pipeline: Pipeline, wanted: Callable[[], bool]) -> int:
        def each_step() -> None:
            if wanted():
                raise _Wanted

        request = first_request(pipeline)
        spec = {name: value for name, value in pipeline.spec.to_dict().items() if name not in ("model", "model_dir")}
        depends_on = {
            "serve": f"{request.width}x{request.height}, {request.steps} steps",
            "networks": f"{pipeline.unet.config} {pipeline.vae.config}",
            **spec,
            "dtype": str(pipeline.dtype),
        }
        size, _ = measured_size(
            pipeline,
            request,
            waiting=MOST * BATCHES,
            depends_on=depends_on,
            kept=self._kept,
            pixels=GPU_PIXELS if pipeline.device.type == "cuda" else None,
            memory=device_memory(pipeline.device),
            clock=self._clock,
            each_step=each_step,
        )
        return size


class _Wanted(Exception):
    """The worker has something else to do."""


def first_request(pipeline: Pipeline) -> Request:
    """Give a request that a model can draw: of its usual size, without words."""
    usual = pipeline.defaults()
    # Transparent: all of it is to change.
    image = Image.new("RGBA", (usual["width"], usual["height"])) if pipeline.traits.shown is not None else None
    (request,) = pipeline.requests("", seed=0, image=image)
    return request

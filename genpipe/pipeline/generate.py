"""`generate`: a prompt to an image in one call, with a pipeline that stays loaded."""

from collections.abc import Sequence
from pathlib import Path
from threading import Lock
from typing import Any, Literal, Unpack, overload

from genpipe.fields import settings_of
from genpipe.images import Picture
from genpipe.pipeline.draw_options import DrawOptions
from genpipe.pipeline.pipeline import Pipeline
from genpipe.spec import ModelOptions, ModelSpec


class GenerateOptions(DrawOptions, ModelOptions, total=False):
    """What `generate` takes besides prompt, model, n and seeds."""


class Warm:
    """The pipeline of the last call; safe under threads, and never two in memory by its doing."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._kept: tuple[ModelSpec, Pipeline] | None = None

    def pipeline(self, spec: ModelSpec) -> Pipeline:
        """Give the pipeline of a spec, loading it in the place of the one that was kept."""
        with self._lock:
            if self._kept is None or self._kept[0] != spec:
                self._kept = None  # before the next is loaded
                self._kept = (spec, Pipeline.from_pretrained(spec))
            return self._kept[1]


_warm = Warm()


@overload
def generate(
    prompt: str,
    *,
    model: str | Path | None = None,
    n: Literal[1] = 1,
    seeds: None = None,
    **options: Unpack[GenerateOptions],
) -> Picture: ...
@overload
def generate(
    prompt: Sequence[str],
    *,
    model: str | Path | None = None,
    n: int = 1,
    seeds: Sequence[int] | None = None,
    **options: Unpack[GenerateOptions],
) -> list[Picture]: ...
@overload
def generate(
    prompt: str,
    *,
    model: str | Path | None = None,
    n: int = 1,
    seeds: Sequence[int] | None = None,
    **options: Unpack[GenerateOptions],
) -> Picture | list[Picture]: ...
def generate(
    prompt: str | Sequence[str],
    *,
    model: str | Path | None = None,
    n: int = 1,
    seeds: Sequence[int] | None = None,
    **options: Unpack[GenerateOptions],
) -> Picture | list[Picture]:
    """Draw a prompt: `generate("pirate ship").save("ship.png")`.

    The pipeline of the last call is kept, so that the next with the same model starts at once.

    Args:
        prompt: one prompt, or a list.
        model: a folder, a hub id or a file; None is the embedded model.
        n: images per prompt.
        seeds: one for each image, in the place of `seed`.
        options: the attributes of `ModelSpec` (device, dtype, …), and all that `Pipeline.__call__` takes (seed, steps,
            guidance_scale, height, width, sampler, best_of, …).

    Returns:
        A PIL image, or a list of them for a list of prompts, n > 1 or a list of seeds.

    Raises:
        ValueError: an option is unknown or out of its range, or the checkpoint is not one that genpipe can run.
        NonFiniteError: the networks gave no finite image, in fp32 either.
    """
    given: dict[str, Any] = dict(options)
    loading = {name: given.pop(name) for name in settings_of(ModelSpec) if name in given}
    pipeline = _warm.pipeline(ModelSpec.from_dict({"model": model, **loading}))
    return pipeline(prompt, n=n, seeds=seeds, **given)

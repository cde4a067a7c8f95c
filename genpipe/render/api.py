"""Batch rendering in one call."""

from collections.abc import Generator, Iterable
from pathlib import Path
from typing import Any, Unpack

from genpipe.render.options import Options, RenderOptions
from genpipe.render.rendered import Rendered
from genpipe.render.run import Run
from genpipe.workers.engines import Engine, LocalEngine


def render(
    source: str | Path | Iterable[Any],
    *,
    out: str | Path | None = None,
    devices: str = "auto",
    engine: str | Engine = "local",
    address: str | None = None,
    storage: str | None = None,
    **options: Unpack[RenderOptions],
) -> Generator[Rendered, None, None]:
    """Render a list of prompts; a generator that yields every image as it finishes or fails.

    The same call again goes on where the last one ended; what was finished then is not drawn and not yielded.

    Args:
        source: a .txt, .jsonl or .csv file, "-" for standard input, or an iterable of prompts, of dicts with the fields
            of a row (prompt, negative_prompt, seed, n, steps, guidance_scale, sampler, width, height, file_name and any
            others, which are carried through), or of `Request`s.
        out: the folder; None keeps the images in memory.
        devices: "auto", "cpu", "cpu:4" (that many processes), "cuda", "cuda:0,cuda:1", or names that `nvidia-smi -L` shows.
        engine: "local", "ray", or an object of that interface.
        address: of the Ray cluster; None starts one on this machine.
        storage: fsspec URL that the images go to instead of `out`.
        options: the attributes of `Options`, of `ModelSpec` (model, dtype, …) and of `Request` (steps, sampler, …).

    Raises:
        ValueError: the input, an option or the folder cannot be used.
        OSError: files cannot be read or written.
        RuntimeError: workers die while they load the model.
    """
    made = make_engine(engine, devices, address)
    return Run(source, out, Options.of(**options), engine=made, storage=storage).pictures()


def make_engine(engine: str | Engine, devices: str, address: str | None) -> Engine:
    """The engine of a name.

    Raises:
        ValueError: there is none, or it is not installed.
    """
    if not isinstance(engine, str):
        return engine
    if engine == "local":
        if address is not None:
            raise ValueError(f"address {address!r} is for the ray engine: give engine ray, or leave it out")
        return LocalEngine(devices)
    if engine == "ray":
        from genpipe.workers.ray_engine import RayEngine

        return RayEngine(address, devices)
    raise ValueError(f"engine {engine!r} is unknown: use local or ray")

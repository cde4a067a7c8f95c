"""`--dry-run`: what a run would draw, how long it would take and how much disk it would need."""

import tempfile
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

from genpipe.render.journal import Journal
from genpipe.render.options import Options
from genpipe.render.packing import Batch, Packer
from genpipe.render.run import Run, request_of
from genpipe.workers.engines import Engine
from genpipe.workers.messages import Task, Work

# Solver steps of the images that are drawn to measure the speed.
STEPS = 2


def estimate(source: str | Path | Iterable[Any], options: Options, engine: Engine) -> str:
    """Describe a run into a new folder, for people: images, batches, time, disk.

    One batch is drawn in two steps; its time and bytes per pixel are scaled to all that there is to draw.

    Raises:
        ValueError: the input or the options cannot be used.
        OSError: the input cannot be read.
    """
    with tempfile.TemporaryDirectory(prefix="genpipe-") as folder:
        run = Run(source, folder, options, engine=engine)
        with run.planned() as (journal, model):
            packer = Packer(journal, partial(run.batch_size, model), distilled=model.traits.distilled)
            images = batches = shapes = largest = 0
            work, area, last = 0.0, 0, None
            samples: list[Batch] = []
            while (batch := packer.next()) is not None:
                if batch.shape != last and len(samples) < 4:
                    samples.append(batch)
                batches, shapes, last = batches + 1, shapes + (batch.shape != last), batch.shape
                largest = max(largest, len(batch.entries))
                for entry in batch.entries:
                    settings = journal.settings(entry.settings)
                    pixels = settings["width"] * settings["height"]
                    images, area, work = images + 1, area + pixels, work + pixels * settings["steps"]
            step, decode, size = _sample(journal, samples, engine, options.suffix)
            seconds = (work * step + area * decode) * options.best_of / engine.workers
        lines = [
            f"model      {model.name}, {model.dtype}, {engine.workers} worker{'s' * (engine.workers > 1)}",
            f"images     {images:,}" + f", the best of {options.best_of} each" * (options.best_of > 1),
            f"batches    {batches:,} of at most {largest}, {shapes:,} changes of shape",
            f"time       about {_duration(seconds)}, by a batch that was drawn in {STEPS} steps",
            f"disk       about {area * size / 1e6:,.1f} MB",
        ]
        if run.rejected:
            lines.append(f"not drawn  {run.rejected:,} rows that cannot be drawn")
        if run.repeated:
            lines.append(f"repeated   {run.repeated:,} images, drawn once")
        return "\n".join(lines)


def _sample(journal: Journal, batches: list[Batch], engine: Engine, suffix: str) -> tuple[float, float, float]:
    """Draw the first of these batches that can be drawn, twice.

    Returns:
        Seconds per pixel and step; seconds of decoding per pixel; bytes per pixel.
    """
    why = ""
    for batch in batches:
        settings = [{**journal.settings(entry.settings), "steps": STEPS} for entry in batch.entries]
        pixels = settings[0]["width"] * settings[0]["height"] * len(settings)
        tasks = [
            Task(entry.number, entry.id.hex(), f"images/{entry.number}{suffix}", request_of(entry, one))
            for entry, one in zip(batch.entries, settings, strict=True)
        ]
        result = None
        for key in (1, 2):  # the first is slow by itself
            engine.submit(Work(key, tasks))
            while (event := engine.event(1.0)) is None:
                pass
            result = event.result
            if result is None or result.failed:
                why = event.lost if result is None else result.failed[0][1]
                break
        else:
            assert result is not None
            seconds, size = result.seconds, sum(drawn[1] for drawn in result.drawn)
            return seconds["denoise"] / STEPS / pixels, seconds["decode"] / pixels, size / pixels
    raise ValueError(f"line {batches[0].entries[0].line} cannot be drawn: {why}")


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} minutes"
    return f"{minutes // 60} h {minutes % 60:02} min"

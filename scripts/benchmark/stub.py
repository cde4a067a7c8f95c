"""What rendering costs beside the networks: `genpipe render` on a device that only waits, as a GPU does for its host.

    python -m scripts.benchmark.stub                          # 1 ms per image of 512 x 512: what a fast GPU would take
    python -m scripts.benchmark.stub --ms 20 --images 300
    python -m scripts.benchmark.stub --size 128 --images 4096 --batch 256 --writers 3
    python -m scripts.benchmark.stub --encodings              # PNG alone: processor time and bytes, ours and Pillow's

The coordinator, the worker's process, those that write images, the reading of prompts, the encoding of PNG files and the
disk are the real ones; of the worker's process it is told what it computes itself.
Denoising waits the given time per image, one batch at a time; a text encoder gives always the same, and decoding hands out
images that are made beforehand, as noisy as photographs. The last line is one JSON object. Not covered: what launching a
GPU's kernels costs.
"""

import argparse
import io
import json
import os
import platform
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from genpipe.png import encode_png
from genpipe.render import Options, Run
from genpipe.request import Request
from genpipe.workers import process
from genpipe.workers.engines import LocalEngine

KEPT_IMAGES = 8


def photographs(count: int, side: int) -> list[np.ndarray]:
    """Images (side, side, 3) of 8 bits with the spectrum of photographs, 1 / frequency, and a little noise."""
    rng = np.random.default_rng(0)
    across = np.fft.fftfreq(side)
    frequency = np.hypot(across[:, None], across[None])
    frequency[0, 0] = 1.0
    made = []
    for _ in range(count):
        shared = rng.standard_normal((side, side))
        channels = []
        for _ in range(3):
            noise = 0.8 * shared + 0.3 * rng.standard_normal((side, side))
            shades = np.fft.ifft2(np.fft.fft2(noise) / frequency**1.3).real
            channels.append(shades / shades.std() * 50 + 120 + rng.standard_normal((side, side)))
        made.append(np.clip(np.stack(channels, -1), 0, 255).astype(np.uint8))
    return made


def work(milliseconds: float, side: int, writers: int | None) -> None:
    """Be a worker's process whose networks wait."""
    import torch

    from genpipe.images import Picture
    from genpipe.metadata import annotate
    from genpipe.models.text_encoder import TextEncoding
    from genpipe.pipeline.progress import Progress
    from genpipe.workers.messages import Job, Result
    from genpipe.workers.renderer import BatchInProgress, Renderer

    torch.set_num_threads(1)
    images = photographs(KEPT_IMAGES, side)
    device = threading.Lock()

    def make(job: Job, name: str | None) -> Renderer:
        renderer = Renderer(job, name, beside=True, writers=writers)
        pipeline: Any = renderer.pipeline

        def stream(requests: Sequence[Request]) -> Iterator[Progress]:
            latents = torch.zeros(len(requests), 4, 8, 8)
            pipeline.encode(requests)
            with device:
                time.sleep(len(requests) * milliseconds / 1000)
            yield Progress(1, 1, latents, list)

        def decode(latents: Any, requests: Sequence[Request]) -> list[Picture]:
            made_by = pipeline.made_by
            made = [Picture.of_levels(images[request.seed % KEPT_IMAGES].copy()) for request in requests]
            for image, request in zip(made, requests, strict=True):
                annotate(image, request, made_by, sampler="ddim")
            return made

        pipeline.stream, pipeline.decode = stream, decode
        finish, seen, lock = renderer.finish, [time.process_time()], threading.Lock()

        def counted(begun: BatchInProgress) -> Result:
            """Finish a batch, and say what this process has computed since the last one."""
            result = finish(begun)
            with lock:
                before, seen[0] = seen[0], time.process_time()
                result.seconds["own_cpu"] = seen[0] - before
            return result

        renderer.finish = counted
        for encoder, tokenizer in zip(pipeline.text_encoders, pipeline.tokenizers, strict=True):
            always = encoder(torch.zeros(1, tokenizer.length, dtype=torch.long))
            encoder.forward = lambda ids, always=always, **_: TextEncoding(
                always.context.expand(len(ids), -1, -1), always.pooled.expand(len(ids), -1)
            )
        return renderer

    process.main(make)


def measure(
    count: int, milliseconds: float, side: int, batch: int, folder: Path | None, writers: int | None = None
) -> dict[str, Any]:
    """Render so many images; images per second, and the share of the time in which the device had to wait for nobody."""
    command = [sys.executable, "-m", "scripts.benchmark.stub", "--work", "--ms", str(milliseconds), "--size", str(side)]
    command += [] if writers is None else ["--writers", str(writers)]
    options = Options.of(batch=batch, settings={"height": side, "width": side, "steps": 20})
    cpu = time.process_time()
    with tempfile.TemporaryDirectory(dir=folder) as name:
        rows = [f"{('pirate ship', 'ship', 'red car', 'cat')[k % 4]} {k}" for k in range(count)]
        run = Run(rows, Path(name) / "out", options, engine=LocalEngine("cpu:1", command))
        for _ in run.pictures():
            pass
        stored = sum(path.stat().st_size for path in (Path(name) / "out" / "images").iterdir())
    report = run.report
    if report.pictures != count:
        raise RuntimeError(f"{report.pictures} of {count} images were drawn")
    cpu, stages = time.process_time() - cpu, dict(report.stages)
    return {
        "images": count,
        "ms_per_image": milliseconds,
        "size": side,
        "batch": batch,
        "images_per_s": report.pictures / report.drawing,
        "device_busy": count * milliseconds / 1000 / report.drawing,
        "bytes_per_image": stored / count,
        "coordinator_cpu_ms_per_image": 1000 * cpu / count,
        "worker_cpu_ms_per_image": 1000 * stages.pop("own_cpu") / count,
        "stages_ms_per_image": {name: 1000 * seconds / count for name, seconds in stages.items()},
    }


def encodings(images: Sequence[np.ndarray], runs: int = 5) -> dict[str, dict[str, float]]:
    """Milliseconds of processor time per image, the best of some runs, and bytes: genpipe's PNG writer and Pillow's."""

    def pillow(level: int, image: np.ndarray) -> bytes:
        data = io.BytesIO()
        Image.fromarray(image).save(data, "PNG", compress_level=level)
        return data.getvalue()

    ways = {"genpipe": encode_png, **{f"Pillow, level {level}": partial(pillow, level) for level in (1, 6)}}
    found = {}
    for name, encode in ways.items():
        times, size = [], 0
        for _ in range(runs):
            started = time.thread_time()
            size = sum(len(encode(image)) for image in images)
            times.append(time.thread_time() - started)
        found[name] = {"ms": 1000 * min(times) / len(images), "bytes": size / len(images)}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2000, help="how many (default: %(default)s)")
    parser.add_argument("--ms", type=float, default=1.0, help="that the device takes per image (default: %(default)s)")
    parser.add_argument("--size", type=int, default=512, help="a side of the images, in pixels (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=32, help="images at a time (default: %(default)s)")
    parser.add_argument("--folder", type=Path, help="where they are written (default: where temporary files go)")
    parser.add_argument("--writers", type=int, help="processes that write (default: as many as beside a GPU)")
    parser.add_argument("--encodings", action="store_true", help="time the encoding of PNG files alone")
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        work(arguments.ms, arguments.size, arguments.writers)
        return
    if arguments.encodings:
        library = "zlib" if find_spec("isal") is None else f"ISA-L (isal {version('isal')})"
        timed = encodings(photographs(KEPT_IMAGES, arguments.size))
        for name, one in timed.items():
            print(f"{name:<20}{one['ms']:>8.2f} ms {one['bytes'] / 1000:>8.1f} kB")
        print(json.dumps({"size": arguments.size, "library": library, **timed}))
        return
    found = measure(
        arguments.images, arguments.ms, arguments.size, arguments.batch, arguments.folder, arguments.writers
    )
    stages = found.pop("stages_ms_per_image")
    for key, value in found.items():
        print(f"{key:<30}{value:>12,.4g}")
    print("ms per image, summed over threads: " + ", ".join(f"{key} {value:.3g}" for key, value in stages.items()))
    print(
        json.dumps(
            {**found, "stages_ms_per_image": stages, "cores": os.cpu_count(), "python": platform.python_version()}
        )
    )


if __name__ == "__main__":
    main()

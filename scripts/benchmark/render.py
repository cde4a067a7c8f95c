"""Time batch rendering: how it scales, what it costs beside the networks, how it compares with a loop over diffusers.

    python -m scripts.benchmark.render scale                # 10³ … 10⁶ rows, the networks stubbed out
    python -m scripts.benchmark.render overhead --pictures 300 --loop 60

`scale`: rows per second of planning, of journalling finished pictures (packing and messages included), and of resuming:
the same command again, which looks at every file, and again with a line inserted, which reads and plans every row anew.
Rows per second are given by the wall clock, which whatever else runs on the machine slows down and which waits for the disk,
and by the processor time of the process.
`overhead`: the embedded model, at its own settings, against `for prompt in prompts: pipe(prompt).save()` over diffusers'
pipeline on the same weights at the same dtype. The last line is one JSON object.
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from genpipe.fit import Traits
from genpipe.render import Options, Run
from genpipe.workers.engines import Event
from genpipe.workers.messages import Drawn, Job, Model, Result, Work

SCALES = (1_000, 10_000, 100_000, 1_000_000)
DEFAULTS = {"height": 512, "width": 512, "steps": 30, "guidance_scale": 7.5, "guidance_rescale": 0.0}


class Stub:
    """An engine without networks: an image is an empty file. Its own time is kept apart.

    Times are pairs: wall clock and processor time, in seconds. `opened` and `planned` are when the run opened it and when
    it first asked for room for a batch.

    Args:
        images: where the files go, `images` being a link to it: in memory, where a million are soon made.
    """

    workers, lost = 1, 0

    def __init__(self, images: Path) -> None:
        self.spent = self.opened = np.zeros(2)
        self.planned: np.ndarray | None = None
        self._images = images
        self._events: list[Event] = []

    def open(self, job: Job) -> Model:
        self._out = job.out
        if not os.path.islink(f"{job.out}/images"):
            os.symlink(self._images, f"{job.out}/images")
        self.opened = now()
        return Model(
            "stub", "0" * 64, "float32", {"": DEFAULTS, "lcm": DEFAULTS}, Traits(factor=8, tile_factor=64, layers=12)
        )

    def room(self) -> bool:
        if self.planned is None:
            self.planned = now()
        return len(self._events) < 2

    def submit(self, work: Work) -> None:
        started = now()
        for task in work.tasks:
            os.close(os.open(f"{self._out}/{task.path}", os.O_CREAT | os.O_WRONLY))
        drawn: list[Drawn] = [(task.number, 0, "0" * 64, None) for task in work.tasks]
        self._events.append(Event(work.key, Result(drawn=drawn)))
        self.spent = self.spent + (now() - started)

    def event(self, timeout: float) -> Event | None:
        return self._events.pop(0)

    def drain(self) -> None: ...

    def close(self) -> None: ...


def now() -> np.ndarray:
    """Wall clock and processor time of this process, in seconds."""
    return np.array([time.perf_counter(), time.process_time()])


def one_scale(rows: int, folder: Path, images: Path) -> dict[str, Any]:
    """Seconds of each phase, and the peak of this process's memory, for so many rows."""
    prompts = folder / "prompts.jsonl"

    def write(first: str) -> None:
        with prompts.open("w") as file:
            file.write(first)
            file.writelines(
                f'{{"prompt": "a ship with {k} sails, oil painting", "tag": {k % 100}}}\n' for k in range(rows)
            )

    def run(new: int) -> tuple[np.ndarray, np.ndarray]:
        """Time of planning and of journalling so many new images."""
        engine = Stub(images)
        run = Run(prompts, folder / "out", Options.of(batch=64), engine=engine)
        drawn = now()
        for _ in run.pictures():
            if run.left == 0:
                drawn = now()
        assert run.report.pictures == new and run.left == 0, f"{run.report.pictures} of {new} were drawn"
        planned = now() if engine.planned is None else engine.planned
        return planned - engine.opened, drawn - planned - engine.spent

    write("")
    plan, journal = run(rows)
    resume, _ = run(0)
    write('{"prompt": "one more"}\n')
    inserted, _ = run(1)
    phases = {"plan": plan, "journal": journal, "resume": resume, "resume_inserted": inserted}
    return {
        "rows": rows,
        **{f"{phase}_s": float(both[0]) for phase, both in phases.items()},
        **{f"{phase}_cpu_s": float(both[1]) for phase, both in phases.items()},
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "torch": "torch" in sys.modules,
    }


def scale(scales: Sequence[int]) -> list[dict[str, Any]]:
    """`one_scale` for each, in a process of its own."""
    table = []
    phases = ("plan", "journal", "resume", "resume_inserted")
    print(
        f"{'rows/s':>9}{'by':>6}" + "".join(f"{phase:>17}" for phase in (*phases, "the first three")) + f"{'peak':>10}"
    )
    for rows in scales:
        memory = "/dev/shm" if os.path.isdir("/dev/shm") else None
        with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory(dir=memory) as images:
            command = [sys.executable, __file__, "one-scale", str(rows), folder, images]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        measured = json.loads(done.stdout.splitlines()[-1])
        for clock, unit in (("wall", "s"), ("CPU", "cpu_s")):
            seconds = [measured[f"{phase}_{unit}"] for phase in phases]
            cells = "".join(f"{rows / second:>17,.0f}" for second in (*seconds, sum(seconds[:3])))
            print(f"{rows:>9,}{clock:>6}{cells}{measured['peak_mb']:>7.0f} MB", flush=True)
        table.append(measured)
    return table


def overhead(pictures: int, loop: int, prompts: Sequence[str] = ("pirate ship", "ship")) -> dict[str, Any]:
    """Images per second of `genpipe render` and of the loop, on the embedded model, and what is not networks."""
    import torch
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline

    from genpipe.embedded import EMBEDDED
    from genpipe.hardware import choose_device, choose_dtype

    dtype = choose_dtype(None, choose_device())
    defaults = json.loads((EMBEDDED / "genpipe.json").read_text())
    listed = [f"{prompts[k % len(prompts)]} {k}" for k in range(pictures)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pipe: Any = StableDiffusionPipeline.from_pretrained(EMBEDDED, torch_dtype=dtype, safety_checker=None)
        pipe.set_progress_bar_config(disable=True)

        def draw(prompt: str, seed: int) -> None:
            image = pipe(
                prompt,
                num_inference_steps=defaults["steps"],
                guidance_scale=defaults["guidance_scale"],
                height=defaults["height"],
                width=defaults["width"],
                generator=torch.Generator("cpu").manual_seed(seed),
            ).images[0]
            image.save(folder / f"{seed}.png")

        draw("warm up", 0)
        started = time.perf_counter()
        for seed, prompt in enumerate(listed[:loop]):
            draw(prompt, seed)
        looped = (time.perf_counter() - started) / loop

        started = time.perf_counter()
        run = Run(listed, folder / "out", Options())
        for _ in run.pictures():
            pass
        whole = time.perf_counter() - started
        report = run.report
    return {
        "pictures": pictures,
        "dtype": str(dtype).removeprefix("torch."),
        "loop_pictures_per_s": 1 / looped,
        "render_pictures_per_s": report.pictures / report.drawing,
        "speedup": looped * report.pictures / report.drawing,
        "outside_networks": 1 - report.utilisation,
        "workers": report.workers,
        "drawing_s": report.drawing,
        "whole_s": whole,
        "stages_s": report.stages,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    chosen = commands.add_parser("scale", help="rows per second without networks")
    chosen.add_argument("--rows", type=int, nargs="+", default=SCALES, help="how many (default: 10³ … 10⁶)")
    chosen = commands.add_parser("overhead", help="against a loop over diffusers")
    chosen.add_argument("--pictures", type=int, default=300, help="of the render (default: %(default)s)")
    chosen.add_argument("--loop", type=int, default=60, help="of the loop (default: %(default)s)")
    chosen = commands.add_parser("one-scale")
    chosen.add_argument("rows", type=int)
    chosen.add_argument("folder", type=Path)
    chosen.add_argument("images", type=Path)
    arguments = parser.parse_args()
    machine = {"cores": os.cpu_count(), "python": platform.python_version()}
    if arguments.command == "one-scale":
        result: dict[str, Any] = one_scale(arguments.rows, arguments.folder, arguments.images)
    elif arguments.command == "scale":
        result = {"scale": scale(arguments.rows), **machine}
    else:
        result = {"overhead": overhead(arguments.pictures, arguments.loop), **machine}
        result |= {"torch": version("torch"), "diffusers": version("diffusers")}
    print(json.dumps(result))


if __name__ == "__main__":
    main()

"""Time batch rendering: how it scales, what it costs beside the networks, how it compares with a loop over diffusers.

    python scripts/benchmark_render.py scale                # 10³ … 10⁶ rows, the networks stubbed out
    python scripts/benchmark_render.py overhead --pictures 300 --loop 60

`scale`: rows a second of planning, of journalling finished pictures (packing and messages included), and of resuming:
the same command again, which looks at every file, and again with a line inserted, which reads and plans every row anew.
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

from genpipe.render import Options, Run
from genpipe.render.engines import Event
from genpipe.render.messages import Drawn, Job, Model, Result, Task

SCALES = (1_000, 10_000, 100_000, 1_000_000)
DEFAULTS = {"height": 512, "width": 512, "steps": 30, "guidance_scale": 7.5, "guidance_rescale": 0.0}


class Stub:
    """An engine without networks: a picture is an empty file. Its own time is kept apart.

    Args:
        images: where the files go, `images` being a link to it: in memory, where a million are soon made.
    """

    workers = 1

    def __init__(self, images: Path) -> None:
        self.seconds = 0.0
        self._images = images
        self._events: list[Event] = []

    def open(self, job: Job) -> Model:
        self._out = job.out
        if not os.path.islink(f"{job.out}/images"):
            os.symlink(self._images, f"{job.out}/images")
        return Model("stub", "0" * 64, "float32", {"": DEFAULTS, "lcm": DEFAULTS}, 8, 12)

    def room(self) -> bool:
        return len(self._events) < 2

    def submit(self, key: int, tasks: Sequence[Task], shape: str, measure: bool) -> None:
        started = time.perf_counter()
        for task in tasks:
            os.close(os.open(f"{self._out}/{task.path}", os.O_CREAT | os.O_WRONLY))
        drawn: list[Drawn] = [(task.number, 0, "0" * 64, None) for task in tasks]
        self._events.append(Event(key, Result(drawn=drawn)))
        self.seconds += time.perf_counter() - started

    def event(self, timeout: float) -> Event | None:
        return self._events.pop(0)

    def drain(self) -> None: ...

    def close(self) -> None: ...


def one_scale(rows: int, folder: Path, images: Path) -> dict[str, Any]:
    """Seconds of each phase, and the peak of this process's memory, for so many rows."""
    prompts = folder / "prompts.jsonl"
    lines = [f'{{"prompt": "a ship with {k} sails, oil painting", "tag": {k % 100}}}\n' for k in range(rows)]
    prompts.write_text("".join(lines))
    del lines

    def run() -> tuple[Run, float]:
        engine = Stub(images)
        run = Run(prompts, folder / "out", Options(batch=64), engine=engine)
        for _ in run.pictures():
            pass
        return run, engine.seconds

    first, stubbed = run()
    assert first.done == rows, f"{first.done} of {rows} are done"
    again, _ = run()
    prompts.write_text('{"prompt": "one more"}\n' + prompts.read_text())
    inserted, _ = run()
    assert again.report.pictures == 0 and inserted.report.pictures == 1
    return {
        "rows": rows,
        "plan_s": first.report.planning,
        "journal_s": first.report.drawing - stubbed,
        "resume_s": again.report.planning,
        "resume_inserted_s": inserted.report.planning,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "torch": "torch" in sys.modules,
    }


def scale(scales: Sequence[int]) -> list[dict[str, Any]]:
    """`one_scale` for each, in a process of its own."""
    table = []
    phases = ("plan", "journal", "resume", "resume_inserted")
    print(f"{'rows':>9}" + "".join(f"{phase:>18}" for phase in phases) + f"{'all':>12}{'peak':>10}")
    for rows in scales:
        memory = "/dev/shm" if os.path.isdir("/dev/shm") else None
        with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory(dir=memory) as images:
            command = [sys.executable, __file__, "one-scale", str(rows), folder, images]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        measured = json.loads(done.stdout.splitlines()[-1])
        three = sum(measured[f"{phase}_s"] for phase in phases[:3])
        measured["rows_per_s"] = rows / three
        table.append(measured)
        cells = "".join(f"{rows / measured[f'{phase}_s']:>14,.0f} r/s" for phase in phases)
        print(f"{rows:>9,}{cells}{rows / three:>8,.0f} r/s{measured['peak_mb']:>7.0f} MB", flush=True)
    return table


def overhead(pictures: int, loop: int, prompts: Sequence[str] = ("pirate ship", "ship")) -> dict[str, Any]:
    """Pictures a second of `genpipe render` and of the loop, on the embedded model, and what is not networks."""
    import torch
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline

    from genpipe.hardware import choose_device, choose_dtype
    from genpipe.pipeline import EMBEDDED

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
    chosen = commands.add_parser("scale", help="rows a second without networks")
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

"""Time genpipe against its yardsticks, in one run, on Stable Diffusion 1.5 or XL at full size with random weights.

    python -m scripts.benchmark.step --out bench                     # everything; half an hour on two cores
    python -m scripts.benchmark.step --parts step,decode --peers genpipe,tuned --sizes 512
    python -m scripts.benchmark.step --family sdxl --parts ceiling,step --sizes 512,1024 --peers genpipe,diffusers,tuned
    python -m scripts.benchmark.step --tune                          # measure this processor's table of forms, and write it

First the ceiling: the floating-point operations of every layer, attention included, over the best rate measured for its
shape. Then each part, each peer in a process of its own, in turn, run after run, so that a noisy machine slows all alike (of
SDXL one after the other, as three copies take more than 20 GB); the first run of each is not counted. Each peer's output is compared with that of diffusers in fp32 (PSNR). Parts: text (one
prompt), step (one evaluation of a guided batch), control (the same with a ControlNet), decode, picture (a whole one; a fresh
process each, with its peak memory), int8 (what its products would take in int8), cold (the command `genpipe "pirate ship"`,
embedded model, against `python -c "import torch"`; and an image of a model that has drawn before). OpenVINO is an optional extra: pip install "genpipe[bench]". A plot and a table go into --out;
the last line is one JSON object. A GPU is measured by `python -m scripts.benchmark.gpu`.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch

from genpipe.hardware import choose_device, choose_dtype, device_name, instruction_set, keep_freed_memory
from genpipe.models.unet_config import UNetConfig
from genpipe.pipeline import Pipeline
from scripts.benchmark.ceiling import ceiling, tune
from scripts.benchmark.int8 import int8
from scripts.benchmark.peers import PEERS, Task, can
from scripts.benchmark.report import PARTS, ceiling_text, int8_table, plot, table
from scripts.make.checkpoint import FAMILIES, make_checkpoint, make_controlnet

COMMANDS = {
    "import torch": [sys.executable, "-c", "import torch"],
    "genpipe": [sys.executable, "-m", "genpipe", "pirate ship", "--seed", "1", "--quiet"],
}


class Worker:
    """A peer in a process of its own; see `scripts.benchmark.peers`. After it has failed, `failed` says so, and its answers are empty."""

    def __init__(self, peer: str, task: Task) -> None:
        command = [sys.executable, "-m", "scripts.benchmark.peers", peer, json.dumps(asdict(task))]
        root = str(Path(__file__).parents[2])
        path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
        quiet = {
            **os.environ,
            "PYTHONPATH": path,
            "TRANSFORMERS_VERBOSITY": "error",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        }
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=quiet)
        self.failed: str | None = None
        self.ready = self._answer()

    def ask(self, order: str) -> dict[str, Any]:
        if self.failed is not None:
            return {}
        assert self._process.stdin is not None
        print(order, file=self._process.stdin, flush=True)
        return self._answer()

    def leave(self) -> None:
        self._process.communicate()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        self.failed = None if line else "it failed, as told on stderr"
        return json.loads(line) if line else {}


def isolated(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function in a process of its own."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def measure(peers: list[str], task: Task, runs: int, *, together: bool = True) -> dict[str, Any]:
    """Rows by peer: median seconds, loading, peak memory, and PSNR against diffusers in fp32 where that is a peer; or why
    it is left out.

    Args:
        together: hold all peers in memory, and let them take turns.
    """
    rows: dict[str, dict[str, Any]] = {}
    outputs: dict[str, np.ndarray] = {}
    # Where memory is measured or scarce, one process after the other: each has it for itself.
    groups = [[peer] for peer in peers] if task.part == "picture" or not together else [peers]
    with tempfile.TemporaryDirectory() as folder:
        for group in groups:
            # OpenVINO's conversion takes the most memory.
            workers = {peer: Worker(peer, task) for peer in sorted(group, key=lambda peer: peer != "openvino")}
            answers: dict[str, list[dict[str, Any]]] = {peer: [] for peer in workers}
            for _ in range(1 if task.part == "picture" else runs):
                for peer, worker in workers.items():
                    answers[peer].append(worker.ask("run"))
            for peer, worker in workers.items():
                path = Path(folder, f"{peer}.npy")
                last = worker.ask(f"finish {path}")
                worker.leave()
                if worker.failed is not None:
                    rows[peer] = {"left_out": worker.failed}
                    continue
                seconds = [answer["seconds"] for answer in answers[peer]]
                rows[peer] = {"seconds": statistics.median(seconds), "all_seconds": seconds, **worker.ready, **last}
                outputs[peer] = np.load(path)
    if "diffusers" in outputs:
        for peer, output in outputs.items():
            rows[peer]["psnr"] = psnr(output, outputs["diffusers"]) if peer != "diffusers" else None
    return {peer: rows[peer] for peer in peers}


def psnr(result: np.ndarray, reference: np.ndarray) -> float:
    """In decibels, the peak being the reference's range."""
    error = float(np.square(result.astype(np.float64) - reference).mean())
    return 20 * float(np.log10(np.ptp(reference))) - 10 * float(np.log10(max(error, 1e-20)))


def cold_start(runs: int) -> dict[str, float]:
    """Median seconds of each command over `runs` interleaved runs, after one that warms the file cache.

    Python finds the bytecode of what it imports, as where packages are installed, whatever this environment says.
    """
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as bytecode:
        environment = {**os.environ, "PYTHONPYCACHEPREFIX": bytecode}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        for run in range(runs + 1):
            for name, command in COMMANDS.items():
                flags = ["--device", "cpu"] if name == "genpipe" else []
                started = time.perf_counter()
                subprocess.run([*command, *flags], cwd=folder, env=environment, check=True, stdout=subprocess.DEVNULL)
                if run:
                    times[name].append(time.perf_counter() - started)
        drawn = len(list(Path(folder).glob("*.png")))
    assert drawn == runs + 1, f"{drawn} pictures for {runs + 1} runs"
    medians = {name: statistics.median(values) for name, values in times.items()}
    over = medians["genpipe"] - medians["import torch"]
    return {
        "cold_start_s": medians["genpipe"],
        "import_torch_s": medians["import torch"],
        "over_import_torch_s": over,
        "runs": runs,
    }


def warm(runs: int) -> float:
    """Median seconds of an image by the embedded model when it has drawn before, as in a server."""
    pipe = Pipeline.from_pretrained(device="cpu")

    def draw() -> float:
        started = time.perf_counter()
        pipe("pirate ship", seed=1, progress=False)
        return time.perf_counter() - started

    draw()
    return statistics.median(draw() for _ in range(runs))


def processor() -> str:
    names = [
        line.split(":")[1].strip() for line in _read("/proc/cpuinfo").splitlines() if line.startswith("model name")
    ]
    return names[0] if names else platform.processor()


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _listed(kind: type, allowed: Any = None) -> Any:
    def parse(text: str) -> list[Any]:
        try:
            values = [kind(part) for part in text.split(",")]
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a list of whole numbers, as in 256,512") from None
        for value in values:
            if allowed is not None and value not in allowed:
                raise argparse.ArgumentTypeError(f"{value!r} is not one of {', '.join(allowed)}")
        return values

    return parse


def state(dtype: torch.dtype) -> dict[str, Any]:
    """What the figures hold for: processor, versions."""
    report: dict[str, Any] = {"processor": processor(), "instruction_set": instruction_set()}
    report |= {"threads": torch.get_num_threads(), "cores": os.cpu_count(), "python": platform.python_version()}
    report |= {name: _version(name) for name in ("torch", "diffusers", "openvino")}
    return report | {"dtype": str(dtype).removeprefix("torch.")}


def main(given: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = ["ceiling", "int8", *PARTS, "cold"]
    parser.add_argument("--family", choices=("sd15", "sdxl"), default="sd15", help="of the checkpoint (%(default)s)")
    parser.add_argument("--parts", type=_listed(str, parts), default=parts, metavar="A,B", help=", ".join(parts))
    parser.add_argument("--peers", type=_listed(str, PEERS), default=list(PEERS), metavar="A,B", help=", ".join(PEERS))
    parser.add_argument("--sizes", type=_listed(int), default=[512], metavar="N,M", help="in pixels (default: 512)")
    parser.add_argument("--batches", type=_listed(int), default=[1], metavar="N,M", help="images (default: 1)")
    parser.add_argument("--runs", type=int, default=5, help="runs of each (%(default)s)")
    parser.add_argument("--steps", type=int, default=4, help="solver steps of a whole image (%(default)s)")
    parser.add_argument("--checkpoint", type=Path, help="where to keep the checkpoint of random weights between runs")
    parser.add_argument("--out", type=Path, help="folder for the table and the plot")
    parser.add_argument(
        "--tune", action="store_true", help="write this processor's row of the table of forms, and leave"
    )
    arguments = parser.parse_args(given)
    dtype = choose_dtype(None, choose_device("cpu"))
    family = FAMILIES[arguments.family]
    config = UNetConfig.from_dict(family.unet)

    keep_freed_memory(large=dtype != torch.float32)  # as genpipe does, so that the ceiling is not one of new pages
    if arguments.tune:
        dtypes = list(dict.fromkeys([dtype, torch.float32]))
        print(json.dumps({instruction_set(): tune(instruction_set(), dtypes, device_name(torch.device("cpu")))}))
        return
    report: dict[str, Any] = state(dtype) | {"family": arguments.family, "results": []}
    texts: list[str] = []

    def say(text: str) -> None:
        texts.append(text)
        print(text, flush=True)

    limits: dict[tuple[int, int], dict[str, Any]] = {}
    if "ceiling" in arguments.parts:
        # Of batch 1: every shape is measured.
        limits = {(size, 1): ceiling(size, 1, dtype, config) for size in arguments.sizes}
        report["ceiling"] = [{"size": size, "batch": batch, **found} for (size, batch), found in limits.items()]
        for found in report["ceiling"]:
            say(ceiling_text(found))
    if "int8" in arguments.parts:
        for size in arguments.sizes:
            found = report.setdefault("int8", {})[str(size)] = int8(size, 1, dtype, config)
            say(f"int8 is not in this torch, {report['torch']}.\n" if found is None else int8_table(size, found))
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = arguments.checkpoint or Path(folder)
        measured = [part for part in PARTS if part in arguments.parts]
        if measured and not (checkpoint / "model_index.json").is_file():
            isolated(make_checkpoint, family, checkpoint)  # SDXL's 10 GB would stay in this process
        if "control" in measured and not (checkpoint / "controlnet").is_dir():
            make_controlnet(checkpoint, checkpoint / "controlnet")
        for part in measured:
            peers = [peer for peer in arguments.peers if can(peer, part, arguments.family)]
            for size in arguments.sizes if part != "text" else [512]:
                for batch in arguments.batches if part != "text" else [1]:
                    task = Task(part, str(checkpoint), size, batch, arguments.steps)
                    rows = measure(peers, task, arguments.runs, together=arguments.family == "sd15")
                    if part == "step" and (size, batch) in limits:
                        for row in (row for row in rows.values() if "seconds" in row):
                            row["share_of_ceiling"] = limits[size, batch]["seconds"] / row["seconds"]
                    report["results"].append({"part": part, "size": size, "batch": batch, "rows": rows})
                    say(table(part, size, batch, rows))
    if "cold" in arguments.parts:
        report |= cold_start(arguments.runs)
        report["warm_s"] = warm(arguments.runs)
        say(
            f"Cold start: {report['over_import_torch_s']:.2f} s over importing torch; warm: {report['warm_s']:.3f} s per image.\n"
        )
    if arguments.out is not None:
        arguments.out.mkdir(parents=True, exist_ok=True)
        (arguments.out / "benchmark.md").write_text("\n".join(texts), encoding="utf-8")
        if report["results"]:
            plot(report["results"], arguments.out / "benchmark.png")
    print(json.dumps(report))


if __name__ == "__main__":
    main()

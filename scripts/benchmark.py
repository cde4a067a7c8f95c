"""Time genpipe against its yardsticks, side by side in one run, on Stable Diffusion 1.5 at full size with random weights.

    python scripts/benchmark.py --out bench                     # everything; half an hour on two cores
    python scripts/benchmark.py --parts step,decode --peers genpipe,tuned --sizes 512
    python scripts/benchmark.py --tune                          # measure this processor's table of forms, and write it

First the ceiling: the floating-point operations of every layer, attention included, over the best rate measured for its
shape. Then each part, each peer in a process of its own, in turn, run after run, so that a noisy machine slows all alike;
the first run of each is not counted. Each peer's output is compared with that of diffusers in fp32 (PSNR). Parts: text
(one prompt), step (one evaluation of a guided batch), decode, picture (a whole one, a fresh process each, with its peak
memory), int8 (what its products would take in int8), cold (the command `genpipe "pirate ship"`, embedded model, against `python -c "import torch"`). OpenVINO is an
optional extra: pip install "genpipe[bench]". A plot and a table go into --out; the last line is one JSON object.
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
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchmark_ceiling import ceiling, tune
from benchmark_int8 import int8
from benchmark_peers import PEERS, can
from benchmark_report import PARTS, int8_table, plot, table
from parity import build_checkpoint

from genpipe.hardware import choose_dtype, instruction_set, keep_freed_memory

COMMANDS = {
    "import torch": [sys.executable, "-c", "import torch"],
    "genpipe": [sys.executable, "-m", "genpipe", "pirate ship", "--seed", "1", "--quiet"],
}


class Worker:
    """A peer in a process of its own; see `benchmark_peers`."""

    def __init__(self, peer: str, part: str, checkpoint: Path, size: int, batch: int, steps: int) -> None:
        script = Path(__file__).with_name("benchmark_peers.py")
        command = [sys.executable, str(script), peer, part, str(checkpoint), str(size), str(batch), str(steps)]
        quiet = {**os.environ, "TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=quiet)
        self.ready = self._answer()

    def ask(self, order: str) -> dict[str, Any]:
        assert self._process.stdin is not None
        print(order, file=self._process.stdin, flush=True)
        return self._answer()

    def leave(self) -> None:
        self._process.communicate()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{' '.join(map(str, self._process.args[1:4]))} failed; see above")  # type: ignore[index]
        return json.loads(line)


def measure(
    part: str, peers: list[str], checkpoint: Path, size: int, batch: int, runs: int, steps: int
) -> dict[str, Any]:
    """Rows by peer: median seconds, loading, peak memory, and PSNR against diffusers in fp32 where that is a peer."""
    rows: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        outputs: dict[str, np.ndarray] = {}

        def settle(peer: str, worker: Worker, answers: list[dict[str, Any]]) -> None:
            seconds = [answer["seconds"] for answer in answers]
            rows[peer] = {"seconds": statistics.median(seconds), "all_seconds": seconds, **worker.ready}
            rows[peer]["peak_bytes"] = answers[-1]["peak_bytes"]
            outputs[peer] = np.load(worker.ask(f"save {folder}/{peer}.npy")["saved"])
            worker.leave()

        if part == "picture":  # one process after the other: each has the memory for itself
            for peer in peers:
                worker = Worker(peer, part, checkpoint, size, batch, steps)
                settle(peer, worker, [worker.ask("run")])
        else:
            workers: dict[str, Worker] = {}
            for peer in sorted(peers, key=lambda peer: peer != "openvino"):  # whose conversion takes the most memory
                try:
                    workers[peer] = Worker(peer, part, checkpoint, size, batch, steps)
                except RuntimeError as error:
                    print(f"{PEERS[peer]} is left out: {error}", file=sys.stderr)
            answers: dict[str, list[dict[str, Any]]] = {peer: [] for peer in workers}
            for _ in range(runs):
                for peer, worker in workers.items():
                    answers[peer].append(worker.ask("run"))
            for peer in (peer for peer in peers if peer in workers):
                settle(peer, workers[peer], answers[peer])
        if "diffusers" in outputs:
            for peer, row in rows.items():
                row["psnr"] = psnr(outputs[peer], outputs["diffusers"]) if peer != "diffusers" else None
    return rows


def psnr(result: np.ndarray, reference: np.ndarray) -> float:
    """In decibels, the peak being the reference's range."""
    error = float(np.square(result.astype(np.float64) - reference).mean())
    return 20 * float(np.log10(np.ptp(reference))) - 10 * float(np.log10(max(error, 1e-20)))


def cold_start(runs: int) -> dict[str, float]:
    """Median seconds of each command over `runs` interleaved runs, after one that warms the file cache."""
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    with tempfile.TemporaryDirectory() as folder:
        for run in range(runs + 1):
            for name, command in COMMANDS.items():
                started = time.perf_counter()
                subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = ["ceiling", "int8", *PARTS, "cold"]
    parser.add_argument("--parts", type=_listed(str, parts), default=parts, metavar="A,B", help=", ".join(parts))
    parser.add_argument("--peers", type=_listed(str, PEERS), default=list(PEERS), metavar="A,B", help=", ".join(PEERS))
    parser.add_argument("--sizes", type=_listed(int), default=[512], metavar="N,M", help="in pixels (default: 512)")
    parser.add_argument("--batches", type=_listed(int), default=[1], metavar="N,M", help="pictures (default: 1)")
    parser.add_argument("--runs", type=int, default=5, help="runs of each (%(default)s)")
    parser.add_argument("--steps", type=int, default=4, help="solver steps of a whole picture (%(default)s)")
    parser.add_argument("--checkpoint", type=Path, help="where to keep the checkpoint of random weights between runs")
    parser.add_argument("--out", type=Path, help="folder for the table and the plot")
    parser.add_argument(
        "--tune", action="store_true", help="write this processor's row of the table of forms, and leave"
    )
    arguments = parser.parse_args()

    keep_freed_memory()  # as genpipe does, so that the ceiling is not one of new pages
    dtype, own = choose_dtype(None, torch.device("cpu")), instruction_set()
    if arguments.tune:
        print(json.dumps({own: tune(own, list(dict.fromkeys([dtype, torch.float32])))}))
        return
    report: dict[str, Any] = {"processor": processor(), "instruction_set": own, "threads": torch.get_num_threads()}
    report |= {name: _version(name) for name in ("torch", "diffusers", "openvino")}
    report |= {"python": platform.python_version(), "cores": os.cpu_count(), "results": []}
    texts: list[str] = []
    if "ceiling" in arguments.parts:
        report["ceiling"] = {}
        for size in arguments.sizes:
            found = report["ceiling"][str(size)] = ceiling(size, 1, dtype)
            rates = ", ".join(f"{kind} {rate:.0f}" for kind, rate in found["gflops_per_second"].items())
            texts.append(
                f"Ceiling of one guided step at {size} × {size}: {found['flops'] / 1e12:.3f} TFLOP in "
                f"{found['seconds']:.2f} s (GFLOP/s: {rates})\n"
            )
            print(texts[-1], flush=True)
    if "int8" in arguments.parts:
        for size in arguments.sizes:
            found = report.setdefault("int8", {})[str(size)] = int8(size, 1)
            texts.append(
                f"int8 is not in this torch, {report['torch']}.\n" if found is None else int8_table(size, found)
            )
            print(texts[-1], flush=True)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = arguments.checkpoint or Path(folder)
        measured = [part for part in PARTS if part in arguments.parts]
        if measured and not (checkpoint / "model_index.json").is_file():
            build_checkpoint("sd15", checkpoint)
        for part in measured:
            for size in arguments.sizes if part != "text" else [512]:
                for batch in arguments.batches if part != "text" else [1]:
                    peers = [peer for peer in arguments.peers if can(peer, part)]
                    rows = measure(part, peers, checkpoint, size, batch, arguments.runs, arguments.steps)
                    report["results"].append({"part": part, "size": size, "batch": batch, "rows": rows})
                    texts.append(table(part, size, batch, rows))
                    limit = report.get("ceiling", {}).get(str(size))
                    if part == "step" and batch == 1 and limit and "genpipe" in rows:
                        share = rows["genpipe"]["share_of_ceiling"] = limit["seconds"] / rows["genpipe"]["seconds"]
                        texts[-1] += f"\ngenpipe's step is {share:.0%} of the ceiling.\n"
                    print(texts[-1], flush=True)
    if "cold" in arguments.parts:
        report |= cold_start(arguments.runs)
        texts.append(f"Cold start: {report['over_import_torch_s']:.2f} s over importing torch.\n")
        print(texts[-1], flush=True)
    if arguments.out is not None:
        arguments.out.mkdir(parents=True, exist_ok=True)
        (arguments.out / "benchmark.md").write_text("\n".join(texts), encoding="utf-8")
        if report["results"]:
            plot(report["results"], arguments.out / "benchmark.png")
    print(json.dumps(report))


if __name__ == "__main__":
    main()

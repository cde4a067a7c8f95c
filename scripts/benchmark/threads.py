"""Count how a step's work is shared out among threads, on a machine that has fewer processors than threads.

    python -m scripts.benchmark.threads                         # Stable Diffusion 1.5, 512 × 512, 2 to 16 threads

Threads that wait sleep here (OMP_WAIT_POLICY=passive), so that the processor time of each is its work, however they take
turns. What the first thread does beyond the mean of the others is the serial part: Python, and operations that one thread
computes. The last line is one JSON object: by the number of threads, the seconds of work, the serial share of them, and
how many times as fast that many processors would be as one, by the thread that works longest.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import torch

from scripts.benchmark.peers import Task, genpipe
from scripts.make.checkpoint import FAMILIES, make_checkpoint


def worked() -> dict[int, float]:
    """Seconds of processor time of each thread of this process, by its number."""
    return {
        int(task.name): int((task / "schedstat").read_text().split()[0]) / 1e9
        for task in Path("/proc/self/task").iterdir()
    }


def shared_out(seconds: list[float], first: float) -> dict[str, float]:
    """Say how work is shared out, from the seconds of the first thread and of the others."""
    work = first + sum(seconds)
    mean = sum(seconds) / len(seconds)
    return {
        "work_s": work,
        "serial": max(0.0, first - mean) / work,
        "speedup": work / max(first, *seconds),
    }


@torch.inference_mode()
def count(task: Task, threads: int) -> dict[str, float]:
    """Evaluate one step on so many threads, and count the work of each."""
    run = genpipe(task)
    torch.set_num_threads(threads)  # what the environment says beyond the processors is cut by MKL
    run()
    before = worked()
    run()
    spent = {thread: seconds - before.get(thread, 0.0) for thread, seconds in worked().items()}
    first = spent.pop(threading.get_native_id())
    others = sorted(spent.values(), reverse=True)[: threads - 1]
    return shared_out(others + [0.0] * (threads - 1 - len(others)), first)


def main(given: list[str] | None = None) -> None:
    """Start a process for each number of threads, and print what each counted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, nargs="+", default=[2, 16], metavar="N", help="(default: 2 16)")
    parser.add_argument("--size", type=int, default=512, help="in pixels (%(default)s)")
    parser.add_argument("--checkpoint", type=Path, help="of Stable Diffusion 1.5's shape; made if it is missing")
    parser.add_argument("--inside", type=int, help=argparse.SUPPRESS)  # of a process that it has started: its threads
    arguments = parser.parse_args(given)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = arguments.checkpoint or Path(folder)
        if not (checkpoint / "model_index.json").is_file():
            make_checkpoint(FAMILIES["sd15"], checkpoint)
        if arguments.inside is not None:
            print(json.dumps(count(Task("step", str(checkpoint), arguments.size, 1, 1), arguments.inside)))
            return
        found: dict[str, Any] = {}
        for threads in arguments.threads:
            environment = {**os.environ, "OMP_WAIT_POLICY": "passive", "MKL_DYNAMIC": "FALSE"}
            environment |= {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
            command = [sys.executable, "-m", "scripts.benchmark.threads", "--inside", str(threads)]
            command += ["--size", str(arguments.size), "--checkpoint", str(checkpoint)]
            done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True)
            row = found[str(threads)] = json.loads(done.stdout.splitlines()[-1])
            print(
                f"{threads:>3} threads: {row['work_s']:.1f} s of work, {row['serial']:.1%} serial, "
                f"{row['speedup']:.1f} × as fast as one",
                flush=True,
            )
        print(json.dumps(found))


if __name__ == "__main__":
    main()

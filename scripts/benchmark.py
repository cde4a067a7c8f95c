"""Time genpipe against its yardsticks, side by side in one run.

    python scripts/benchmark.py

Cold start: the whole process `genpipe "pirate ship"`, embedded model, against `python -c "import torch"`, in turn, so that
a noisy machine slows both alike. The last line is one JSON object.
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
from importlib.metadata import version
from pathlib import Path

COMMANDS = {
    "import torch": [sys.executable, "-c", "import torch"],
    "genpipe": [sys.executable, "-m", "genpipe", "pirate ship", "--seed", "1", "--quiet"],
}


def seconds(command: list[str], folder: Path) -> float:
    """Wall time of a whole process that must succeed."""
    started = time.perf_counter()
    subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def cold_start(runs: int) -> dict[str, float]:
    """Median seconds of each command over `runs` interleaved runs, after one that warms the file cache."""
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    with tempfile.TemporaryDirectory() as folder:
        for run in range(runs + 1):
            for name, command in COMMANDS.items():
                elapsed = seconds(command, Path(folder))
                if run:
                    times[name].append(elapsed)
        drawn = len(list(Path(folder).glob("*.png")))
    assert drawn == runs + 1, f"{drawn} pictures for {runs + 1} runs"
    return {name: statistics.median(values) for name, values in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=7, help="runs of each process (%(default)s)")
    arguments = parser.parse_args()
    medians = cold_start(arguments.runs)
    over = medians["genpipe"] - medians["import torch"]
    for name, median in medians.items():
        print(f"{name:>14}: {median:.2f} s")
    print(f"cold start is {over:.2f} s over importing torch")
    print(
        json.dumps(
            {
                "cold_start_s": medians["genpipe"],
                "import_torch_s": medians["import torch"],
                "over_import_torch_s": over,
                "runs": arguments.runs,
                "cores": os.cpu_count(),
                "torch": version("torch"),
                "python": platform.python_version(),
            }
        )
    )


if __name__ == "__main__":
    main()

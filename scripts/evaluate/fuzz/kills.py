"""Kill `genpipe` while it draws and saves, and look for what is half-written."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from random import Random
from typing import Any

from PIL import Image

from scripts.evaluate.fuzz.material import make_material

_IMAGES = 40  # more than can be drawn before the kill


def kill(count: int, seed: int, root: Path) -> dict[str, Any]:
    """Start the command `count` times, end it at a random moment by SIGKILL or SIGTERM, and check the folder each time.

    Returns:
        The figures: how many were killed while images were being saved, half-written images, empty files, leftovers that
        the next run did not sweep, and exit statuses of SIGTERM other than 130.
    """
    (root / "kills" / "out").mkdir(parents=True)
    material, out, rng = make_material(root / "kills"), root / "kills" / "out", Random(seed)
    figures: dict[str, Any] = dict.fromkeys(("kills", "amid", "half_written", "empty", "unswept", "statuses"), 0)
    for index in range(count):
        number = (signal.SIGKILL, signal.SIGTERM)[index % 2]
        command = [sys.executable, "-m", "genpipe", "ship", "-n", str(_IMAGES), "--steps", "1", "--seed", "1", "-q"]
        command += ["-m", str(material.checkpoint), "--outdir", str(out), "--size", "64x64", "--dtype", "fp32"]
        before = {path.name for path in out.iterdir()}
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )
        assert process.stdout is not None
        process.stdout.readline()  # the first image is there
        time.sleep(rng.random() * 0.15)
        running = process.poll() is None
        process.send_signal(number)
        process.communicate()
        figures["kills"] += 1
        figures["amid"] += running
        if number == signal.SIGTERM and running and process.returncode not in (0, 130):
            figures["statuses"] += 1
        # What was left before this run is gone: it has swept.
        figures["unswept"] += sum(name.endswith(".part") and (out / name).exists() for name in before)
        for path in out.iterdir():
            if path.name in before:
                continue
            if path.stat().st_size == 0 and not path.name.endswith(".part"):
                figures["empty"] += 1
            elif path.suffix == ".png":
                try:
                    with Image.open(path, formats=["PNG"]) as image:
                        image.load()
                except (OSError, ValueError):
                    figures["half_written"] += 1
    figures["half_written"] += figures["empty"] + figures["unswept"] + figures["statuses"]
    print(", ".join(f"{key} {value}" for key, value in figures.items()))
    return figures

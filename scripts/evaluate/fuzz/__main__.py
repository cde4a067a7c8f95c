"""Give every command and public function inputs that are not what they expect, and count what goes wrong.

    python -m scripts.evaluate.fuzz --count 20000
    python -m scripts.evaluate.fuzz --count 500 --seed 1 --families configs,tokenizers --out samples
    python -m scripts.evaluate.fuzz --kills 100

Bad is: an exception that leaves a command, or one of a function that its documentation does not name; an exit status other
than 0, 1, 2 and 130; a line of more than 400 characters, with control characters, or that no person can use; a file written
outside its place; a program started; a hang of more than 20 seconds; an image lost. Sample k of a seed is always the same.
The last line is one JSON object; exit status 1 if anything was bad.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from random import Random

# Before the libraries that read them are imported.
_ROOT = tempfile.TemporaryDirectory(prefix="genpipe-fuzz-")
for _name in ("HF_HOME", "TORCH_HOME", "XDG_CACHE_HOME", "TMPDIR"):
    os.environ[_name] = _ROOT.name
os.environ["TORCHINDUCTOR_CACHE_DIR"] = f"{_ROOT.name}/inductor"  # which torch makes when it is imported
os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_ETAG_TIMEOUT": "3"}
tempfile.tempdir = None
sys.dont_write_bytecode = True

import torch

from scripts.evaluate.fuzz import calls, checkpoints, files
from scripts.evaluate.fuzz.kills import kill
from scripts.evaluate.fuzz.material import Material, make_material
from scripts.evaluate.fuzz.sandbox import Sample, Sandbox

Family = Callable[[Random, Material, Path], Sample]
FAMILIES: dict[str, Family] = {
    family.__name__: family
    for family in (
        *(calls.arguments, calls.objects, calls.urls),
        *(checkpoints.configs, checkpoints.schedulers, checkpoints.tokenizers, checkpoints.headers, checkpoints.shards),
        *(files.images, files.chunks, files.manifests, files.journals, files.weights, files.captions),
    )
}


def fuzz(count: int, seed: int, families: list[str], out: Path | None) -> dict[str, object]:
    """Run samples, the families in turn, and print what was bad. Returns the figures."""
    root = Path(_ROOT.name)
    material = make_material(root)
    sandbox = Sandbox(root)
    ran: Counter[str] = Counter()
    bad: dict[str, list[str]] = defaultdict(list)
    seconds: dict[str, float] = defaultdict(float)
    started = time.monotonic()
    for index in range(count):
        name = families[index % len(families)]
        rng = Random(f"{seed}/{name}/{index}")
        begun = time.monotonic()
        sample = FAMILIES[name](rng, material, sandbox.empty())
        wrong = sandbox.observe(sample)
        ran[name] += 1
        seconds[name] += time.monotonic() - begun
        if wrong is not None:
            bad[f"{name}: {wrong}"].append(f"{index}: {sample.name}")
            if out is not None:
                out.mkdir(parents=True, exist_ok=True)
                (out / f"{name}-{index}.txt").write_text(
                    f"{wrong}\n{sample.name}\n", encoding="utf-8", errors="replace"
                )
    for name in families:
        number = sum(len(those) for wrong, those in bad.items() if wrong.startswith(f"{name}: "))
        print(f"{name:<12}{ran[name]:>7,} inputs {number:>5,} bad {seconds[name]:>8.1f} s")
    for wrong, those in sorted(bad.items(), key=lambda pair: -len(pair[1])):
        print(f"{len(those):>5} × {wrong}\n        {those[0]}"[:500].encode("ascii", "backslashreplace").decode())
    number = sum(map(len, bad.values()))
    return {"inputs": count, "bad": number, "seed": seed, "seconds": round(time.monotonic() - started, 1)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=0, metavar="N", help="samples, of all families in turn")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the samples (default: 0)")
    parser.add_argument("--families", default=",".join(FAMILIES), metavar="LIST", help=f"of {', '.join(FAMILIES)}")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where bad samples are described, one file each")
    parser.add_argument("--kills", type=int, default=0, metavar="N", help="kill genpipe that often while it saves")
    given = parser.parse_args()
    families = given.families.split(",")
    if unknown := [name for name in families if name not in FAMILIES]:
        parser.error(f"no family {', '.join(unknown)}: they are {', '.join(FAMILIES)}")
    torch.set_num_threads(1)
    figures = fuzz(given.count, given.seed, families, given.out) if given.count else {}
    if given.kills:
        figures |= kill(given.kills, given.seed, Path(_ROOT.name))
    print(json.dumps(figures))
    return 1 if figures.get("bad") or figures.get("half_written") else 0


if __name__ == "__main__":
    sys.exit(main())

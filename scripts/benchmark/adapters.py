"""What genpipe costs beside a pipeline of diffusers that it draws with: its own time per image, and per step.

    python -m scripts.benchmark.adapters                       # all families, tiny ones
    python -m scripts.benchmark.adapters --runs 20 --steps 20
    python -m scripts.benchmark.adapters "FLUX.1 dev"

Each family's pipeline, of random weights and so small that next to nothing else is left, draws one image by hand and one
through genpipe, in turn, each of another prompt, as what was made of a prompt is kept; counted are the shortest times. Through
genpipe an image carries what made it, and every step is handed from the thread that draws to the caller. Preview and files are
not covered. The last line is one JSON object.
"""

import argparse
import json
import platform
import tempfile
import time
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from genpipe import Pipeline
from genpipe.hardware import device_name
from genpipe.pipeline.wrapped import WrappedDrawer
from tests.adapters.conftest import families
from tests.adapters.tiny import Family

LIMIT = 5.0  # milliseconds per image


def measure(family: Family, folder: Path, *, runs: int, steps: int) -> dict[str, float]:
    """Draw by hand and through genpipe; milliseconds per image of both, and of the difference per image and per step."""
    family.build().save_pretrained(folder)
    pipeline = Pipeline.from_pretrained(folder, device="cpu", dtype="fp32")
    assert isinstance(pipeline.drawer, WrappedDrawer)
    adapted = pipeline.drawer.adapted
    name = adapted.signature.steps
    assert name is not None
    settings: dict[str, Any] = {**family.settings, "steps": steps}
    taken = [0]

    def by_hand(seed: int) -> None:
        generator = torch.Generator("cpu").manual_seed(seed)
        adapted.pipe(prompt=f"a red cat {seed}", generator=generator, **{**family.by_hand, name: steps})

    def through(seed: int) -> None:
        pipeline(
            f"a red cat {seed}", seed=seed, progress=False, callback=lambda state: taken.append(state.steps), **settings
        )

    times: dict[str, list[float]] = {"by_hand": [], "genpipe": []}
    for run in range(runs + 1):
        for kind, draw in (("by_hand", by_hand), ("genpipe", through)):
            started = time.perf_counter()
            draw(run)
            if run:  # the first warms up
                times[kind].append(1000 * (time.perf_counter() - started))
    bare, whole = (min(times[kind]) for kind in ("by_hand", "genpipe"))
    more = whole - bare
    return {"by_hand_ms": bare, "genpipe_ms": whole, "more_ms": more, "more_ms_per_step": more / taken[-1]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "names", nargs="*", help="families (default: all but Kandinsky 5, which draws large images alone)"
    )
    parser.add_argument("--runs", type=int, default=10, help="images of each (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=10, help="of an image (default: %(default)s)")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    found: dict[str, dict[str, float]] = {}
    for family in families():
        if family.name not in arguments.names if arguments.names else family.name == "Kandinsky 5":
            continue
        with tempfile.TemporaryDirectory() as folder:
            found[family.name] = one = measure(family, Path(folder), runs=arguments.runs, steps=arguments.steps)
        print(f"{family.name:<22}{one['by_hand_ms']:>9.1f} ms by hand{one['more_ms']:>8.2f} ms more")
    if not found:
        raise SystemExit(
            f"there is no family {', '.join(arguments.names)}: there are {[one.name for one in families()]}"
        )
    most = max(one["more_ms"] for one in found.values())
    print(f"at most {most:.2f} ms more per image; the limit is {LIMIT:g}")
    where = {"cpu": device_name(torch.device("cpu")), "python": platform.python_version()}
    print(
        json.dumps(
            {"families": found, "most_ms": most, "diffusers": version("diffusers"), "torch": torch.__version__, **where}
        )
    )


if __name__ == "__main__":
    main()

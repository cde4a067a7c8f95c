"""Draw the same images with another commit and with this tree, and compare their pixels.

    python -m scripts.evaluate.unchanged --base 6c027ea

With the weights of the other commit: ten prompts of the embedded model, a tiny checkpoint of random weights in several
samplers and speeds, guided and not, in fp32 and, where the processor has it, bf16; and a small `genpipe render`. The last line
is one JSON object: how many images were compared, and how many differ.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).parents[2]
PROMPTS = (
    *("pirate ship", "two red cats in the snow", "a blue car", "castle at night", "a dog and an owl"),
    *("корабль в космосе", "three balloons", "a green apple", "lion in the desert", "house at the sea"),
)
# Runs in both trees, so it calls only what both have.
DRAW = """
import sys, torch
from pathlib import Path
from genpipe import Pipeline
prompts, tiny, embedded, out, bf16 = eval(sys.argv[1])
torch.set_num_threads(1)
for dtype in ("fp32", "bf16")[: 1 + bf16]:
    pipe = Pipeline.from_pretrained(embedded, device="cpu", dtype=dtype)
    for k, prompt in enumerate(prompts):
        pipe(prompt, seed=k, steps=4, progress=False).save(f"{out}/embedded-{dtype}-{k}.png")
    pipe = Pipeline.from_pretrained(tiny, device="cpu", dtype=dtype)
    for sampler in ("ddim", "pndm", "euler_a", "dpmpp_2m_karras", "lcm", "UniPCMultistepScheduler"):
        for speed in ("exact", "draft"):
            for scale in (1.0, 4.0):
                image = pipe("a red cat", seed=1, steps=4, sampler=sampler, speed=speed, guidance_scale=scale, progress=False)
                image.save(f"{out}/tiny-{dtype}-{sampler}-{speed}-{scale}.png")
"""
TINY = "import sys; from tests.conftest import tiny_parts; from genpipe.checkpoints import save_checkpoint; "
TINY += "save_checkpoint(sys.argv[1], **tiny_parts())"


def run(tree: Path, *arguments: str) -> None:
    """Run Python in a tree."""
    environment = {**os.environ, "PYTHONPATH": str(tree), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-W", "ignore", *arguments], cwd=tree, env=environment, check=True)


def draw(tree: Path, tiny: Path, embedded: Path, out: Path, *, bf16: bool) -> None:
    """Draw everything with one tree's code into a folder."""
    out.mkdir()
    run(tree, "-c", DRAW, repr((PROMPTS, str(tiny), str(embedded), str(out), bf16)))
    rows = out.parent / "rows.txt"
    rows.write_text("".join(f"{prompt}\n" for prompt in PROMPTS[:4]), encoding="utf-8")
    arguments = [str(rows), "--out", str(out / "render"), "-m", str(tiny), "--steps", "2", "--seeds", "0-2"]
    devices = ["--devices", "cpu", "--dtype", "fp32", "--deterministic", "-q"]
    run(tree, "-m", "genpipe", "render", *arguments, *devices)
    named = [json.loads(line) for line in (out / "render" / "metadata.jsonl").read_text(encoding="utf-8").splitlines()]
    for row in named:
        name = f"render-{PROMPTS.index(row['prompt'])}-{row['seed']}.png"
        (out / "render" / row["file_name"]).rename(out / name)


def compare(one: Path, other: Path) -> dict[str, int]:
    """Give the largest difference of every image that both folders have; -1 where one lacks it."""
    names = sorted({path.name for folder in (one, other) for path in folder.glob("*.png")})
    differences = {}
    for name in names:
        if not ((one / name).exists() and (other / name).exists()):
            differences[name] = -1
            continue
        a, b = (np.asarray(Image.open(folder / name), dtype=int) for folder in (one, other))
        differences[name] = int(np.abs(a - b).max()) if a.shape == b.shape else 255
    return differences


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", required=True, metavar="COMMIT", help="the commit to compare with")
    arguments = parser.parse_args(given)
    from genpipe.models.cpu.packed import multiplies_bf16

    with tempfile.TemporaryDirectory(prefix="genpipe-") as folder:
        base, work = Path(folder) / "base", Path(folder)
        subprocess.run(["git", "worktree", "add", "-q", "--detach", str(base), arguments.base], cwd=ROOT, check=True)
        try:
            run(base, "-c", TINY, str(work / "tiny"))
            for tree, out in ((base, work / "before"), (ROOT, work / "now")):
                draw(tree, work / "tiny", base / "genpipe" / "embedded", out, bf16=multiplies_bf16())
            differences = compare(work / "before", work / "now")
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", str(base)], cwd=ROOT, check=True)
    different = {name: value for name, value in differences.items() if value}
    for name, value in different.items():
        print(f"{name}: {'missing in one' if value < 0 else f'differs by up to {value}/255'}")
    print(json.dumps({"base": arguments.base, "images": len(differences), "different": len(different)}))


if __name__ == "__main__":
    main()

"""What works with which family of diffusers' pipelines: the tables in the README, found by drawing.

    python -m scripts.evaluate.adapters               # all families; prints markdown
    python -m scripts.evaluate.adapters "FLUX.1 dev"
    python -m scripts.evaluate.adapters --device cuda   # where offload is that of whole networks

Each family's pipeline, tiny and of random weights, is saved, loaded by genpipe and drawn with. "yes" stands where it was done:
text, image and mask are pixel for pixel what diffusers draws by hand; batch seeds are drawn together, or in turn where the
pipeline takes one generator alone; offload is that by groups of layers, as other kinds want a GPU, and draws the same image;
fp8 keeps the denoiser's weights so.

The second table is of what saves memory or time, and of control: int8 weights are those of torchao, nf4 those of bitsandbytes
(on a GPU); a prompt is kept where the second image of it runs no text encoder, and is what diffusers draws by hand; speed names
what is not computed at every step: all but the first block (diffusers' First Block Cache), or attention (its Pyramid Attention
Broadcast); blocks are those that diffusers lets torch compile; attention is chosen where the denoiser leaves the choice among
diffusers' backends, of which torch's plainest is tried; control is what diffusers draws with a control network.
"""

import argparse
import inspect
import tempfile
import warnings
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from genpipe import Pipeline
from genpipe.adapters.placing import NATIVE, choose_attention, compile_blocks
from genpipe.adapters.skipping import skipping
from genpipe.pipeline.progress import Progress
from genpipe.pipeline.wrapped import WrappedDrawer
from tests.adapters.conftest import encoded_by, families
from tests.adapters.control_networks import NETWORKS, network
from tests.adapters.control_networks import by_hand as controlled_by_hand
from tests.adapters.tiny import Family

COLUMNS = ("text", "image", "mask", "negative", "batch seeds", "preview", "offload", "fp8 weights")
SAVING = ("int8 weights", "prompt kept", "speed", "compiled blocks", "attention chosen", "control")
YES, NO, UNTRIED = "yes", "–", "not tried"
Find = Callable[[Family, Path, str], dict[str, str]]
PROMPT, SEED = "a red cat", 3
STRENGTH, STEPS = 0.75, 4  # of images that are drawn over


def row(family: Family, folder: Path, device: str = "cpu") -> dict[str, str]:
    """Find what works with a family, by column."""
    family.build().save_pretrained(folder)

    def load(**options: Any) -> Pipeline:
        return Pipeline.from_pretrained(folder, device=device, dtype="fp32", **options)

    def draw(pipeline: Pipeline, **more: Any) -> np.ndarray:
        over = {"strength": STRENGTH, "steps": STEPS} if "image" in more else {}
        return np.asarray(pipeline(PROMPT, seed=SEED, progress=False, **{**family.settings, **over, **more}))

    pipeline, states = load(), list[Progress]()
    plain = draw(pipeline, callback=states.append)
    shown = [np.asarray(state.preview()[0]).std() > 0 for state in states[:-1]]
    forms, size = _drawer(pipeline).adapted.forms, plain.shape[1::-1]
    begin = Image.linear_gradient("L").resize(size).convert("RGB")
    mask = Image.fromarray(
        np.where(np.arange(size[0]) < size[0] // 2, np.uint8(255), np.uint8(0))[None].repeat(size[1], 0)
    )
    works: dict[str, Callable[[], str | bool]] = {
        "text": lambda: np.array_equal(plain, by_hand(pipeline, family)),
        "image": lambda: (
            "image" in forms and np.array_equal(draw(pipeline, image=begin), by_hand(pipeline, family, image=begin))
        ),
        "mask": lambda: (
            "mask" in forms
            and np.array_equal(
                draw(pipeline, image=begin, mask=mask), by_hand(pipeline, family, image=begin, mask_image=mask)
            )
        ),
        "negative": lambda: (
            "negative_prompt" in (pipeline.traits.takes or ())
            and np.array_equal(
                draw(pipeline, negative_prompt="blue"), by_hand(pipeline, family, negative_prompt="blue")
            )
        ),
        "batch seeds": lambda: "together" if forms["text"].signature.batches else "in turn",
        "preview": lambda: any(shown),
        "offload": lambda: np.array_equal(plain, draw(load(offload="group" if device == "cpu" else "model"))),
        "fp8 weights": lambda: bool(draw(load(weights="fp8")).std() > 0),
    }
    return {name: _told(works[name]) for name in COLUMNS}


def saving(family: Family, folder: Path, device: str = "cpu") -> dict[str, str]:
    """Find what saves memory or time with a family, and whether it can be controlled, by column."""
    family.build().save_pretrained(folder / "model")

    def load(**options: Any) -> Pipeline:
        return Pipeline.from_pretrained(folder / "model", device=device, dtype="fp32", **options)

    def draw(pipeline: Pipeline, **more: Any) -> np.ndarray:
        settings: Any = {"seed": SEED, **family.settings, **more}
        return np.asarray(pipeline(PROMPT, progress=False, **settings))

    pipeline = load()
    pipe = _drawer(pipeline).adapted.pipe

    def kept() -> bool:
        draw(pipeline, seed=SEED + 1)
        with encoded_by(pipeline) as ran:
            drawn = draw(pipeline)
        return not ran and np.array_equal(drawn, by_hand(pipeline, family))

    def skips() -> str | bool:
        cache = _drawer(pipeline).adapted.forms["text"].cache
        if cache is None:
            return False
        drawn = draw(pipeline, speed="draft")
        with skipping(pipe, cache, "draft"):
            return cache if np.array_equal(drawn, by_hand(pipeline, family)) else False

    def compiled() -> bool:
        other = load()
        compile_blocks(_drawer(other).adapted.pipe, backend="eager")
        return np.array_equal(draw(other), draw(pipeline))

    def chosen() -> bool:
        before = draw(pipeline).astype(int)
        try:
            return choose_attention(pipe, "_native_math") and np.abs(draw(pipeline) - before).max() <= 2
        finally:
            choose_attention(pipe, NATIVE)

    def controlled() -> str | bool:
        if family.name not in NETWORKS:
            twin = type(pipe).__name__.replace("Pipeline", "ControlNetPipeline")
            return UNTRIED if hasattr(import_module("diffusers"), twin) else False
        made, shown = network(family.name, pipe), Image.linear_gradient("L").resize((32, 32)).convert("RGB")
        made.save_pretrained(folder / "control")
        drawn = draw(load(control_model=folder / "control"), control=[shown], height=32, width=32)
        given = {"control_image": shown, "controlnet_conditioning_scale": 1.0}
        return np.array_equal(drawn, controlled_by_hand(pipeline, family.name, [made], **given))

    works: dict[str, Callable[[], str | bool]] = {
        "int8 weights": lambda: bool(draw(load(weights="int8")).std() > 0),
        "prompt kept": kept,
        "speed": skips,
        "compiled blocks": compiled,
        "attention chosen": chosen,
        "control": controlled,
    }
    if device != "cpu":
        works["nf4 weights"] = lambda: bool(draw(load(weights="nf4")).std() > 0)
    return {name: _told(one) for name, one in works.items()}


def _told(works: Callable[[], str | bool]) -> str:
    """Whether something works; what the pipeline or one of its networks refuses does not."""
    try:
        found = works()
    except (ValueError, RuntimeError):
        return NO
    return found if isinstance(found, str) else YES if found else NO


def by_hand(pipeline: Pipeline, family: Family, **more: Any) -> np.ndarray:
    """What diffusers draws, called as its documentation does."""
    diffusers: Any = import_module("diffusers")
    pipe = _drawer(pipeline).adapted.pipe
    if "mask_image" in more:
        pipe = diffusers.AutoPipelineForInpainting.from_pipe(pipe)
    elif "image" in more:
        pipe = diffusers.AutoPipelineForImage2Image.from_pipe(pipe)
    pipe.set_progress_bar_config(disable=True)
    taken = inspect.signature(type(pipe).__call__).parameters
    height, width = _drawer(pipeline).adapted.size
    given = {**family.by_hand, **more}
    if "image" in more:  # whose pipeline has other defaults
        scale = {"guidance_scale": pipeline.defaults()["guidance_scale"], "height": height, "width": width}
        given = {**scale, **given, "strength": STRENGTH, "num_inference_steps": STEPS}
    given = {name: value for name, value in given.items() if name in taken}
    made = pipe(prompt=PROMPT, generator=torch.Generator("cpu").manual_seed(SEED), **given)
    return np.asarray((made.image if hasattr(made, "image") else made.images)[0].convert("RGB"))


def _drawer(pipeline: Pipeline) -> WrappedDrawer:
    assert isinstance(pipeline.drawer, WrappedDrawer)
    return pipeline.drawer


def table(rows: dict[str, dict[str, str]]) -> str:
    """Write rows, by the names of their families, as markdown."""
    columns = list(next(iter(rows.values())))
    lines = [["family", *columns], ["---"] * (1 + len(columns))]
    lines += [[name, *found.values()] for name, found in rows.items()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def rows_of(chosen: Sequence[Family], device: str = "cpu", find: Find = row) -> dict[str, dict[str, str]]:
    """Find the rows of some families, by their names: `row` or `saving`."""
    found = {}
    for family in sorted(chosen, key=lambda one: one.name.lower()):
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found[family.name] = find(family, Path(folder), device)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="families (default: all)")
    parser.add_argument("--device", default="cpu", help="default: %(default)s")
    arguments = parser.parse_args()
    names = arguments.names
    chosen = [one for one in families() if not names or one.name in names]
    if not chosen:
        parser.error(f"there is no such family: there are {', '.join(one.name for one in families())}")
    torch.set_num_threads(1)
    print(table(rows_of(chosen, arguments.device)))
    print()
    print(table(rows_of(chosen, arguments.device, saving)))


if __name__ == "__main__":
    main()

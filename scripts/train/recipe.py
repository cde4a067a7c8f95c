"""The embedded model from nothing within the minutes for which a GPU is lent: all stages, the checkpoint, the judge's figures.

Run by `python -m scripts.train.embedded --recipe gpu --minutes 9 --out DIR`. The autoencoder, the text encoder and the
denoiser are trained on small images, in DIR/base; then one more level of the autoencoder, for images of twice the size, in
DIR/grown. Whenever one of the two is done, DIR gets the checkpoint in files of at most 16 MB, a sheet of samples, and
`log.txt`. A run that was stopped continues with the same command, stage by stage.
"""

import io
import json
import math
import shutil
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any, Self

import torch
from accelerate import Accelerator
from safetensors import safe_open
from torch import Tensor, nn

from genpipe.checkpoints import Checkpoint, load_checkpoint, save_folder
from genpipe.files import atomic_write
from genpipe.hardware import device_name
from genpipe.scenes.captions import corpus
from genpipe.training.autoencoder import autoencoder_loss
from genpipe.training.diffusion import LatentPool, TextToImage, diffusion_loss
from genpipe.training.loop import Budget, Randomness, StagedLoss, Stopped
from genpipe.training.text_to_image import MEASURED, new_model, squared_alphas, train, trained_model
from genpipe.training.update import Update
from scripts.evaluate.embedded import main as evaluate
from scripts.train.scenes import GPU_BATCH, SAMPLES, TOKENS, Scenes, of_scenes, teach

SHARD_BYTES = 16_000_000 - 65_536  # of weights; the file has a header too
LOG_CHARACTERS = 2000
MEANT_STEPS = 40.0  # of the denoiser per second on an H100
# Where each stage has its state.
STAGES = {"text": "base/text", "autoencoder": "base/vae", "denoiser": "base/denoiser", "growth": "grown/growth"}


@dataclass(frozen=True)
class Recipe:
    """How minutes are shared, and how much is done at once.

    Attributes:
        shares: of the minutes, by stage; what they leave is for loading, saving and judging.
        batch: images per step of the denoiser.
        vae_batch, growth_batch: of the autoencoder, and of its last level, at twice the size.
        measured: images that the PSNR of the autoencoder is measured on as it trains.
        judged: held-out images that the judge sees, in each language.
        prompts: of the sheet of samples.
    """

    shares: Mapping[str, float]
    batch: int
    vae_batch: int
    growth_batch: int
    judged: int
    measured: int = MEASURED
    prompts: Sequence[str] = SAMPLES


RECIPES = {
    "gpu": Recipe(
        {"text": 0.05, "autoencoder": 0.2, "denoiser": 0.45, "growth": 0.15},
        batch=GPU_BATCH,
        vae_batch=32,
        growth_batch=16,
        judged=400,
    )
}


class Limit:
    """Says that it is time to stop: when the minutes are over, or the process was asked to end (SIGTERM).

    Args:
        minutes: from now on; None for as long as it takes.
    """

    def __init__(self, minutes: float | None) -> None:
        self._ends = math.inf if minutes is None else time.monotonic() + 60 * minutes
        self._asked = False

    def __call__(self) -> bool:
        return self._asked or time.monotonic() > self._ends

    def __enter__(self) -> Self:
        self._before = signal.signal(signal.SIGTERM, self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGTERM, self._before)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self._asked = True


def fresh(folder: Path) -> Checkpoint:
    """A model of fresh weights, as the embedded one is."""
    return new_model(folder, corpus(), tokens=TOKENS)


def carry_out(
    recipe: Recipe,
    out: Path,
    *,
    minutes: float,
    concepts: Sequence[str],
    accelerator: Accelerator,
    seed: int = 0,
    begin: Callable[[Path], Checkpoint] = fresh,
    limit: float | None = None,
    accuracy: Mapping[str, float] | None = None,
) -> None:
    """Train what a recipe says, as far as the time goes, and leave in `out` what there is.

    Args:
        minutes: that the stages share, over all runs.
        concepts: of the world, which the images show.
        begin: makes the model that is trained, in a folder.
        limit: minutes after which this run ends.
        accuracy: of an evaluation, as in `genpipe.scenes.world.Pool`.

    Raises:
        ValueError: `out` holds a training of other settings, or a state that is not its own.
        FloatingPointError: a loss is not finite.
    """
    out.mkdir(parents=True, exist_ok=True)
    _agree(out / "recipe.json", {"minutes": minutes, "seed": seed, "concepts": list(concepts), **_sizes(recipe)})
    budgets = {stage: Budget(minutes=minutes * share) for stage, share in recipe.shares.items()}
    base, grown = out / "base", out / "grown"
    told: list[str] = []
    with Limit(limit) as stop:
        settings: dict[str, Any] = {"accelerator": accelerator, "seed": seed, "stop": stop}
        shared = {**settings, "prompts": recipe.prompts, "checkpoint_minutes": minutes / 6, "batch": recipe.batch,
                  "measured": recipe.measured}  # fmt: skip
        try:
            model = of_scenes(begin(base), concepts)
            scenes = Scenes(model.defaults["height"], concepts=concepts, seed=seed, accuracy=accuracy)
            if not (base / "text").exists():
                print(_plan(recipe, model, scenes, budgets, accelerator), flush=True)
            encoder = teach(model.text_encoders[0], model.tokenizers[0], base / "text", budgets["text"], **settings)
            train(
                replace(model, text_encoders=(encoder,)),
                scenes,
                out=base,
                autoencoder=budgets["autoencoder"],
                denoiser=budgets["denoiser"],
                freeze_text=True,
                vae_batch=recipe.vae_batch,
                **shared,
            )
            _publish(base, out)
            larger = of_scenes(trained_model(grown, base / "checkpoint", grow=True), concepts)
            train(
                larger,
                Scenes(larger.defaults["height"], concepts=concepts, seed=seed, accuracy=accuracy),
                out=grown,
                growth=budgets["growth"],
                vae_batch=recipe.growth_batch,
                **shared,
            )
            _publish(grown, out)
            told += _figures(out / "checkpoint", recipe.judged, accelerator.device)
        except Stopped as stopped:
            told.append(str(stopped))
            for newest in [stage for stage in (grown, base) if (stage / "checkpoint").exists()][:1]:
                _publish(newest, out)
    done = [_told(stage, out / folder) for stage, folder in STAGES.items()]
    heading = f"{minutes:g} minutes on {device_name(accelerator.device)}, seed {seed}, {len(concepts)} concepts"
    log = "\n".join([heading, *done, *told])[: LOG_CHARACTERS - 1] + "\n"
    with atomic_write(out / "log.txt") as part:
        part.write_text(log, encoding="utf-8")
    print(log, end="")


def without_gpu(name: str, recipe: Recipe, minutes: float, accelerator: Accelerator) -> str:
    """Say what a recipe for a GPU would take on the CPU, from a few steps of the denoiser that are measured."""
    few = replace(recipe, batch=max(1, recipe.batch // 8))
    model = fresh(Path("nowhere"))
    scenes = Scenes(model.defaults["height"], concepts=("cat",), seed=0)
    seconds = recipe.batch / few.batch * _pace(*_denoiser(few, model, scenes, accelerator), accelerator)
    steps = round(60 * minutes * recipe.shares["denoiser"] * MEANT_STEPS)
    return (
        f"--recipe {name} is for a GPU with CUDA, and torch sees none. On {device_name(accelerator.device)} the {steps:,} "
        f"steps that the denoiser is meant to make would take {steps * seconds / 3600:.1f} hours: leave --recipe out, or "
        "give --device cpu to make as many as the minutes allow"
    )


def _agree(path: Path, settings: Mapping[str, Any]) -> None:
    """Note the settings of a training, or refuse those that are not the noted ones."""
    if path.exists():
        try:
            noted = json.loads(path.read_text(encoding="utf-8"))
            differing = [name for name, value in settings.items() if noted[name] != value]
        except (ValueError, KeyError, TypeError):
            raise ValueError(f"{path} is damaged: delete {path.parent} to begin again") from None
        if differing:
            name = differing[0]
            shown = f"{name} {noted[name]}" if not isinstance(noted[name], list) else f"other {name}"
            raise ValueError(f"{path.parent} holds a training with {shown}: repeat its command, or use another folder")
        return
    with atomic_write(path) as part:
        part.write_text(json.dumps(settings), encoding="utf-8")


def _sizes(recipe: Recipe) -> dict[str, Any]:
    batches = {name: getattr(recipe, name) for name in ("batch", "vae_batch", "growth_batch")}
    return {"shares": dict(recipe.shares), **batches}


def _plan(
    recipe: Recipe, model: Checkpoint, scenes: Scenes, budgets: Mapping[str, Budget], accelerator: Accelerator
) -> str:
    """How many steps the two longest stages will about make, from a few that are measured."""

    def draw(randomness: Randomness) -> Tensor:
        return scenes.draw(randomness.choices, recipe.vae_batch)

    paces = {
        "autoencoder": _pace(model.vae, autoencoder_loss(draw, model.vae.config), accelerator),
        "denoiser": _pace(*_denoiser(recipe, model, scenes, accelerator), accelerator),
    }
    parts = [f"{stage} {60 * (budgets[stage].minutes or 0):.0f} s" for stage in budgets]
    steps = [
        f"{stage} {60 * (budgets[stage].minutes or 0) / pace:,.0f} ({1 / pace:.3g}/s)" for stage, pace in paces.items()
    ]
    return f"{', '.join(parts)}; steps if images are drawn as fast: {', '.join(steps)}"


def _denoiser(
    recipe: Recipe, model: Checkpoint, scenes: Scenes, accelerator: Accelerator
) -> tuple[nn.Module, StagedLoss[Any]]:
    """The networks and the loss of the denoiser's stage, of a few images."""
    vae = deepcopy(model.vae).to(accelerator.device)

    @torch.no_grad()
    def encode(pixels: Tensor) -> Tensor:
        return vae.scale(vae.encode(pixels.to(accelerator.device))[0])

    pool = LatentPool(scenes, encode, initial=8, block=8)
    networks = TextToImage(deepcopy(model.text_encoders[0]).requires_grad_(False), model.unet)
    alphas = squared_alphas(model.scheduler_config)
    return networks, diffusion_loss(pool, model.tokenizers[0], alphas, batch=recipe.batch)


def _pace(network: nn.Module, loss: StagedLoss[Any], accelerator: Accelerator) -> float:
    """Seconds per update of a copy of the network: the shortest of three, after the first."""
    update, randomness = Update(deepcopy(network).to(accelerator.device), accelerator), Randomness.at(0, 0)
    given = loss.admit(loss.prepare(0, randomness), 0, randomness)
    inputs = tuple(each.to(accelerator.device) for each in given)
    seconds = []
    for _ in range(4):
        started = time.perf_counter()
        float(update(loss.value, inputs, rate=0.0, share=0.0))  # waits for the device
        seconds.append(time.perf_counter() - started)
    return min(seconds[1:])


def _publish(stage: Path, out: Path) -> None:
    """Put the checkpoint of a stage, in small files, and its samples where a person looks for them."""
    save_folder(out / "checkpoint", load_checkpoint(stage / "checkpoint"), shard_bytes=SHARD_BYTES)
    with atomic_write(out / "samples.png") as part:
        shutil.copyfile(stage / "samples.png", part)


def _figures(checkpoint: Path, images: int, device: torch.device) -> list[str]:
    """What the judge says of held-out images, in lines for the log; all of it is in figures.json."""
    said = io.StringIO()
    with redirect_stdout(said):
        evaluate(["--model", str(checkpoint), "--images", str(images), "--unseen", str(max(8, images // 4)),
                  "--parts", "images", "vae", "--device", str(device), "--json"])  # fmt: skip
    with atomic_write(checkpoint.parent / "figures.json") as part:
        part.write_text(said.getvalue(), encoding="utf-8")
    report = json.loads(said.getvalue())
    part = report["images"]
    shares = ", ".join(f"{name} {value:.1%}" for name, value in part["generated"].items() if value is not None)
    behind = f"{part['russian_behind_english_points']:.1f} points behind in Russian"
    return [f"of {part['images']} held-out images: {shares}; {behind}", "worst: " + ", ".join(f"{name} {share:.0%}" for name, share, _ in part["worst_concepts"]),
            f"autoencoder: {report['vae']['psnr_db']:.1f} dB on unseen scenes"]  # fmt: skip


def _told(stage: str, folder: Path) -> str:
    """How far a stage has come, in a line."""
    state, log = folder / "state.safetensors", folder / "log.jsonl"
    if not state.exists():
        return f"{stage}: no state yet"
    with safe_open(state, framework="pt") as file:
        metadata = file.metadata()
    steps, seconds = int(metadata["step"]), float(metadata["seconds"])
    line = f"{stage}: {steps:,} steps in {seconds / 60:.2f} minutes, {steps / max(seconds, 1e-9):.3g} per second"
    return line + (f", loss {json.loads(log.read_text().splitlines()[-1])['loss']:.4f}" if log.exists() else "")

"""What a training of the embedded model takes on a GPU."""

import json
import tempfile
import time
from pathlib import Path

from genpipe.embedded import EMBEDDED
from genpipe.scenes.concepts import names
from genpipe.training.loop import LOGGED, Budget, choose_accelerator
from genpipe.training.text_to_image import train, trained_model
from scripts.benchmark.gpu.sections import Plan, Say
from scripts.train.embedded import Scenes

TOY = 8  # images of the world


def training(plan: Plan, say: Say) -> None:
    """Steps per second of the embedded model's denoiser, by the images per step."""
    for batch in (4,) if plan.toy else (256, 512):
        accelerator = choose_accelerator(plan.device)
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder)
            steps = 2 if plan.toy else 3 * LOGGED
            scenes = Scenes(accelerator.device, concepts=names(core=True), seed=0)
            if plan.toy:
                scenes.period = TOY
            model, budget = trained_model(out, EMBEDDED), Budget(steps=steps)
            started = time.perf_counter()
            train(model, scenes, out=out, accelerator=accelerator, denoiser=budget, batch=batch, freeze_text=True,
                  prompts=["pirate ship"])  # fmt: skip
            say(f"whole_s/{batch}", time.perf_counter() - started)
            log = out / "denoiser" / "log.jsonl"
            marks = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
        if len(marks) > 1:
            taken = marks[-1]["step"] - marks[0]["step"]
            say(f"steps_per_s/{batch}", taken / (marks[-1]["seconds"] - marks[0]["seconds"]))

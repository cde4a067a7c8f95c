"""What a training of the embedded model takes on a GPU."""

from scripts.benchmark.gpu.sections import Plan, Say
from scripts.benchmark.training import measure

TOY = 8  # images of the world


def training(plan: Plan, say: Say) -> None:
    """Steps per second of the embedded model's denoiser, by the images per step, and the parts of a step."""
    for batch in (4,) if plan.toy else (256, 512):
        figures = measure(plan.device, batch, 2 if plan.toy else 150, period=TOY if plan.toy else None)
        say(f"steps_per_s/{batch}", figures.steps_per_s)
        for name, milliseconds in figures.milliseconds.items():
            say(f"ms/{batch}/{name}", milliseconds)

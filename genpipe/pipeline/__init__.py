"""Text to images: prompts are encoded, latents denoised and decoded."""

from genpipe.pipeline.drawing import BATCH
from genpipe.pipeline.generate import generate
from genpipe.pipeline.pipeline import Pipeline
from genpipe.pipeline.progress import Progress

__all__ = ["BATCH", "Pipeline", "Progress", "generate"]

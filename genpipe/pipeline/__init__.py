"""Text to images: prompts are encoded, latents denoised and decoded."""

from genpipe.pipeline.pipeline import BATCH, TILE, Pipeline, Progress, generate

__all__ = ["BATCH", "TILE", "Pipeline", "Progress", "generate"]

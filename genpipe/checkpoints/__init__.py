"""Reading and writing checkpoints in the diffusers layout: the one place where foreign names are known."""

from genpipe.checkpoints.errors import CheckpointError
from genpipe.checkpoints.loading import Checkpoint, load_checkpoint, load_tiny_vae
from genpipe.checkpoints.saving import save_checkpoint
from genpipe.checkpoints.weights import nonfinite_weights

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "load_checkpoint",
    "load_tiny_vae",
    "nonfinite_weights",
    "save_checkpoint",
]

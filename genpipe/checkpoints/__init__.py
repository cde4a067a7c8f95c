"""Reading and writing checkpoints, in folders and single files: the one place where foreign names are known."""

from genpipe.checkpoints.checkpoint import Checkpoint
from genpipe.checkpoints.diffusers_layout import load_tiny_vae
from genpipe.checkpoints.errors import CheckpointError
from genpipe.checkpoints.loading import load_checkpoint
from genpipe.checkpoints.lora import LoRA, load_lora
from genpipe.checkpoints.saving import save_checkpoint, save_folder

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "LoRA",
    "load_checkpoint",
    "load_lora",
    "load_tiny_vae",
    "save_checkpoint",
    "save_folder",
]

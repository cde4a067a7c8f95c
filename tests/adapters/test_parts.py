"""Weights that a model's files lack: an error where nothing would stand there, a warning where random numbers would."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from genpipe.checkpoints.errors import CheckpointError
from genpipe.pipeline import Pipeline
from tests.adapters.conftest import family_named
from tests.adapters.tiny import Family

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


@pytest.fixture
def copied(folder_of: Callable[[Family], Path], tmp_path: Path) -> Path:
    """A folder of Stable Diffusion 3 that a test may change."""
    return Path(shutil.copytree(folder_of(family_named("Stable Diffusion 3")), tmp_path / "copied"))


def lacking(folder: Path, tensor: str) -> None:
    """Take a tensor out of a folder's weights."""
    (file,) = folder.glob("*.safetensors")
    save_file({name: one for name, one in load_file(file).items() if name != tensor}, file, metadata={"format": "pt"})


def test_weights_that_a_text_encoder_lacks_are_told(copied: Path):
    lacking(copied / "text_encoder_3", "encoder.block.1.layer.0.SelfAttention.k.weight")
    with pytest.warns(
        UserWarning, match=r"text_encoder_3 lacks encoder.block.1.layer.0.SelfAttention.k.weight: random"
    ):
        Pipeline.from_pretrained(copied, device="cpu", dtype="fp32")


@pytest.mark.parametrize(("part", "tensor"), [("transformer", "proj_out.bias"), ("vae", "decoder.conv_in.weight")])
def test_weights_that_a_network_lacks_are_an_error(part: str, tensor: str, copied: Path):
    lacking(copied / part, tensor)
    with pytest.raises(CheckpointError, match=f"its {part} lacks {tensor}: download it again"):
        Pipeline.from_pretrained(copied, device="cpu")

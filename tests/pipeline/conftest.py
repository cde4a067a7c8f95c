"""Pipelines over the tiny checkpoint, and the same checkpoint in diffusers."""

from pathlib import Path
from typing import Any

import pytest

from genpipe.pipeline import Pipeline


@pytest.fixture(scope="module")
def pipe(tiny_checkpoint: Path) -> Pipeline:
    return Pipeline.from_pretrained(tiny_checkpoint, device="cpu", dtype="fp32")


@pytest.fixture(scope="module")
def reference(tiny_checkpoint: Path) -> Any:
    diffusers = pytest.importorskip("diffusers")
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(tiny_checkpoint, safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def fresh(tiny_checkpoint: Path) -> Pipeline:
    """A pipeline to break."""
    return Pipeline.from_pretrained(tiny_checkpoint, device="cpu", dtype="fp32")

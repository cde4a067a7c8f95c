"""What a checkpoint's scheduler and its networks decide, and what the host program's torch must not."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

from genpipe.checkpoints import save_checkpoint
from genpipe.models.unet import UNet
from genpipe.pipeline import Pipeline
from tests.conftest import SCHEDULER, tiny_parts

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


def pipeline(folder: Path, scheduler: dict[str, Any] | None = None, dtype: str = "fp32") -> Pipeline:
    if scheduler is not None:
        (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(SCHEDULER | scheduler))
    return Pipeline.from_pretrained(folder, device="cpu", dtype=dtype)


@pytest.fixture
def checkpoint(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint"))


def drawn(pipe: Pipeline, **settings: Any) -> np.ndarray:
    return np.asarray(pipe("a red cat", seed=1, progress=False, **settings)).astype(int)


@pytest.mark.parametrize("class_name", ["IPNDMScheduler", "NotYetKnownScheduler"])
def test_a_named_sampler_suffices_where_the_checkpoints_own_cannot_be_made(class_name: str, checkpoint: Path) -> None:
    expected = drawn(pipeline(checkpoint), sampler="euler", steps=2)
    pipe = pipeline(checkpoint, {"_class_name": class_name})
    assert np.array_equal(drawn(pipe, sampler="euler", steps=2), expected)
    with pytest.raises(ValueError, match=class_name):
        drawn(pipe, steps=2)


def test_a_tcd_checkpoint_is_drawn_as_the_diffusers_pipeline_draws_it(checkpoint: Path) -> None:
    """The pipeline gives each step its own eta, 0, where TCDScheduler's default is 0.3."""
    pipe = pipeline(checkpoint, {"_class_name": "TCDScheduler", "original_inference_steps": 50})
    index = checkpoint / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"scheduler": ["diffusers", "TCDScheduler"]}))
    theirs: Any = diffusers.StableDiffusionPipeline.from_pretrained(checkpoint, safety_checker=None)  # pyright: ignore
    theirs.set_progress_bar_config(disable=True)
    image = theirs("a red cat", num_inference_steps=4, generator=torch.Generator("cpu").manual_seed(1)).images[0]
    assert np.abs(drawn(pipe, steps=4) - np.asarray(image).astype(int)).max() <= 1


def test_networks_that_take_the_scale_as_an_input_are_guided_by_default(tmp_path: Path) -> None:
    """As in diffusers' LatentConsistencyModelPipeline, whose checkpoints they are."""
    parts = tiny_parts()
    config = parts["unet"].config
    for channels, scale in ((None, 1.0), (16, 8.5)):
        torch.manual_seed(0)
        unet = UNet(type(config)(**{**vars(config), "guidance_channels": channels}))
        scheduler = SCHEDULER | {"_class_name": "LCMScheduler", "original_inference_steps": 50}
        save_checkpoint(tmp_path / "lcm", **(parts | {"unet": unet, "scheduler_config": scheduler}))
        defaults = pipeline(tmp_path / "lcm").defaults()
        assert (defaults["guidance_scale"], defaults["steps"]) == (scale, 4)


@contextmanager
def globals_of_torch(dtype: torch.dtype = torch.float32, device: str = "cpu", **flags: bool) -> Iterator[None]:
    grad = torch.is_grad_enabled()
    try:
        torch.set_default_dtype(dtype)
        torch.set_default_device(device)
        torch.use_deterministic_algorithms(flags.get("deterministic", False), warn_only=True)
        torch.set_grad_enabled(flags.get("grad", grad))
        torch.manual_seed(12345)
        yield
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)
        torch.use_deterministic_algorithms(False)
        torch.set_grad_enabled(grad)


@pytest.mark.parametrize(
    ("sampler", "dtype"),
    [
        *((name, "fp32") for name in ("pndm", "euler_a", "lcm", "dpm2_a_karras")),
        ("euler", "bf16"),
    ],
)
def test_an_image_does_not_depend_on_torchs_globals(sampler: str, dtype: str, checkpoint: Path) -> None:
    """Default dtype, default device ("meta": a tensor that is made there holds nothing), flags and the global seed."""
    settings = {"sampler": sampler, "steps": 2, "n": 2, "guidance_scale": 3.0}

    def images() -> tuple[np.ndarray, ...]:
        pipe = pipeline(checkpoint, dtype=dtype)
        previews: list[Any] = []
        made = pipe(
            "a red cat", seed=1, progress=False, callback=lambda step: previews.append(step.preview()), **settings
        )
        return tuple(np.stack([np.asarray(image) for image in each]).astype(int) for each in (made, previews[-1]))

    expected = images()
    changes: list[dict[str, Any]] = [
        {"dtype": torch.float64},
        {"dtype": torch.bfloat16, "deterministic": True, "grad": False},
        {"device": "meta"},
    ]
    for changed in changes:
        with globals_of_torch(**changed):
            found = images()
        image, preview = (np.abs(a.astype(int) - b).max() for a, b in zip(found, expected, strict=True))
        assert image == 0, f"{changed} changed the image by {image} levels"
        assert preview <= 1, f"{changed} changed the preview"  # LAPACK's least squares are not bitwise the same twice

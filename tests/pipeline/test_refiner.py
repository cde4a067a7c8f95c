"""SDXL's base and refiner as parts of one schedule: what diffusers' two pipelines draw one after the other."""

from pathlib import Path
from typing import Any

import pytest
import torch

from genpipe import Pipeline
from genpipe.checkpoints import load_checkpoint
from genpipe.pipeline.loaded import check_refiner
from tests.pipeline.test_sdxl import saved_by_diffusers


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("refined")
    return saved_by_diffusers(root / "base"), saved_by_diffusers(root / "refiner", refiner=True)


@pytest.mark.parametrize("sampler", ["ddim", "euler", "dpmpp_2m"])
def test_base_and_refiner_draw_what_diffusers_draws(folders: tuple[Path, Path], sampler: str) -> None:
    import diffusers

    kinds: Any = {"ddim": "DDIM", "euler": "EulerDiscrete", "dpmpp_2m": "DPMSolverMultistep"}
    latents: Any = None
    for folder, kind, part in (
        (folders[0], "StableDiffusionXLPipeline", {"denoising_end": 0.6}),
        (folders[1], "StableDiffusionXLImg2ImgPipeline", {"denoising_start": 0.6}),
    ):
        pipe: Any = getattr(diffusers, kind).from_pretrained(folder, add_watermarker=False)
        pipe.set_progress_bar_config(disable=True)
        pipe.scheduler = getattr(diffusers, f"{kinds[sampler]}Scheduler").from_config(pipe.scheduler.config)
        given = {} if latents is None else {"image": latents}
        size = {"height": 32, "width": 32} if latents is None else {"original_size": (32, 32), "target_size": (32, 32)}
        with torch.inference_mode():
            latents = pipe(
                "a red cat",
                num_inference_steps=8,
                guidance_scale=4.0,
                generator=[torch.Generator("cpu").manual_seed(5)],
                output_type="latent",
                **given,
                **size,
                **part,
            ).images
    ours = Pipeline.from_pretrained(folders[0], refiner=folders[1], device="cpu", dtype="fp32")
    settings: Any = {"steps": 8, "guidance_scale": 4.0, "sampler": sampler, "height": 32, "width": 32}
    *_, last = ours.stream(ours.requests("a red cat", seed=5, refiner_start=0.6, **settings))
    assert last.step == last.steps
    assert (last.latents - latents).abs().max() <= 2e-4 * latents.abs().max()


def test_who_cannot_refine_is_refused(folders: tuple[Path, Path], tiny_checkpoint: Path) -> None:
    base, refiner, other = (load_checkpoint(folder) for folder in (*folders, tiny_checkpoint))
    with pytest.raises(ValueError, match=r"is Stable Diffusion XL, not the refiner"):
        check_refiner(base, base)
    with pytest.raises(ValueError, match="a refiner goes with Stable Diffusion XL"):
        check_refiner(other, refiner)


def test_a_place_to_take_over_without_a_refiner_is_told(tiny_checkpoint: Path) -> None:
    pipe = Pipeline.from_pretrained(tiny_checkpoint, device="cpu", dtype="fp32")
    with pytest.warns(UserWarning, match="refiner_start has no effect without a refiner"):
        pipe.requests("a", seed=1, refiner_start=0.5)

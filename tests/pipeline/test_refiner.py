"""SDXL's base and refiner as parts of one schedule: what diffusers' two pipelines draw one after the other."""

from pathlib import Path
from typing import Any

import pytest
import torch

from genpipe import Pipeline
from genpipe.checkpoints import load_checkpoint
from genpipe.pipeline.loaded import check_refiner
from tests.pipeline.drawing import loaded_by_diffusers
from tests.pipeline.test_sdxl import saved_by_diffusers


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("refined")
    return saved_by_diffusers(root / "base"), saved_by_diffusers(root / "refiner", refiner=True)


SETTINGS: Any = {"steps": 8, "guidance_scale": 4.0, "height": 32, "width": 32}


def drawn_by_diffusers(
    folders: tuple[Path, Path], kind: str, prompts: tuple[str, str], takes_over: float
) -> torch.Tensor:
    """Latents of diffusers' base, told the first prompt, and then of its refiner, told the second."""
    import diffusers

    latents: Any = None
    for folder, pipeline, prompt, part in (
        (folders[0], "StableDiffusionXLPipeline", prompts[0], {"denoising_end": takes_over}),
        (folders[1], "StableDiffusionXLImg2ImgPipeline", prompts[1], {"denoising_start": takes_over}),
    ):
        pipe, config = loaded_by_diffusers(getattr(diffusers, pipeline), folder, add_watermarker=False)
        pipe.scheduler = getattr(diffusers, f"{kind}Scheduler").from_config(config)
        given = {} if latents is None else {"image": latents}
        size = {"height": 32, "width": 32} if latents is None else {"original_size": (32, 32), "target_size": (32, 32)}
        with torch.inference_mode():
            latents = pipe(
                prompt,
                num_inference_steps=8,
                guidance_scale=4.0,
                generator=[torch.Generator("cpu").manual_seed(5)],
                output_type="latent",
                **given,
                **size,
                **part,
            ).images
    return latents


def drawn(pipe: Pipeline, prompt: str, **settings: Any) -> torch.Tensor:
    *_, last = pipe.stream(pipe.requests(prompt, seed=5, **{**SETTINGS, **settings}))
    assert last.step == last.steps
    return last.latents


@pytest.fixture(scope="module")
def pipe(folders: tuple[Path, Path]) -> Pipeline:
    return Pipeline.from_pretrained(folders[0], refiner=folders[1], device="cpu", dtype="fp32")


def assert_close(found: torch.Tensor, wanted: torch.Tensor) -> None:
    assert (found - wanted).abs().max() <= 2e-4 * wanted.abs().max()


@pytest.mark.parametrize("sampler", ["ddim", "euler", "dpmpp_2m"])
def test_base_and_refiner_draw_what_diffusers_draws(folders: tuple[Path, Path], pipe: Pipeline, sampler: str) -> None:
    kinds = {"ddim": "DDIM", "euler": "EulerDiscrete", "dpmpp_2m": "DPMSolverMultistep"}
    wanted = drawn_by_diffusers(folders, kinds[sampler], ("a red cat", "a red cat"), 0.6)
    assert_close(drawn(pipe, "a red cat", refiner_start=0.6, sampler=sampler), wanted)


def test_a_prompt_that_changes_is_read_over_the_steps_of_both(folders: tuple[Path, Path], pipe: Pipeline) -> None:
    wanted = drawn_by_diffusers(folders, "DDIM", ("a red cat", "a blue dog"), 0.5)
    both = drawn(pipe, "[a red cat:a blue dog:0.5]", refiner_start=0.5, sampler="ddim")
    assert_close(both, wanted)
    same = drawn(pipe, "a red cat", refiner_start=0.5, sampler="ddim")
    assert (both - same).abs().max() > 2e-3 * same.abs().max()


def test_joined_prompts_guide_both(pipe: Pipeline) -> None:
    # u + 2 ((c - u) + (c - u)) is u + 4 (c - u).
    twice = drawn(pipe, "a red cat AND a red cat", refiner_start=0.6, sampler="ddim", guidance_scale=2.0)
    assert_close(twice, drawn(pipe, "a red cat", refiner_start=0.6, sampler="ddim"))


def test_a_long_prompt_is_read_by_the_refiners_own_encoder(pipe: Pipeline) -> None:
    long = "a red cat and a blue dog and a pirate ship at sea"  # two chunks of 14 tokens
    alone = drawn(pipe, long, refiner_start=0.6, sampler="ddim")
    requests = [pipe.requests(text, seed=seed, **SETTINGS, refiner_start=0.6, sampler="ddim")[0]
                for text, seed in ((long, 5), ("a cat", 6), ("a [red|blue] dog", 7))]  # fmt: skip
    *_, last = pipe.stream(requests)
    assert_close(last.latents[:1], alone)
    cut = drawn(pipe, "a red cat and a blue dog and a pirate ship", refiner_start=0.6, sampler="ddim")
    assert (cut - alone).abs().max() > 1e-2 * alone.abs().max()


def test_who_cannot_refine_is_refused(folders: tuple[Path, Path], tiny_checkpoint: Path) -> None:
    base, refiner, other = (load_checkpoint(folder) for folder in (*folders, tiny_checkpoint))
    with pytest.raises(ValueError, match=r"is Stable Diffusion XL, not the refiner"):
        check_refiner(base, base)
    with pytest.raises(ValueError, match="a refiner goes with Stable Diffusion XL"):
        check_refiner(other, refiner)


def test_a_place_to_take_over_without_a_refiner_is_told(tiny_checkpoint: Path) -> None:
    pipe = Pipeline.from_pretrained(tiny_checkpoint, device="cpu", dtype="fp32")
    with pytest.warns(UserWarning, match="refiner_start has no effect without refiner"):
        pipe.requests("a", seed=1, refiner_start=0.5)

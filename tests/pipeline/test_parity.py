"""A pipeline draws what diffusers draws."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from genpipe.checkpoints import load_checkpoint, save_checkpoint
from genpipe.models.unet import UNet
from genpipe.pipeline import Pipeline
from tests.pipeline.drawing import difference, draw, ids

SOLVERS = {
    "pndm": ("PNDMScheduler", {"skip_prk_steps": True}),
    "ddim": ("DDIMScheduler", {}),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler_a": ("EulerAncestralDiscreteScheduler", {}),
    "heun": ("HeunDiscreteScheduler", {}),
    "dpmpp_2m": ("DPMSolverMultistepScheduler", {}),
    "dpmpp_2m_karras": ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
    "dpmpp_2m_sde": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    "lcm": ("LCMScheduler", {}),
    "UniPCMultistepScheduler": ("UniPCMultistepScheduler", {}),
}


@pytest.mark.parametrize("sampler", SOLVERS)
def test_a_seed_gives_the_picture_that_diffusers_gives(pipe: Pipeline, reference: Any, sampler: str) -> None:
    import diffusers

    name, settings = SOLVERS[sampler]
    original = reference.scheduler
    reference.scheduler = getattr(diffusers, name).from_config(original.config, **settings)
    try:
        theirs = reference(
            ["a red cat", "a blue dog"],
            negative_prompt=["bad", "bad"],
            num_inference_steps=4,
            guidance_scale=4.0,
            generator=[torch.Generator("cpu").manual_seed(seed) for seed in (5, 6)],
        ).images
    finally:
        reference.scheduler = original
    ours = draw(pipe, ["a red cat", "a blue dog"], negative_prompt="bad", sampler=sampler)
    assert np.asarray(ours[0]).std() > 5  # a flat picture would agree with anything
    assert difference(ours[0], ours[1]) > 5
    for our, their in zip(ours, theirs, strict=True):
        assert difference(our, their) <= 1


def test_guidance_rescale_as_in_diffusers(pipe: Pipeline, reference: Any) -> None:
    theirs = reference(
        "a red cat",
        num_inference_steps=4,
        guidance_scale=6.0,
        guidance_rescale=0.7,
        generator=torch.Generator("cpu").manual_seed(5),
    ).images[0]
    assert difference(draw(pipe, guidance_scale=6.0, guidance_rescale=0.7), theirs) <= 1
    assert difference(draw(pipe, guidance_scale=6.0), theirs) > 1


def test_clip_skip_reaches_the_text_encoder(pipe: Pipeline) -> None:
    assert torch.equal(
        pipe.prompt_encoder(["a"], clip_skip=1).context, pipe.text_encoders[0](ids(pipe, "a"), clip_skip=1).context
    )
    assert difference(draw(pipe), draw(pipe, clip_skip=1)) > 0


def test_a_distilled_network_takes_the_guidance_scale_as_an_input(tiny_checkpoint: Path, tmp_path: Path) -> None:
    diffusers: Any = pytest.importorskip("diffusers")

    tiny = load_checkpoint(tiny_checkpoint)
    torch.manual_seed(1)
    save_checkpoint(
        tmp_path / "lcm",
        text_encoders=tiny.text_encoders,
        tokenizers=tiny.tokenizers,
        unet=UNet(replace(tiny.unet.config, guidance_channels=16)),
        vae=tiny.vae,
        scheduler_config={**tiny.scheduler_config, "_class_name": "LCMScheduler"},
    )
    reference = diffusers.StableDiffusionPipeline.from_pretrained(tmp_path / "lcm", safety_checker=None)
    reference.set_progress_bar_config(disable=True)
    pipe = Pipeline.from_pretrained(tmp_path / "lcm", device="cpu", dtype="fp32")
    seen = []
    for scale in (1.5, 8.5):
        theirs = reference(
            "a red cat",
            num_inference_steps=4,
            guidance_scale=scale,
            generator=torch.Generator("cpu").manual_seed(5),
        ).images[0]
        seen.append(draw(pipe, guidance_scale=scale))
        assert difference(seen[-1], theirs) <= 1
    assert difference(*seen) > 1

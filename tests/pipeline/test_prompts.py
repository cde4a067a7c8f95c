"""Prompts in A1111's grammar, drawn: against loops over diffusers' networks that are told by hand what each step reads."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from genpipe.metadata import read_request
from genpipe.pipeline import Pipeline

STEPS, SCALE = 4, 4.0
Guide = tuple[str, Sequence[tuple[str, float]]]  # what a step is led away from, and what guides it


@pytest.fixture(scope="module")
def pipe(tiny_checkpoint: Path) -> Pipeline:
    return Pipeline.from_pretrained(tiny_checkpoint, device="cpu", dtype="fp32")


@pytest.fixture(scope="module")
def by_hand(tiny_checkpoint: Path) -> Callable[[Callable[[int], Guide]], np.ndarray]:
    diffusers = pytest.importorskip("diffusers")
    reference = diffusers.StableDiffusionPipeline.from_pretrained(tiny_checkpoint, safety_checker=None)

    @torch.inference_mode()
    def encoded(prompt: str) -> torch.Tensor:
        """Each sixteen tokens apart, as A1111 encodes what is longer than a text encoder reads."""
        ids = reference.tokenizer(prompt, add_special_tokens=False).input_ids
        mark = reference.tokenizer
        rows = [ids[start : start + 14] for start in range(0, max(1, len(ids)), 14)]
        rows = [[mark.bos_token_id, *row, mark.eos_token_id, *[mark.pad_token_id] * (14 - len(row))] for row in rows]
        return torch.cat([reference.text_encoder(torch.tensor([row]))[0] for row in rows], dim=1)

    @torch.inference_mode()
    def draw(guide: Callable[[int], Guide], *, seed: int = 5) -> np.ndarray:
        scheduler = reference.scheduler
        scheduler.set_timesteps(STEPS)
        x = torch.randn(1, 4, 8, 8, generator=torch.Generator("cpu").manual_seed(seed)) * scheduler.init_noise_sigma
        for step, timestep in enumerate(scheduler.timesteps, 1):
            negative, prompts = guide(step)
            away = reference.unet(x, timestep, encoded(negative)).sample
            output = away.clone()
            for prompt, weight in prompts:
                output += weight * SCALE * (reference.unet(x, timestep, encoded(prompt)).sample - away)
            x = scheduler.step(output, timestep, x).prev_sample
        pixels = reference.vae.decode(x / reference.vae.config.scaling_factor).sample
        return ((pixels[0] / 2 + 0.5).clamp(0, 1) * 255).round().permute(1, 2, 0).numpy()

    return draw


def draw(pipe: Pipeline, prompt: Any = "a red cat", **settings: Any) -> Any:
    given: Any = {"seed": 5, "steps": STEPS, "guidance_scale": SCALE, "sampler": "ddim", "progress": False}
    return pipe(prompt, **{**given, **settings})


def difference(one: Any, other: Any) -> int:
    return int(np.abs(np.asarray(one, dtype=int) - np.asarray(other, dtype=int)).max())


LONG = "a red cat and a blue dog and a pirate ship at sea"
GUIDES: dict[str, tuple[str, str, Callable[[int], Guide]]] = {
    "no signs": ("a red cat", "fog", lambda step: ("fog", [("a red cat", 1)])),
    "another text from a step on": ("[a red cat:a blue dog:0.5]", "", lambda step: ("", [("a red cat" if step < 3 else "a blue dog", 1)])),
    "turns": ("a [red|blue] cat", "", lambda step: ("", [(f"a {'red' if step % 2 else 'blue'} cat", 1)])),
    "a negative prompt that changes": ("a cat", "[dog:3]", lambda step: ("" if step < 4 else "dog", [("a cat", 1)])),
    "AND": ("a red cat AND a blue dog", "fog", lambda step: ("fog", [("a red cat", 1), ("a blue dog", 1)])),
    "AND with weights": ("a cat :0.7 AND a dog :-0.4 AND sea", "", lambda step: ("", [("a cat", 0.7), ("a dog", -0.4), ("sea", 1)])),
    "AND that changes": ("[a cat:2] AND [sea|fog] :0.5", "", lambda step: ("", [("a cat" if step > 2 else "", 1), ("sea" if step % 2 else "fog", 0.5)])),
    "a long prompt": (LONG, "fog", lambda step: ("fog", [(LONG, 1)])),
    "a long negative prompt": ("a red cat", f"{LONG} {LONG}", lambda step: (f"{LONG} {LONG}", [("a red cat", 1)])),
}  # fmt: skip


@pytest.mark.parametrize("name", GUIDES)
def test_each_step_is_guided_by_what_the_prompt_says(name: str, pipe: Pipeline, by_hand: Any) -> None:
    prompt, negative, guide = GUIDES[name]
    image = draw(pipe, prompt, negative_prompt=negative)
    assert difference(image, by_hand(guide)) <= 1
    if name != "no signs":
        assert difference(image, by_hand(GUIDES["no signs"][2])) > 1


@pytest.mark.parametrize("sampler", ["pndm", "heun", "dpmpp_2m", "euler_a", "HeunDiscreteScheduler"])
def test_prompts_that_change_draw_with_every_kind_of_sampler(sampler: str, pipe: Pipeline) -> None:
    same = draw(pipe, "[a red cat:a red cat:2]", sampler=sampler)
    assert difference(same, draw(pipe, "a red cat", sampler=sampler)) == 0
    assert difference(same, draw(pipe, "[a red cat:a blue dog:1]", sampler=sampler)) > 0


@pytest.mark.parametrize("speed", ["exact", "balanced", "draft"])
def test_a_batch_of_all_forms_is_the_images_drawn_alone(speed: str, pipe: Pipeline) -> None:
    prompts = [prompt for prompt, _, _ in GUIDES.values()] + ["a {red|blue} cat", "a (red:1.4) cat BREAK at sea"]
    seeds = list(range(20, 20 + len(prompts)))
    together = draw(pipe, prompts, seeds=seeds, seed=None, negative_prompt="[fog|dog]", speed=speed)
    for prompt, seed, image in zip(prompts, seeds, together, strict=True):
        assert difference(image, draw(pipe, prompt, seed=seed, negative_prompt="[fog|dog]", speed=speed)) <= 1, prompt


def test_alternatives_are_recorded_and_chosen_again(pipe: Pipeline, tmp_path: Path) -> None:
    prompt = "a {red|blue} {cat|dog}"
    images = draw(pipe, [prompt], n=12, negative_prompt="{fog|sea}")
    assert len({image.info["parameters"].split("\n")[0] for image in images}) == 4
    for image in images[:3]:
        image.save(tmp_path / "x.png")
        request = read_request(tmp_path / "x.png")
        assert (request.prompt, request.negative_prompt) == (prompt, "{fog|sea}")
        drawn, negative = image.info["parameters"].split("\n")[:2]
        assert difference(draw(pipe, prompt, seed=request.seed, negative_prompt="{fog|sea}"), image) == 0
        words = {"negative_prompt": negative.removeprefix("Negative prompt: ")}
        assert difference(draw(pipe, drawn, seed=request.seed, **words), image) == 0


def test_plain_syntax_draws_signs_as_words(pipe: Pipeline) -> None:
    image = draw(pipe, "(red:1.3) [cat|dog]", prompt_syntax="plain")
    assert difference(image, draw(pipe, "(red:1.3) [cat|dog]")) > 1
    assert difference(image, draw(pipe, r"\(red:1.3\) \[cat\|dog\]")) <= 1
    assert image.info["parameters"].startswith(r"\(red:1.3\) \[cat|dog\]")


def test_a_file_that_does_not_name_its_syntax_was_drawn_without_any(pipe: Pipeline) -> None:
    image = Image.new("RGB", (8, 8))
    made = json.loads(draw(pipe, "a (cat)").info["genpipe"])
    del made["prompt_syntax"]
    image.info["genpipe"] = json.dumps(made)
    assert read_request(image).prompt_syntax == "plain"


@pytest.mark.parametrize(
    ("prompt", "settings", "reason"),
    [
        ("a AND b", {"guidance_scale": 1}, "AND joins prompts by guidance"),
        ("a (cat:1e9)", {}, "the weight '1e9'"),
        (" AND ".join("abcdefghijklmnopqrst"), {}, "AND joins more than 16 prompts"),
        ("[a|b]" * 5000, {}, "cannot change over the steps"),
    ],
)
def test_what_cannot_be_drawn_is_refused_in_one_line(
    prompt: str, settings: dict[str, Any], reason: str, pipe: Pipeline
) -> None:
    with pytest.raises(ValueError, match=reason) as caught:
        draw(pipe, prompt, **settings)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400

"""LoRAs of requests: a warm pipeline takes and leaves them, and without them it draws the base model's image bit for bit."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from genpipe import Pipeline, render
from genpipe.checkpoints import load_checkpoint
from genpipe.inputs import Lora
from genpipe.lora_tags import named_in
from genpipe.metadata import read_metadata, read_request


@pytest.fixture(scope="module")
def folder(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two LoRAs in kohya's names: "style" of the denoiser, "words" of the text encoder."""
    folder, unet = tmp_path_factory.mktemp("loras"), load_checkpoint(tiny_checkpoint).unet
    generator = torch.Generator("cpu").manual_seed(0)

    def lora(module: str, out: int, inner: int) -> dict[str, torch.Tensor]:
        down, up = (torch.randn(shape, generator=generator) for shape in ((2, inner), (out, 2)))
        return {
            f"{module}.lora_down.weight": down,
            f"{module}.lora_up.weight": up,
            f"{module}.alpha": torch.tensor(1.0),
        }

    width = unet.config.channels[0]
    query = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
    save_file(lora(query, width, width), folder / "style.safetensors")
    save_file(lora("lora_te_text_model_encoder_layers_0_mlp_fc1", 64, 32), folder / "words.safetensors")
    return folder


@pytest.fixture(scope="module")
def pipe(tiny_checkpoint: Path, folder: Path) -> Pipeline:
    return Pipeline.from_pretrained(tiny_checkpoint, device="cpu", dtype="fp32", lora_dir=folder)


def draw(pipe: Pipeline, prompt: str = "a red cat", **given: Any) -> np.ndarray:
    settings: Any = {"seed": 5, "steps": 2, "guidance_scale": 4.0, "progress": False, **given}
    return np.asarray(pipe(prompt, **settings)).astype(int)


@pytest.mark.parametrize("name", ["style", "words"])
def test_a_lora_changes_the_image_and_taken_away_leaves_no_trace(pipe: Pipeline, folder: Path, name: str) -> None:
    base, unet = draw(pipe), pipe.unet
    changed = draw(pipe, loras=[folder / f"{name}.safetensors"])
    assert np.abs(changed - base).max() > 2
    assert (pipe.unet is unet) == (name == "words")  # a network that does not change is not read again
    assert np.array_equal(draw(pipe), base)


def test_images_are_those_of_weights_that_were_changed_before_loading(
    pipe: Pipeline, folder: Path, tiny_checkpoint: Path
) -> None:
    files = [f"{folder / 'style.safetensors'}:0.5", (folder / "words.safetensors", -1.0)]
    fresh = Pipeline.from_pretrained(tiny_checkpoint, device="cpu", dtype="fp32", low_memory=True)
    assert np.array_equal(draw(pipe, loras=files), draw(fresh, loras=files))


@pytest.mark.parametrize("options", [{}, {"dtype": "bf16"}, {"weights": "fp8"}], ids=str)
def test_only_parts_that_change_are_made_anew(folder: Path, tiny_checkpoint: Path, options: dict[str, Any]) -> None:
    given: Any = {"device": "cpu", "dtype": "fp32", **options}
    pipe, fresh = (Pipeline.from_pretrained(tiny_checkpoint, **given) for _ in range(2))
    expected = draw(fresh, loras=[folder / "style.safetensors"])
    base, before = draw(pipe), pipe.unet
    draw(pipe, loras=[f"{folder / 'style.safetensors'}:-2", folder / "words.safetensors"])
    assert np.array_equal(draw(pipe, loras=[folder / "style.safetensors"]), expected)
    after = pipe.unet
    assert np.array_equal(draw(pipe), base)
    old, new = (
        {name: part for name, part in unet.named_modules() if not list(part.children())} for unet in (before, after)
    )
    anew = [name for name in new if new[name] is not old[name]]
    assert anew and all(name.startswith("down.0.transformers.0.blocks.0.") for name in anew)


def test_prompts_name_them_and_files_say_which(pipe: Pipeline, folder: Path, tmp_path: Path) -> None:
    settings: Any = {"seed": 5, "steps": 2, "guidance_scale": 4.0, "progress": False}
    image = pipe("a red <lora:style:0.5> cat", **settings)
    assert np.array_equal(np.asarray(image), draw(pipe, loras=[f"{folder / 'style.safetensors'}:0.5"]))
    image.save(tmp_path / "a.png")
    (recorded,) = read_metadata(tmp_path / "a.png")["loras"]
    assert recorded["strength"] == 0.5 and len(recorded["sha256"]) == 64
    request = read_request(tmp_path / "a.png")
    assert request.prompt == "a red cat" and request.loras[0].strength == 0.5


def test_rows_of_a_manifest_have_their_own(folder: Path, tiny_checkpoint: Path, tmp_path: Path, pipe: Pipeline) -> None:
    rows = [{"prompt": "a red cat"}, {"prompt": "a red cat <lora:style>"}, {"prompt": "a red cat", "loras": "gone:1"}]
    rows[2]["loras"] = str(folder / "words.safetensors")
    given: Any = {"steps": 2, "guidance_scale": 4.0, "seeds": [5], "model": tiny_checkpoint, "dtype": "fp32"}
    list(render(rows, out=tmp_path / "out", devices="cpu", lora_dir=folder, **given))
    drawn = [json.loads(line) for line in (tmp_path / "out" / "metadata.jsonl").read_text().splitlines()]
    assert [len(row["loras"]) for row in sorted(drawn, key=lambda row: row["line"])] == [0, 1, 1]
    assert len({row["id"] for row in drawn}) == 3


@pytest.mark.parametrize(
    ("prompt", "says"),
    [
        ("a <lora:nowhere>", "is not in .*: it has style, words"),
        ("a <lora:../style>", "without a path"),
        ("a <lora:>", "without a path"),
        ("a <lora:style:much>", "must be a number, or two, of the text encoders and of the U-Net, not 'much'"),
        ("a <lora:style:1:2:3>", "not '1:2:3'"),
        ("a <lora:style:1:1e9>", "must be a number from -100 to 100"),
        ("a <lora:style:nan>", "must be a number from -100 to 100, not nan"),
    ],
)
def test_names_in_prompts_are_names_in_the_folder(folder: Path, prompt: str, says: str) -> None:
    with pytest.raises(ValueError, match=says) as caught:
        named_in(prompt, str(folder))
    assert "\n" not in str(caught.value)


def test_without_a_folder_a_prompt_names_none() -> None:
    assert named_in("a < b > c", None) == ("a < b > c", ())
    with pytest.raises(ValueError, match="say where it is with --lora-dir"):
        named_in("a <lora:style>", None)


@pytest.mark.parametrize("strength", ["1e9", "nan", "-inf", "much", "", "1:1e9"])
def test_a_strength_that_is_none_is_named(folder: Path, strength: str) -> None:
    with pytest.raises(
        ValueError, match=r"the strength of LoRA .*style.safetensors' must be a number from -100 to 100"
    ):
        Lora.of(f"{folder / 'style.safetensors'}:{strength}")


def test_the_text_encoders_may_have_a_strength_of_their_own(pipe: Pipeline, folder: Path, tmp_path: Path) -> None:
    files: Any = [folder / "style.safetensors", folder / "words.safetensors"]
    expected = draw(pipe, loras=[f"{files[0]}:0.5", f"{files[1]}:-1"])
    both = tmp_path / "both.safetensors"
    save_file({**load_file(files[0]), **load_file(files[1])}, both)
    assert np.array_equal(draw(pipe, loras=[f"{both}:-1:0.5"]), expected)
    (named,) = named_in("a <lora:both:-1:0.5>", str(tmp_path))[1]
    assert named == Lora.of(f"{both}:-1:0.5") == Lora.of(named.to_dict()) == Lora.of(str(named))
    assert Lora.of(f"{both}:0.5:0.5") == Lora.of(f"{both}:0.5") != named
    settings: Any = {"seed": 5, "steps": 2, "guidance_scale": 4.0, "progress": False}
    pipe("a red cat", loras=[named], **settings).save(tmp_path / "a.png")
    assert read_request(tmp_path / "a.png").loras == (named,)
    given: Any = {"steps": 1, "seeds": [5], "model": pipe.spec.model, "dtype": "fp32", "out": tmp_path / "out"}
    for drawn in ([True], []):  # the second time it is known from the journal
        done = render([{"prompt": "a red cat", "loras": str(named)}], devices="cpu", **given)
        assert [one.path is not None for one in done] == drawn


@pytest.mark.parametrize("given", [3, "nowhere.safetensors", ("a", "b", "c"), "nowhere.safetensors:1e9"])
def test_what_is_no_lora_is_refused_in_one_line(given: Any) -> None:
    with pytest.raises(ValueError) as caught:
        Lora.of(given)
    assert "\n" not in str(caught.value)


def test_textual_inversions_are_words_of_prompts(tiny_checkpoint: Path, pipe: Pipeline, tmp_path: Path) -> None:
    save_file(
        {"emb_params": torch.randn(2, 32, generator=torch.Generator("cpu").manual_seed(0))},
        tmp_path / "zork.safetensors",
    )
    taught = Pipeline.from_pretrained(tiny_checkpoint, device="cpu", dtype="fp32", embeddings=tmp_path)
    assert np.array_equal(draw(taught), draw(pipe))
    assert np.abs(draw(taught, "a zork cat") - draw(pipe, "a zork cat")).max() > 2

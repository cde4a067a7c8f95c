"""A folder's family follows from its parts, whatever its pipeline is called, and every family is saved and read back."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline

from genpipe.checkpoints import CheckpointError, families, load_checkpoint, save_checkpoint
from genpipe.models.text_encoder import TextEncoderConfig
from genpipe.models.unet_config import UNetConfig
from tests.conftest import tiny_parts, tiny_xl_parts

PARTS = {"sd1": tiny_parts, "sdxl": tiny_xl_parts, "sdxl-refiner": lambda: tiny_xl_parts(refiner=True)}


@pytest.mark.parametrize("name", PARTS)
def test_diffusers_reads_what_is_saved_to_equal_weights(tmp_path: Path, name: str) -> None:
    parts = PARTS[name]()
    save_checkpoint(tmp_path, **parts)
    ours = load_checkpoint(tmp_path)
    theirs: Any = DiffusionPipeline.from_pretrained(tmp_path, safety_checker=None)
    assert ours.family.name == name and type(theirs).__name__ == ours.family.pipeline
    encoders = [getattr(theirs, part) for part in ours.family.text_encoders]
    pairs = zip([*encoders, theirs.unet, theirs.vae], ours.networks.items(), strict=True)
    for their, (part, our) in pairs:
        state = their.state_dict()
        names = ours.stored[part].names
        assert len(state) == len(our.state_dict())
        assert all(torch.equal(tensor, our.state_dict()[names.ours(key) or ""]) for key, tensor in state.items())
    for part, tokenizer in zip(ours.family.tokenizers, ours.tokenizers, strict=True):
        settings = {"padding": "max_length", "truncation": True, "max_length": 16}
        assert getattr(theirs, part)("a red cat", **settings).input_ids == tokenizer(["a red cat"]).ids[0]


@pytest.mark.parametrize("given", [None, True, False])
def test_zeros_for_no_negative_prompt_come_along(tmp_path: Path, given: bool | None) -> None:
    save_checkpoint(tmp_path, **tiny_xl_parts(), zero_empty_negative=given)
    assert load_checkpoint(tmp_path).zero_empty_negative == (given is not False)
    theirs: Any = DiffusionPipeline.from_pretrained(tmp_path)
    assert theirs.config.force_zeros_for_empty_prompt == (given is not False)


@pytest.mark.parametrize(
    ("fixture", "pipeline"),
    [
        ("tiny_checkpoint", "StableDiffusionPAGPipeline"),
        ("tiny_checkpoint", "StableDiffusionPanoramaPipeline"),
        ("tiny_checkpoint", "StableDiffusionPipelineSafe"),
        ("tiny_checkpoint", "LatentConsistencyModelPipeline"),
        ("tiny_checkpoint", "StableDiffusionInpaintPipeline"),
        ("tiny_xl_checkpoint", "StableDiffusionXLImg2ImgPipeline"),
        ("tiny_xl_checkpoint", "StableDiffusionXLInpaintPipeline"),
        ("tiny_xl_checkpoint", "StableDiffusionXLPAGPipeline"),
    ],
)
def test_the_parts_decide_and_not_the_pipelines_name(
    edited_copy: Any, request: pytest.FixtureRequest, fixture: str, pipeline: str
) -> None:
    edited = edited_copy(request.getfixturevalue(fixture))
    edited.edit_json("model_index.json", _class_name=pipeline, image_encoder=["transformers", "CLIPVisionModel"])
    assert load_checkpoint(edited.root).family.name == ("sdxl" if "xl" in fixture else "sd1")


def test_a_refiner_whose_encoder_is_called_the_first_is_a_refiner(
    edited_copy: Any, tiny_refiner_checkpoint: Path
) -> None:
    edited = edited_copy(tiny_refiner_checkpoint)
    for part, kind in (("text_encoder", "CLIPTextModelWithProjection"), ("tokenizer", "CLIPTokenizer")):
        (edited.root / f"{part}_2").rename(edited.root / part)
        edited.edit_json("model_index.json", **{f"{part}_2": [None, None], part: ["transformers", kind]})
    checkpoint = load_checkpoint(edited.root)
    assert checkpoint.family.name == "sdxl-refiner" and list(checkpoint.networks) == ["text_encoder", "unet", "vae"]


@pytest.mark.parametrize("channels", [5, 8, 9])
def test_further_inputs_beside_the_latents_load(tmp_path: Path, channels: int) -> None:
    parts = tiny_parts()
    parts["unet"] = type(parts["unet"])(replace(parts["unet"].config, in_channels=channels))
    save_checkpoint(tmp_path, **parts)
    assert load_checkpoint(tmp_path).unet.config.in_channels == channels


@pytest.mark.parametrize("name", PARTS)
def test_networks_are_read_again_one_by_one(tmp_path: Path, name: str) -> None:
    save_checkpoint(tmp_path, **PARTS[name]())
    checkpoint = load_checkpoint(tmp_path)
    for network in checkpoint.networks.values():
        again = checkpoint.read_again(network)
        assert again is not network and again.state_dict().keys() == network.state_dict().keys()
        assert all(torch.equal(again.state_dict()[key], tensor) for key, tensor in network.state_dict().items())


TEXT = TextEncoderConfig(hidden_size=768)
BIG = TextEncoderConfig(hidden_size=1280, num_attention_heads=20, projection_dim=1280)
XL = UNetConfig(context_channels=2048, added_time_channels=256, added_channels=2816)


@pytest.mark.parametrize(
    ("unet", "texts", "expected"),
    [
        (UNetConfig(), [TEXT], "sd1"),
        (UNetConfig(context_channels=1024), [TextEncoderConfig(hidden_size=1024, num_attention_heads=16)], "sd2"),
        (XL, [TEXT, BIG], "sdxl"),
        (replace(XL, context_channels=1280, added_channels=2560), [BIG], "sdxl-refiner"),
    ],
)
def test_the_published_shapes_are_their_families(unet: UNetConfig, texts: list[Any], expected: str) -> None:
    assert families.family_of(unet, texts).name == expected


@pytest.mark.parametrize(
    ("unet", "texts", "message"),
    [
        (UNetConfig(), [BIG], "vectors of 768 where the text encoder gives 1280"),
        (UNetConfig(), [TEXT, BIG], "vectors of 768 where the 2 text encoders together give 2048"),
        (UNetConfig(context_channels=2048), [TEXT, BIG], "takes no pooled text"),
        (XL, [TEXT, replace(BIG, projection_dim=None)], "does not project"),
        (replace(XL, added_channels=2560), [TEXT, BIG], r"takes 2560 numbers .*, where 2816 are given"),
    ],
)
def test_shapes_that_do_not_fit_are_named(unet: UNetConfig, texts: list[Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        families.family_of(unet, texts)


def test_parts_that_do_not_fit_are_not_saved(tmp_path: Path) -> None:
    parts = {**tiny_xl_parts(), "unet": tiny_parts()["unet"]}
    with pytest.raises(ValueError, match="vectors of 32 where the 2 text encoders together give 80"):
        save_checkpoint(tmp_path / "new", **parts)
    assert not list(tmp_path.iterdir())


def test_a_missing_second_tokenizer_is_named(edited_copy: Any, tiny_xl_checkpoint: Path) -> None:
    edited = edited_copy(tiny_xl_checkpoint)
    for path in (edited.root / "tokenizer_2").iterdir():
        path.unlink()
    with pytest.raises(CheckpointError, match=r"lacks the tokenizer's files in tokenizer_2/"):
        load_checkpoint(edited.root)

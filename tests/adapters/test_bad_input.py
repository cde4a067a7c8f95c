"""What cannot be drawn is refused in one line that says why, and code of others never runs unasked."""

import json
import shutil
import warnings
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from genpipe.adapters.classes import missing_packages, pip_line
from genpipe.checkpoints.errors import CheckpointError
from genpipe.cli import main
from genpipe.models.finite import NonFiniteError
from genpipe.pipeline import Pipeline
from genpipe.pipeline.wrapped import WrappedDrawer
from tests.adapters.conftest import family_named
from tests.adapters.tiny import Family, seeded

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
Load = Callable[[Family], Pipeline]
Save = Callable[[Family], Path]


def index(folder: Path, **content: Any) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "model_index.json").write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize(
    ("name", "version", "message"),
    [
        ("Flux9Pipeline", "99.1.0", r"a Flux9Pipeline, .* diffusers [\d.]+ does not have: .* pip install -U 'diffusers>=99.1.0'"),
        ("Flux9Pipeline", "0.1.0", r"which the installed diffusers [\d.]+ does not have$"),
        ("WanPipeline", None, "makes videos"),
        ("CogVideoXPipeline", None, "makes videos"),
        ("AnimateDiffPipeline", None, "makes videos"),
        ("AudioLDM2Pipeline", None, "makes sound"),
        ("StableAudioPipeline", None, "makes sound"),
        ("ShapEPipeline", None, "makes shapes"),
        ("DDPMPipeline", None, "takes no prompt"),
        ("KandinskyV22ControlnetPipeline", None, "cannot draw without image_embeds, negative_image_embeds, hint"),
        ("StableDiffusionAttendAndExcitePipeline", None, "cannot draw without token_indices"),
    ],
)  # fmt: skip
def test_a_pipeline_that_cannot_be_drawn_is_refused_by_name(
    name: str, version: str | None, message: str, tmp_path: Path
):
    folder = index(tmp_path / "m", _class_name=name, _diffusers_version=version, other=["diffusers", "Other"])
    with pytest.raises(CheckpointError, match=message) as raised:
        Pipeline.from_pretrained(folder, device="cpu")
    assert "\n" not in str(raised.value) and str(folder) in str(raised.value)


@pytest.mark.skipif(find_spec("sentencepiece") is not None, reason="sentencepiece is installed")
def test_a_package_that_is_missing_is_named_with_the_line_that_installs_it(tmp_path: Path):
    folder = index(tmp_path / "m", _class_name="KolorsPipeline", other=["diffusers", "Other"])
    with pytest.raises(CheckpointError, match=r"needs sentencepiece: pip install sentencepiece"):
        Pipeline.from_pretrained(folder, device="cpu")


def test_the_packages_of_a_stand_in_are_looked_up():
    class StandIn:
        _backends = ["torch", "a_package_that_is_not_there"]  # noqa: RUF012 - as diffusers has it

    assert missing_packages(StandIn) == ["a_package_that_is_not_there"]
    StandIn._backends = ["torch", "opencv"]
    assert missing_packages(StandIn) == (["cv2"] if find_spec("cv2") is None else [])
    assert pip_line(["cv2", "ftfy"]) == "pip install opencv-python ftfy"


@pytest.fixture
def copied(folder_of: Save, tmp_path: Path) -> Path:
    """A folder of Stable Diffusion 3 that a test may change."""
    return Path(shutil.copytree(folder_of(family_named("Stable Diffusion 3")), tmp_path / "copied"))


CODE = """
from pathlib import Path
from diffusers import StableDiffusion3Pipeline

Path({mark!r}).touch()


class Mine(StableDiffusion3Pipeline):
    pass
"""


def test_a_pipeline_of_the_repositorys_own_runs_only_where_it_is_trusted(copied: Path, tmp_path: Path):
    mark = tmp_path / "it ran"
    (copied / "pipeline.py").write_text(CODE.format(mark=str(mark)))
    said = json.loads((copied / "model_index.json").read_text())
    index(copied, **{**said, "_class_name": ["pipeline", "Mine"]})
    with pytest.raises(CheckpointError, match=r"code of its own \(pipeline.py\).*--trust-remote-code"):
        Pipeline.from_pretrained(copied, device="cpu")
    assert not mark.exists()
    trusted = Pipeline.from_pretrained(copied, device="cpu", dtype="fp32", trust_remote_code=True)
    assert mark.exists() and trusted("a red cat", seed=1, steps=2, progress=False).size == (32, 32)


def test_a_part_of_the_repositorys_own_does_not_run_either(copied: Path, tmp_path: Path):
    mark = tmp_path / "it ran"
    (copied / "transformer" / "mine.py").write_text(CODE.format(mark=str(mark)))
    said = json.loads((copied / "model_index.json").read_text())
    index(copied, **{**said, "transformer": ["mine", "Mine"]})
    with pytest.raises(CheckpointError, match=r"code of its own \(transformer/mine.py\)"):
        Pipeline.from_pretrained(copied, device="cpu")
    assert not mark.exists()


def test_a_part_of_another_library_is_refused(copied: Path):
    said = json.loads((copied / "model_index.json").read_text())
    index(copied, **{**said, "transformer": ["antigravity", "Mine"]})
    with pytest.raises(CheckpointError, match="transformer is a Mine of 'antigravity'"):
        Pipeline.from_pretrained(copied, device="cpu")


def test_weights_in_pickles_are_read_only_where_that_is_allowed(copied: Path):
    for file in (copied / "text_encoder").glob("*.safetensors"):
        torch.save(load_file(file), file.with_name("pytorch_model.bin"))
        file.unlink()
    with pytest.raises(CheckpointError, match=r"text_encoder in pickle files alone.*--allow-pickle"):
        Pipeline.from_pretrained(copied, device="cpu")
    allowed = Pipeline.from_pretrained(copied, device="cpu", dtype="fp32", allow_pickle=True)
    assert allowed("a red cat", seed=1, steps=2, progress=False).size == (32, 32)


@pytest.mark.parametrize(("option", "value"), [("int8", True), ("refiner", "x"), ("vae_tiling", "on"), ("vae", "x")])
def test_an_option_that_diffusers_does_not_take_is_named(option: str, value: Any, folder_of: Save):
    with pytest.raises(ValueError, match=f"StableDiffusion3Pipeline is drawn by diffusers, which takes no {option}"):
        Pipeline.from_pretrained(folder_of(family_named("Stable Diffusion 3")), device="cpu", **{option: value})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sampler": "ddim"}, "sampler is not for this model"),
        ({"upscale": 2}, "upscale is not for this model"),
        ({"tile": True}, "tile is not for this model"),
        ({"vary": 0.5}, "vary is not for this model"),
        ({"guidance_rescale": 0.5}, "guidance_rescale is not for this model"),
        ({"prompt_syntax": "a1111"}, "prompt_syntax is not for this model"),
        ({"height": 33}, "height must be a multiple of 2"),
        ({"arguments": "max_sequence_lengths=3"}, "takes no 'max_sequence_lengths': it takes .*max_sequence_length"),
        ({"arguments": {"max_sequence_length": "x"}}, "max_sequence_length must be a number, not 'x'"),
        ({"arguments": {"max_sequence_length": 10**6}}, "max_sequence_length"),  # the pipeline's own word
        ({"arguments": "height"}, "arguments must be NAME=VALUE"),
        ({"arguments": {"latents": 1}}, "takes no 'latents'"),
    ],
)
def test_a_setting_that_the_model_cannot_honour_is_an_error(settings: dict[str, Any], message: str, loaded: Load):
    given: Any = {"steps": 2, "progress": False, **settings}
    with pytest.raises(ValueError, match=message):
        loaded(family_named("Stable Diffusion 3"))("a red cat", seed=1, **given)


@pytest.mark.parametrize(
    ("name", "more", "scale"),
    [("FLUX.1 schnell", {}, "true_cfg_scale"), ("Stable Diffusion 3", {"guidance_scale": 1.0}, "guidance_scale")],
)
def test_a_negative_prompt_that_does_nothing_is_told(name: str, more: dict[str, Any], scale: str, loaded: Load):
    family = family_named(name)
    given: Any = {**family.settings, **more, "negative_prompt": "blue", "progress": False}
    with pytest.warns(UserWarning, match=f"negative_prompt has no effect with this {scale}"):
        loaded(family)("a red cat", seed=1, **given)


def test_a_size_is_refused_by_a_model_that_has_but_one(loaded: Load):
    with pytest.raises(ValueError, match=r"height is not for this model.*it draws 32 alone"):
        loaded(family_named("unCLIP"))("a red cat", seed=1, height=64, progress=False)


def test_a_size_that_is_not_on_the_models_list_is_refused_before_it_is_drawn(loaded: Load):
    pipeline = loaded(family_named("Kandinsky 5"))
    (request,) = pipeline.requests("a red cat", seed=1, height=64, width=64)
    with pytest.raises(ValueError, match=r"this model draws 1408x640, .*1024x1024.* alone, not 64x64: ask for one"):
        next(iter(pipeline.stream([request])))


def test_a_size_that_the_model_rounds_is_refused(loaded: Load):
    family = family_named("Kandinsky 3")
    given: Any = {**family.settings, "height": 72, "width": 72}
    with pytest.raises(ValueError, match="this model draws 128x128 where 72x72 was asked for"):
        loaded(family)("a red cat", seed=1, progress=False, **given)


def test_a_single_step_that_a_prior_cannot_share_out_is_refused(loaded: Load):
    given: Any = {**family_named("Kandinsky 2.2").settings, "arguments": {"prior_num_inference_steps": 1}}
    with pytest.raises(ValueError, match="cannot draw with prior_num_inference_steps 1: give 2 or more"):
        loaded(family_named("Kandinsky 2.2"))("a red cat", seed=1, progress=False, **given)


def test_numbers_that_are_not_finite_are_an_error(copied: Path):
    pipeline = Pipeline.from_pretrained(copied, device="cpu", dtype="fp32")
    assert isinstance(pipeline.drawer, WrappedDrawer)
    with torch.no_grad():
        pipeline.drawer.adapted.pipe.vae.decoder.conv_out.bias.fill_(torch.nan)
    with pytest.raises(NonFiniteError, match="gave values that are not finite"):
        pipeline("a red cat", seed=1, steps=2, progress=False)


def test_an_image_that_the_safety_checker_blacks_out_is_reported(folder_of: Save):
    stable_diffusion: Any = import_module("diffusers.pipelines.stable_diffusion")
    from transformers import CLIPConfig, CLIPTextConfig, CLIPVisionConfig

    from tests.adapters.tiny import clip_images

    family = family_named("HunyuanDiT")
    vision: Any = {
        "hidden_size": 32,
        "image_size": 32,
        "intermediate_size": 37,
        "patch_size": 16,
        "num_hidden_layers": 1,
    }
    config = CLIPConfig(
        text_config=CLIPTextConfig(hidden_size=32, num_hidden_layers=1).to_dict(),
        vision_config=CLIPVisionConfig(**vision, num_attention_heads=4).to_dict(),
        projection_dim=16,
    )
    pipeline = Pipeline.from_pretrained(folder_of(family), device="cpu", dtype="fp32")
    assert isinstance(pipeline.drawer, WrappedDrawer)
    checker = seeded(lambda: stable_diffusion.StableDiffusionSafetyChecker(config))
    checker.concept_embeds_weights.data.fill_(-9.0)  # nothing is as safe as that
    pipeline.drawer.adapted.pipe.register_modules(safety_checker=checker, feature_extractor=clip_images())
    with pytest.warns(UserWarning, match=r"safety checker of .* has blacked out the image of seed 4"):
        image = pipeline("a red cat", seed=4, progress=False, **family.settings)
    assert np.asarray(image).max() == 0


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"_class_name": "Flux9Pipeline", "_diffusers_version": "99.1.0"}, "pip install -U 'diffusers>=99.1.0'"),
        ({"_class_name": "WanPipeline"}, "makes videos"),
        ({"_class_name": "StableAudioPipeline"}, "makes sound"),
        ({"_class_name": ["pipeline", "Mine"]}, "--trust-remote-code"),
    ],
)
def test_the_command_ends_in_one_line(
    content: dict[str, Any], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    folder = index(tmp_path / "m", **content, other=["diffusers", "Other"])
    assert main(["a red cat", "-m", str(folder), "--device", "cpu", "-o", str(tmp_path / "x.png")]) == 2
    said = capsys.readouterr().err.strip()
    assert message in said and "\n" not in said and not (tmp_path / "x.png").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--height", "33"], "height must be a multiple of 2"),
        (["--steps", "0"], "steps must be"),
        (["--sampler", "ddim"], "sampler is not for this model"),
        (["--speed", "quick"], "speed"),
        (["--argument", "max_sequence_length=x"], "max_sequence_length must be a number"),
        (["--offload", "model"], "the device is a CPU"),
        (["--weights", "nf4"], "the device is cpu"),
        (["--compile"], "compile is for CUDA alone"),
        (["--base", "x"], "base is for a model in a single file"),
    ],
)
def test_a_setting_out_of_range_ends_the_command_in_one_line(
    options: list[str], message: str, folder_of: Save, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    model = ["-m", str(folder_of(family_named("Stable Diffusion 3"))), "--device", "cpu", "--dtype", "fp32"]
    assert main(["a red cat", *model, "-s", "1", *options, "-o", str(tmp_path / "x.png")]) == 2
    said = capsys.readouterr().err.strip()
    assert message in said and "\n" not in said and not (tmp_path / "x.png").exists()


def test_what_diffusers_will_drop_one_day_is_not_told(
    folder_of: Save, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    model = ["-m", str(folder_of(family_named("Kandinsky 2.2"))), "--device", "cpu", "--dtype", "fp32"]
    given = ["--steps", "2", "--argument", "prior_num_inference_steps=2", "--height", "32", "--width", "32"]
    with warnings.catch_warnings():
        warnings.simplefilter("default", FutureWarning)
        assert main(["a red cat", *model, *given, "-o", str(tmp_path / "x.png")]) == 0
    assert "deprecated" not in capsys.readouterr().err

"""Every setting and every loading option reaches the commands, manifests, files, replay and identity; none is dropped."""

import csv
import dataclasses
import json
import typing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from genpipe import Pipeline
from genpipe.checkpoints.saving import save_checkpoint
from genpipe.cli.options import given_fields
from genpipe.cli.parser import parse
from genpipe.fields import Choice, Flag, Number, Pair, Sides, Text, Whole, defaults_of, settings_of
from genpipe.metadata import annotate, read_metadata, split_metadata
from genpipe.pipeline.draw_options import DrawOptions
from genpipe.pipeline.generate import GenerateOptions
from genpipe.render.options import Options, RenderOptions
from genpipe.render.rows import read_rows
from genpipe.request import SETTINGS, SHARED, Request
from genpipe.settings import Settings
from genpipe.spec import ModelOptions, ModelSpec
from tests.conftest import tiny_parts
from tests.render.conftest import MODEL, Inline

IMAGE_FILE = str(Path(__file__).parents[1] / ".assets" / "examples.png")
# A value of each setting that is not its default, as a command or a table says it.
TEXTS = {
    "steps": "3",
    "guidance_scale": "2.5",
    "height": "64",
    "width": "96",
    "negative_prompt": "fog",
    "prompt_syntax": "plain",
    "guidance_rescale": "0.25",
    "sampler": "euler_a",
    "clip_skip": "1",
    "speed": "draft",
    "original_size": "640x480",
    "crop": "8x16",
    "target_size": "320x240",
    "refiner_start": "0.7",
    "image": IMAGE_FILE,
    "strength": "0.5",
    "mask": IMAGE_FILE,
    "mask_blur": "2",
    "only_masked": "16",
    "outpaint": "left=8,bottom=16",
    "image_guidance_scale": "1.25",
    "depth": IMAGE_FILE,
    "control": f"{IMAGE_FILE}:tile:0.5:0.25:0.75",
    "guess": "true",
    "reference": IMAGE_FILE,
    "ip_scale": "0.9",
    "vary": "0.25",
    "vary_seed": "7",
    "upscale": "2",
    "upscale_strength": "0.5",
    "upscale_guidance_scale": "2",
    "upscale_by": "latents",
    "tile": "true",
    "loras": f"{IMAGE_FILE}:0.5",
    "arguments": "true_cfg_scale=4,flag=true",
}
MODEL_TEXTS = {
    "model": "somewhere",
    "model_dir": "models",
    "revision": "main",
    "variant": "fp16",
    "file": "model.safetensors",
    "base": "flux",
    "vae": "vae.safetensors",
    "text_encoder": "clip.safetensors",
    "tiny_vae": "taesd",
    "device": "cpu",
    "dtype": "fp32",
    "low_memory": None,
    "compile": None,
    "int8": None,
    "fp8": None,
    "weights": "fp8",
    "refiner": "refiner",
    "control_model": "canny.safetensors",
    "ip_adapter": "ip.safetensors",
    "image_encoder": "clip",
    "embeddings": "embeddings",
    "lora_dir": "loras",
    "allow_pickle": None,
    "offload": "model",
    "trust_remote_code": None,
    "vae_tiling": "off",
}


def value_of(kind: type, name: str, text: str | None) -> Any:
    described = settings_of(kind)[name].kind
    return True if text is None else described.check(name, described.read(name, text))


def options(texts: dict[str, Any]) -> list[str]:
    given = []
    for name, text in texts.items():
        given += [f"--{name.replace('_', '-')}", *([] if text in (None, "true") else [text])]
    return given


def test_the_tables_here_name_every_field() -> None:
    assert set(TEXTS) == set(SETTINGS) and set(MODEL_TEXTS) == set(settings_of(ModelSpec))


@pytest.mark.parametrize(
    ("typed", "kinds"),
    [
        (Settings, [(Request, set(SETTINGS))]),
        (ModelOptions, [(ModelSpec, set(settings_of(ModelSpec)) - {"model"})]),
        (DrawOptions, [(Request, set(SETTINGS))]),
        (GenerateOptions, [(Request, set(SETTINGS)), (ModelSpec, set(settings_of(ModelSpec)) - {"model"})]),
        (RenderOptions, [(Request, set(SETTINGS)), (ModelSpec, set(settings_of(ModelSpec)) - {"device"})]),
    ],
)
def test_keyword_arguments_have_every_field(typed: Any, kinds: list[tuple[type, set[str]]]) -> None:
    keys = set(typing.get_type_hints(typed, localns={"torch": torch, "Path": Path, "Scorer": object, "Image": Image}))
    for kind, wanted in kinds:
        assert wanted <= keys
        assert set(settings_of(kind)) & keys >= wanted
    own = {field.name for field in dataclasses.fields(Options)} - {"spec", "settings"}
    assert typed is not RenderOptions or keys == own | set(SETTINGS) | (set(settings_of(ModelSpec)) - {"device"})


@pytest.mark.parametrize("command", [["generate", "a"], ["render", "rows.txt"]])
def test_commands_take_every_field(command: list[str]) -> None:
    texts = {name: text for name, text in MODEL_TEXTS.items() if command[0] == "generate" or name != "device"}
    args = parse([*command, *options(TEXTS), *options(texts)])
    settings, model = given_fields(args, Request), given_fields(args, ModelSpec)
    assert {name: settings[name] for name in TEXTS} == {n: value_of(Request, n, text) for n, text in TEXTS.items()}
    assert model == {name: value_of(ModelSpec, name, text) for name, text in texts.items()}


@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
def test_rows_of_a_manifest_take_every_setting(tmp_path: Path, suffix: str) -> None:
    wanted = {name: value_of(Request, name, text) for name, text in TEXTS.items()}
    path = tmp_path / f"rows{suffix}"
    if suffix == ".csv":
        row = ["a", *("true" if text is None else text for text in TEXTS.values())]
        with path.open("w", newline="") as file:
            csv.writer(file).writerows([["prompt", *TEXTS], row])
    else:
        path.write_text(
            json.dumps(
                {
                    "prompt": "a",
                    **wanted,
                    **{name: TEXTS[name] for name in ("image", "mask", "depth", "control", "reference")},
                    "loras": [TEXTS["loras"]],
                }
            )
            + "\n"
        )
    (row,) = read_rows(path)
    assert not row.error
    assert {n: settings_of(Request)[n].kind.check(n, row.fields[n]) for n in TEXTS} == wanted


def test_files_say_every_field_and_give_it_back(tmp_path: Path) -> None:
    request = Request("a", seed=7, **{name: value_of(Request, name, text) for name, text in TEXTS.items()})
    spec = ModelSpec(**{name: value_of(ModelSpec, name, text) for name, text in MODEL_TEXTS.items()})
    image = Image.new("RGB", (4, 4))
    annotate(image, request, {"model": spec.model, "dtype": spec.dtype, **spec.drawn_by()})
    again, loaded = split_metadata(json.loads(image.info["genpipe"]))
    assert again == request
    unrecorded = {name for name, described in settings_of(ModelSpec).items() if not described.draws}
    assert unrecorded == {
        "model_dir",
        "device",
        "compile",
        "low_memory",
        "lora_dir",
        "allow_pickle",
        "offload",
        "trust_remote_code",
    }  # images do not depend on them
    assert loaded == dataclasses.replace(spec, **{name: defaults_of(ModelSpec)[name] for name in unrecorded})


def test_every_field_tells_requests_apart() -> None:
    base = Request("a", seed=1, steps=2, guidance_scale=3.0, height=8, width=8)
    begun = dataclasses.replace(base, image=value_of(Request, "image", IMAGE_FILE))
    others = {
        dataclasses.replace(begun if name == "mask" else base, **{name: value_of(Request, name, text)})
        for name, text in {**TEXTS, "prompt": "b", "seed": "2"}.items()
    }
    assert len(others | {base, begun}) == len(TEXTS) + 3  # `begun` is one of them


def test_what_a_batch_shares_is_part_of_its_key() -> None:
    base = Request("a", seed=1, steps=2, guidance_scale=3.0, height=8, width=8)
    image = value_of(Request, "image", IMAGE_FILE)
    for name in SETTINGS:
        begun = dataclasses.replace(base, image=image) if name == "mask" else base
        other = dataclasses.replace(begun, **{name: value_of(Request, name, TEXTS[name])})
        # Whether there are images to begin from is shared, and not which.
        shared = (*SHARED, "image", "mask", "depth", "control", "reference")
        assert (other.batch_key() != begun.batch_key()) == (name in shared), name


def test_every_field_that_images_depend_on_changes_their_ids(tmp_path: Path) -> None:
    def ids(**values: Any) -> set[str]:
        class Plan(Inline):
            def open(self, job: Any) -> Any:
                takes = SETTINGS if "arguments" in values else None  # they are for models that diffusers draws
                traits = dataclasses.replace(MODEL.traits, controls=1, refers=True, takes=takes)
                return dataclasses.replace(MODEL, traits=traits)

        from genpipe.render.run import Run

        run = Run(["a"], tmp_path / str(len(list(tmp_path.iterdir()))), Options.of(**values), engine=Plan())
        with run.planned() as (journal, _):
            return {entry.id.hex() for entry in journal.entries()}

    base = ids()
    image = {"image": value_of(Request, "image", IMAGE_FILE), "height": 64, "width": 64}
    for name, text in TEXTS.items():
        given, other = (image, ids(**image)) if name == "mask" else ({}, base)
        assert ids(**given, **{name: value_of(Request, name, text)}) != other, name
    for name, described in settings_of(ModelSpec).items():
        if name in ("model", "dtype", "device"):
            continue  # by fingerprint, and by what the worker says
        changed = ids(**{name: value_of(ModelSpec, name, MODEL_TEXTS[name])}) != base
        assert changed == described.draws, name


def test_an_image_is_drawn_again_from_its_file(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "model", **tiny_parts())
    pipe = Pipeline.from_pretrained(tmp_path / "model", device="cpu", dtype="fp32", vae_tiling="off")
    image = pipe("a", seed=3, steps=2, sampler="euler_a", speed="balanced", clip_skip=1, progress=False)
    image.save(tmp_path / "a.png")
    request, spec = split_metadata(read_metadata(tmp_path / "a.png"))
    again = Pipeline.from_pretrained(dataclasses.replace(spec, device="cpu"))
    settings: Any = {name: value for name, value in request.to_dict().items() if name != "prompt"}
    assert np.array_equal(np.asarray(again(request.prompt, progress=False, **settings)), np.asarray(image))


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        (Whole(1, 9, "try 3"), {"3": 3, "7.0": 7}, ["0", "x", "1.5", "1e3", ""]),
        (Number(2.0, "try 1"), {"0.5": 0.5, "2": 2.0}, ["nan", "-1", "3", "x"]),
        (
            Sides(9, "as in left=3"),
            {"left=3,bottom=2": (3, 0, 0, 2), "top=1": (0, 1, 0, 0)},
            ["3", "left", "up=3", "left=0", ""],
        ),
        (Pair(0, 9, "write 1x2"), {"3x4": (4, 3)}, ["3", "3x10", "axb"]),
        (Choice(("a", "b"), {"c": "a"}), {"a": "a", "c": "a"}, ["d", ""]),
        (Flag(), {"true": True, "0": False}, ["maybe"]),
        (Text(), {"": "", "x": "x"}, []),
    ],
)
def test_kinds_read_texts_and_refuse_others_in_one_line(kind: Any, good: dict[str, Any], bad: list[str]) -> None:
    for text, value in good.items():
        assert kind.check("it", kind.read("it", text)) == value
        assert kind.check("it", kind.read("it", kind.write(value))) == value
    for text in bad:
        with pytest.raises(ValueError, match=r"^it must") as caught:
            kind.check("it", kind.read("it", text))
        assert "\n" not in str(caught.value)

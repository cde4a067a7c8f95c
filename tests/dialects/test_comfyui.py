"""ComfyUI's graphs: what is read of them, and what is said not to be."""

import json
from typing import Any

import pytest

from genpipe.dialects.comfyui import parse_graph
from genpipe.dialects.parameters import Parameters


def node(kind: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": kind, "inputs": inputs}


def graph(**nodes: Any) -> dict[str, Any]:
    """The usual graph: a checkpoint, two prompts, an empty latent, a sampler; with other nodes, by name."""
    usual = {
        "sampler": node("KSampler", seed=5, steps=20, cfg=8, sampler_name="euler", scheduler="normal", denoise=1.0,
                        model=["model", 0], positive=["yes", 0], negative=["no", 0], latent_image=["latent", 0]),
        "model": node("CheckpointLoaderSimple", ckpt_name="v1-5.safetensors"),
        "latent": node("EmptyLatentImage", width=512, height=768, batch_size=1),
        "yes": node("CLIPTextEncode", text="a red cat", clip=["model", 1]),
        "no": node("CLIPTextEncode", text="fog", clip=["model", 1]),
        "decode": node("VAEDecode", samples=["sampler", 0], vae=["model", 2]),
        "save": node("SaveImage", images=["decode", 0], filename_prefix="x"),
    }  # fmt: skip
    return {**usual, **nodes}


def changed(name: str, **inputs: Any) -> dict[str, Any]:
    """The usual graph with other inputs of one of its nodes."""
    found = graph()
    found[name]["inputs"] |= inputs
    return found


def read(found: Any) -> Parameters:
    parameters = parse_graph(json.dumps(found))
    assert parameters is not None
    return parameters


USUAL = {"prompt": "a red cat", "negative_prompt": "fog", "seed": 5, "steps": 20, "guidance_scale": 8.0,
         "width": 512, "height": 768, "sampler": "euler"}  # fmt: skip


def test_the_usual_graph_is_read_whole() -> None:
    assert read(graph()) == Parameters(USUAL, "v1-5.safetensors", {})


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        (("euler_ancestral", "karras"), None),  # no such combination here
        (("euler_ancestral", "normal"), "euler_a"),
        (("dpmpp_2m", "karras"), "dpmpp_2m_karras"),
        (("dpmpp_2m_sde_gpu", "exponential"), "dpmpp_2m_sde_exponential"),
        (("dpm_2_ancestral", "normal"), "dpm2_a"),
        (("uni_pc", "normal"), "unipc"),
        (("ddim", "ddim_uniform"), "ddim"),
        (("euler", "sgm_uniform"), "euler_trailing"),
        (("res_multistep", "normal"), None),
    ],
)
def test_samplers_by_their_names_there(theirs: tuple[str, str], ours: str | None) -> None:
    settings, _, unread = read(changed("sampler", sampler_name=theirs[0], scheduler=theirs[1]))
    assert settings.get("sampler") == ours
    assert unread == ({"sampler_name": f"{theirs[0]} with {theirs[1]}"} if ours is None else {})


def test_texts_and_numbers_of_other_nodes_are_followed() -> None:
    found = changed("yes", text=["words", 0])
    found["words"] = node("PrimitiveStringMultiline", value="a blue dog")
    found["sampler"]["inputs"]["seed"] = ["number", 0]
    found["number"] = node("PrimitiveInt", int=99)
    settings, _, unread = read(found)
    assert (settings["prompt"], settings["seed"], unread) == ("a blue dog", 99, {})


@pytest.mark.parametrize(
    ("found", "unread"),
    [
        (
            changed("sampler", model=["lora", 0])
            | {"lora": node("LoraLoader", lora_name="style.safetensors", strength_model=0.8, model=["model", 0])},
            {"LoraLoader": "lora_name style.safetensors, strength_model 0.8"},
        ),
        (changed("latent", batch_size=4), {"batch_size": "4"}),
        (
            changed("sampler", positive=["control", 0])
            | {"control": node("ControlNetApply", conditioning=["yes", 0], strength=1)},
            {"ControlNetApply": "what it does to the prompt"},
        ),
        (graph() | {"loader": node("VAELoader", vae_name="x.pt")}, {"nodes": "VAELoader"}),
        (
            changed("yes", clip=["skip", 0])
            | {"skip": node("CLIPSetLastLayer", stop_at_clip_layer=-2, clip=["model", 1])},
            {"CLIPSetLastLayer": "-2"},
        ),
        (changed("sampler", seed=-1), {"seed": "-1"}),
        (changed("yes", text="a (red:1.3) cat"), {"weights": "ComfyUI applies them without A1111's renormalisation"}),
        (
            changed("sampler", positive=["loop", 0]) | {"loop": node("X", conditioning=["loop", 0])},
            {"X": "; ".join(["what it does to the prompt"] * 50), "prompt": "its nodes are linked in a circle", "nodes": "CLIPTextEncode"},
        ),
    ],
)  # fmt: skip
def test_what_is_not_read_is_named(found: dict[str, Any], unread: dict[str, str]) -> None:
    assert read(found).unread == unread


def test_an_image_to_begin_from_is_named_and_its_strength_taken() -> None:
    found = changed("sampler", denoise=0.6, latent_image=["encode", 0])
    found |= {"encode": node("VAEEncode", pixels=["load", 0]), "load": node("LoadImage", image="photo.png")}
    settings, _, unread = read(found)
    assert settings["strength"] == 0.6 and unread["image"] == "photo.png (give its file with --image)"


def test_graphs_of_several_samplers_say_why_they_are_not_read() -> None:
    settings, _, unread = read(graph() | {"second": graph()["sampler"]})
    assert not settings and unread["graph"].startswith("it has 2 KSamplers, and genpipe reads those of one")


@pytest.mark.parametrize(
    "text",
    ["", "a red cat", "[]", "{}", "3", '{"prompt": "x"}', "[" * 100_000, '{"1": {"class_type": 3, "inputs": {}}}'],
)
def test_other_texts_are_no_graphs(text: str) -> None:
    assert parse_graph(text) is None

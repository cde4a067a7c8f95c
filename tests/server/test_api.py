"""The server's own API, over a real connection."""

import base64
import io
import json
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from genpipe.pipeline import Pipeline
from genpipe.request import SETTINGS, Request
from genpipe.server.app import create_app
from genpipe.server.engine import Engine
from genpipe.server.limits import Limits
from genpipe.spec import ModelSpec
from scripts.benchmark.serving import listening
from tests.pipeline.drawing import difference
from tests.server.conftest import encoded, events, threads

STREAM = {"Accept": "text/event-stream"}
SMALL: dict[str, Any] = {"steps": 2, "guidance_scale": 4.0}


def drawn(pipe: Pipeline, prompt: str, **settings: Any) -> Image.Image:
    return pipe(prompt, progress=False, **settings)


def fetched(url: str, said: dict[str, Any]) -> Image.Image:
    return Image.open(io.BytesIO(httpx.get(url + said["url"]).content))


def test_every_step_is_followed_and_the_files_are_the_pipelines(url: str, pipe: Pipeline) -> None:
    body = {"prompt": "a red cat", "n": 2, "seed": 2**64 - 1, **SMALL}
    with httpx.stream("POST", f"{url}/api/drawings", json=body, headers=STREAM) as response:
        told = events(response)
    names = [name for name, _ in told]
    assert names[0] == "drawing" and names[-1] == "done" and names.count("image") == 2
    for index, seed in enumerate((2**64 - 1, 0)):
        steps = [said for name, said in told if name == "step" and said["image"] == index]
        assert steps[-1]["step"] == steps[-1]["steps"] == 2
        assert Image.open(io.BytesIO(base64.b64decode(steps[-1]["preview"]))).size == (8, 8)
        (said,) = [said for name, said in told if name == "image" and said["image"] == index]
        assert said["seed"] == str(seed)
        assert difference(fetched(url, said), drawn(pipe, "a red cat", seed=seed, **SMALL)) <= 2


def test_a_drawing_is_asked_after_by_its_id_and_followed_later(url: str) -> None:
    answer = httpx.post(f"{url}/api/drawings", json={"prompt": "a", "seed": "7", **SMALL, "format": "webp"})
    assert answer.status_code == 202
    where = url + answer.headers["location"]
    with httpx.stream("GET", f"{where}/events") as response:
        told = events(response)
    state = httpx.get(where).json()
    assert state["done"] and [said for name, said in told if name == "image"] == state["images"]
    assert httpx.get(url + state["images"][0]["url"]).headers["content-type"] == "image/webp"
    assert fetched(url, state["images"][0]).format == "WEBP"
    assert httpx.get(f"{url}/files/{answer.json()['id']}-0.png").status_code == 404
    assert httpx.get(f"{url}/api/drawings/x").json() == {
        "error": "there is no such drawing, or it is no longer kept: ask for it again"
    }


def test_a_drawing_is_cancelled(url: str, engine: Engine) -> None:
    identifier = httpx.post(f"{url}/api/drawings", json={"prompt": "a", "steps": 150, "n": 3, "width": 256}).json()[
        "id"
    ]
    httpx.delete(f"{url}/api/drawings/{identifier}")
    with httpx.stream("GET", f"{url}/api/drawings/{identifier}/events") as response:
        kinds = {said["kind"] for name, said in events(response) if name == "failed"}
    assert kinds == {"cancelled"} and engine.idle


def test_who_stops_listening_has_nothing_drawn(url: str, engine: Engine) -> None:
    with httpx.stream(
        "POST",
        f"{url}/api/drawings",
        json={"prompt": "a", "width": 256, "height": 256, "steps": 150, "n": 8},
        headers=STREAM,
    ) as response:
        lines = response.iter_lines()
        next(lines)
        assert not engine.idle  # `lines` lives: without it httpx hangs up
    assert engine.close(60)  # waits until nothing is left to draw
    counted = engine.metrics.text().decode()
    assert "genpipe_images_total 0.0" in counted and 'genpipe_failures_total{kind="cancelled"} 8.0' in counted


def test_images_and_masks_come_as_data(url: str, pipe: Pipeline) -> None:
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8))
    mask = Image.new("L", (32, 32))
    mask.paste(255, (4, 4, 20, 20))
    body = {
        "prompt": "a",
        "seed": 3,
        "image": f"data:image/png;base64,{encoded(image)}",
        "mask": encoded(mask),
        **SMALL,
    }
    with httpx.stream("POST", f"{url}/api/drawings", json=body, headers=STREAM) as response:
        (said,) = [said for name, said in events(response) if name == "image"]
    assert difference(fetched(url, said), drawn(pipe, "a", seed=3, image=image, mask=mask, **SMALL)) <= 2


def test_every_setting_is_taken_or_refused_by_name(url: str) -> None:
    """The fields of `Request` are the one list; none is dropped in silence."""
    fields = httpx.get(f"{url}/api/settings").json()["fields"]
    described = httpx.get(f"{url}/openapi.json").json()["paths"]["/api/drawings"]["post"]["requestBody"]
    properties = described["content"]["application/json"]["schema"]["properties"]
    assert set(fields) == {"prompt", "seed", *SETTINGS}
    assert set(fields) - set(properties) == {"loras"}  # named in the prompt alone
    for name in (*SETTINGS, "seed"):
        answer = httpx.post(f"{url}/api/drawings", json={"prompt": "a", name: {"x": 1}})
        assert answer.status_code == 400 and name in answer.json()["error"], name


@pytest.mark.parametrize(
    ("body", "error"),
    [
        ({}, "the request has no prompt"),
        ({"prompt": 5}, "prompt must be text, not 5"),
        ({"prompt": "a", "stepz": 5}, "a request has no stepz"),
        ({"prompt": "a", "steps": 151}, "steps may be up to 150 on this server, not 151"),
        ({"prompt": "a", "steps": True}, "steps must be a whole number"),
        ({"prompt": "a", "width": 4096, "height": 4096}, "the pixels of an image may be up to 4194304"),
        (
            {"prompt": "a", "upscale": 4, "width": 1024, "height": 1024},
            "the pixels of an image may be up to 4194304",
        ),
        ({"prompt": "a", "tile": True, "height": 36}, "height must be a multiple of 8"),
        ({"prompt": "a", "height": 33}, "height must be a multiple of 4"),
        ({"prompt": "a", "n": 17}, "n may be up to 16"),
        ({"prompt": "a" * 10_001}, "the characters of the prompt may be up to 10000"),
        ({"prompt": "a", "model": "../../etc/passwd"}, "there is no model '../../etc/passwd' here: there is tiny"),
        ({"prompt": "a", "image": "/etc/passwd"}, "image must be an image's file in base64, not '/etc/passwd'"),
        ({"prompt": "a", "image": "http://localhost/x.png"}, "image must be an image's file in base64"),
        ({"prompt": "a", "image": {"path": "/etc/passwd", "sha256": "0"}}, "image must be an image's file in base64"),
        ({"prompt": "a", "image": "aGVsbG8="}, "is not an image"),
        ({"prompt": "a", "control": [{"image": "/etc/passwd"}]}, "control must be an image's file in base64"),
        ({"prompt": "a", "control": [{"path": "/etc/passwd"}]}, "control must be an image's file in base64, not None"),
        ({"prompt": "a", "loras": ["/etc/passwd"]}, "name LoRAs in the prompt"),
        ({"prompt": "a <lora:../x:1>"}, "names a LoRA, and this server has none"),
        ({"prompt": "a", "guidance_scale": float("nan")}, "guidance_scale must be a number"),
        ({"prompt": "\ud800"}, "prompt must be Unicode text"),
        ({"prompt": "a", "judge": "os:system"}, "a request has no judge"),
        ({"prompt": "a", "sampler": "eulr"}, "unknown sampler 'eulr'"),
        ({"prompt": "a AND b", "guidance_scale": 1}, "AND joins prompts by guidance"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(shared_url: str, body: dict[str, Any], error: str) -> None:
    content = json.dumps({**SMALL, **body})
    answer = httpx.post(f"{shared_url}/v1/images/generations", content=content)
    said = answer.json()["error"]
    assert answer.status_code == 400 and error in said["message"] and "\n" not in said["message"]
    assert said["type"] == "invalid_request_error"


def test_variations_and_second_passes_are_the_librarys(url: str, pipe: Pipeline) -> None:
    body = {"prompt": "a", "seed": 3, "n": 2, "vary": 0.3, "vary_seed": 8, **SMALL}
    with httpx.stream("POST", f"{url}/api/drawings", json=body, headers=STREAM) as response:
        told = [said for name, said in events(response) if name == "image"]
    told.sort(key=lambda said: said["image"])
    settings: Any = {"seed": 3, "n": 2, "vary": 0.3, "vary_seed": 8, "progress": False, **SMALL}
    for said, expected in zip(told, pipe("a", **settings), strict=True):
        assert difference(fetched(url, said), expected) <= 2
    body = {"prompt": "a", "seed": 3, "upscale": 2, **SMALL, "steps": 5}
    with httpx.stream("POST", f"{url}/api/drawings", json=body, headers=STREAM) as response:
        (said,) = [said for name, said in events(response) if name == "image"]
    expected = drawn(pipe, "a", seed=3, upscale=2, **{**SMALL, "steps": 5})
    assert expected.size == (64, 64) and difference(fetched(url, said), expected) <= 2


def test_settings_without_effect_are_told(url: str) -> None:
    body = {"prompt": "a", "guidance_scale": 1, "steps": 1, "negative_prompt": "fog"}
    with httpx.stream("POST", f"{url}/api/drawings", json=body, headers=STREAM) as response:
        (said,) = [said for name, said in events(response) if name == "image"]
    (warning,) = said["warnings"]
    assert warning["text"] == (
        "negative_prompt has no effect at a guidance_scale of 1: raise it above 1, or leave negative_prompt out"
    )
    assert warning["form"].format(**warning["values"]) == warning["text"]


def test_words_that_the_embedded_model_has_not_learned_are_named(url: str, engine: Engine) -> None:
    engine.concepts["tiny"] = ("cat", "dog")
    body = {"prompt": "a red cat and a flurbel", **SMALL}
    with httpx.stream("POST", f"{url}/api/drawings", json=body, headers=STREAM) as response:
        (said,) = [said for name, said in events(response) if name == "image"]
    assert [each["text"] for each in said["warnings"]] == ["the model does not know 'flurbel': it draws the rest"]


def test_every_image_is_told_what_of_its_prompt_is_left_out(url: str) -> None:
    body = {"prompt": "cat " * 40, "prompt_syntax": "plain", "n": 2, **SMALL}
    for _ in range(2):  # the second time its vectors are kept
        with httpx.stream("POST", f"{url}/api/drawings", json=body, headers=STREAM) as response:
            told = [said["warnings"] for name, said in events(response) if name == "image"]
        assert len(told) == 2
        for warnings in told:
            assert [each["form"] for each in warnings] == ["the prompt is cut after {length} tokens, leaving out {cut}"]
            assert warnings[0]["values"]["length"] == 14


def test_what_made_an_image_is_read_from_its_file_and_names_no_other(url: str, pipe: Pipeline) -> None:
    image = drawn(pipe, "a red cat", seed=7, **SMALL)
    settings = httpx.post(f"{url}/api/read", json={"image": encoded(image)}).json()["settings"]
    assert settings["prompt"] == "a red cat" and settings["seed"] == 7 and settings["steps"] == 2
    made = json.loads(image.info["genpipe"])
    image.info["genpipe"] = json.dumps({**made, "image": {"path": "/etc/passwd", "sha256": "0"}})
    again = httpx.post(f"{url}/api/read", json={"image": encoded(image)}).json()["settings"]
    assert again == settings and "image" not in again
    plain = httpx.post(f"{url}/api/read", json={"image": encoded(Image.new("RGB", (4, 4)))})
    assert plain.status_code == 400 and "does not say what made it" in plain.json()["error"]


def test_loras_are_found_in_their_folder_alone(engine: Engine, tmp_path: Any) -> None:
    (tmp_path / "ink.safetensors").write_bytes(b"")
    with listening(create_app(engine, lora_dir=str(tmp_path))) as url:
        for prompt in ("a <lora:ink2>", "a <lora:../ink>"):
            answer = httpx.post(f"{url}/api/drawings", json={"prompt": prompt})
            assert answer.status_code == 400 and str(tmp_path) not in answer.text
        assert [one["name"] for one in httpx.get(f"{url}/sdapi/v1/loras").json()] == ["ink"]


def test_a_full_queue_says_when_to_come_again(pipe: Pipeline, specs: dict[str, ModelSpec]) -> None:
    engine = Engine(specs, devices="cpu", most=1, waiting=2, launch=threads({"tiny": pipe}))
    engine.open()
    assert engine.wait(30)
    with listening(create_app(engine)) as url:
        body = {"prompt": "a", "steps": 150, "n": 2, "width": 256, "height": 256}
        answers = [httpx.post(f"{url}/api/drawings", json=body) for _ in range(3)]
        assert answers[0].status_code == 202 and answers[-1].status_code == 429
        assert 1 <= int(answers[-1].headers["retry-after"]) <= 600
        assert "places are taken" in answers[-1].json()["error"]
        engine.close()
        answer = httpx.post(f"{url}/api/drawings", json={"prompt": "a"})
        assert answer.status_code == 503 and "retry-after" in answer.headers
        assert httpx.get(f"{url}/readyz").status_code == 503 and httpx.get(f"{url}/healthz").status_code == 200


def test_images_that_take_too_long_are_given_up(engine: Engine) -> None:
    with listening(create_app(engine, limits=Limits(seconds=0.3, steps=999))) as url:
        answer = httpx.post(f"{url}/v1/images/generations", json={"prompt": "a", "steps": 900, "n": 8})
        assert answer.status_code == 504 and "it was not done within 0.3 s" in answer.json()["error"]["message"]
        assert (
            "seconds may be up to 0.3 on this server, not 1"
            in httpx.post(f"{url}/api/drawings", json={"prompt": "a", "seconds": 1}).text
        )
    with listening(create_app(engine, limits=Limits(steps=999))) as url:
        own = {"prompt": "a", "steps": 900, "seconds": 0.2}
        answer = httpx.post(f"{url}/v1/images/generations", json=own)
        assert answer.status_code == 504 and "it was not done within 0.2 s" in answer.json()["error"]["message"]


def test_finished_images_are_kept_up_to_a_limit(url: str, engine: Engine) -> None:
    import asyncio

    from genpipe.server.drawings import Drawings
    from genpipe.server.reading import read_asked

    async def run() -> list[bool]:
        drawings = Drawings(engine, kept_bytes=4000)
        made = []
        for seed in range(4):
            asked = read_asked({"prompt": "a", "seed": seed, **SMALL}, engine.models, Limits())
            made.append(drawings.begin(asked, ""))
            await made[-1].wait()
        drawings.begin(read_asked({"prompt": "a", **SMALL}, engine.models, Limits()), "")
        return [drawings.get(one.id) is not None for one in made]

    kept = asyncio.run(run())
    assert not kept[0] and kept[-1] and kept == sorted(kept)


def test_operators_see_what_happens(url: str) -> None:
    httpx.post(f"{url}/v1/images/generations", json={"prompt": "a", **SMALL})
    text = httpx.get(f"{url}/metrics").text
    assert "genpipe_images_total 1.0" in text and "genpipe_steps_total 2.0" in text
    assert httpx.get(f"{url}/readyz").json() == {"status": "ready"}


def test_the_docs_need_no_other_server(url: str) -> None:
    import re

    page = httpx.get(f"{url}/docs").text
    for address in re.findall(r'(?:src|href)="([^"]+)"', page):
        assert address.startswith("/") and httpx.get(url + address).status_code == 200, address


def test_a_request_reads_the_same_wherever_it_comes_from(url: str) -> None:
    """What the API says of a request's defaults is what the library uses."""
    (model,) = httpx.get(f"{url}/api/models").json()
    assert model["name"] == "tiny" and model["multiple_of"] == 4
    assert Request.check_settings(model["defaults"])

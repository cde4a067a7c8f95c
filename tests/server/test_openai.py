"""OpenAI's official client draws with this server."""

import base64
import io
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from genpipe.images import encode_image
from genpipe.pipeline import Pipeline
from tests.pipeline.drawing import difference

openai = pytest.importorskip("openai")
SMALL: dict[str, Any] = {"steps": 3, "guidance_scale": 4.0}


@pytest.fixture
def client(url: str) -> Any:
    return openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)


def opened(text: str | None) -> Image.Image:
    assert text is not None
    return Image.open(io.BytesIO(base64.b64decode(text)))


def png(image: Image.Image) -> bytes:
    return encode_image(image, ".png")


def test_generations(client: Any, pipe: Pipeline) -> None:
    answer = client.images.generate(
        model="tiny", prompt="a red cat", n=2, size="32x64", extra_body={"seed": 5, **SMALL, "negative_prompt": "fog"}
    )
    assert answer.size == "32x64" and answer.output_format == "png" and len(answer.data) == 2
    settings: Any = {"width": 32, "height": 64, "negative_prompt": "fog", "progress": False, **SMALL}
    for ours, theirs in zip(answer.data, pipe("a red cat", n=2, seed=5, **settings), strict=True):
        assert difference(opened(ours.b64_json), theirs) <= 2


def test_addresses_of_kept_files(client: Any) -> None:
    answer = client.images.generate(prompt="a", response_format="url", output_format="webp", extra_body=SMALL)
    assert Image.open(io.BytesIO(httpx.get(answer.data[0].url).content)).format == "WEBP"


@pytest.mark.parametrize("partial", [0, 2])
def test_streams_with_partial_images(client: Any, partial: int) -> None:
    stream = client.images.generate(
        prompt="a", stream=True, partial_images=partial, size="32x32", extra_body={"steps": 6, "guidance_scale": 4.0}
    )
    told = list(stream)
    assert [each.type for each in told] == ["image_generation.partial_image"] * partial + ["image_generation.completed"]
    assert [each.partial_image_index for each in told[:-1]] == list(range(partial))
    assert all(opened(each.b64_json).size == (32, 32) for each in told) and told[-1].usage.total_tokens == 0


def test_edits_change_where_the_mask_is_transparent(client: Any, pipe: Pipeline) -> None:
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8))
    mask = Image.new("RGBA", (32, 32), (0, 0, 0, 255))
    mask.paste((0, 0, 0, 0), (8, 8, 24, 24))
    ours = Image.new("L", (32, 32))
    ours.paste(255, (8, 8, 24, 24))
    answer = client.images.edit(
        image=("a.png", png(image)), mask=("m.png", png(mask)), prompt="a dog", extra_body={"seed": "3", "steps": "3"}
    )
    expected = pipe("a dog", seed=3, steps=3, image=image, mask=ours, progress=False)
    drawn = opened(answer.data[0].b64_json)
    assert difference(drawn, expected) <= 2
    assert np.array_equal(np.asarray(drawn)[:8], np.asarray(image)[:8])
    streamed = client.images.edit(image=("a.png", png(image)), prompt="a dog", stream=True, extra_body={"steps": "2"})
    assert [each.type for each in streamed] == ["image_edit.completed"]


def test_variations_draw_what_the_file_says(client: Any, pipe: Pipeline) -> None:
    image = pipe("a red cat", seed=1, progress=False, **SMALL)
    answer = client.images.create_variation(image=("a.png", png(image)), extra_body={"seed": "9", "steps": "5"})
    expected = pipe("a red cat", seed=9, steps=5, image=image, strength=0.6, progress=False)
    assert difference(opened(answer.data[0].b64_json), expected) <= 2
    strange = client.images.create_variation(
        image=("a.png", png(Image.new("RGB", (32, 32)))), extra_body={"steps": "5"}
    )
    assert opened(strange.data[0].b64_json).size == (32, 32)


def test_models(client: Any) -> None:
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").owned_by == "genpipe"
    with pytest.raises(openai.NotFoundError, match="there is no model 'dall-e-3' here"):
        client.models.retrieve("dall-e-3")


@pytest.mark.parametrize(
    ("given", "error"),
    [
        ({"size": "huge"}, "is not a size"),
        ({"background": "transparent"}, "background must be one of auto, opaque"),
        ({"model": "dall-e-3"}, "there is no model 'dall-e-3' here"),
        ({"n": 99}, "n may be up to 16"),
        ({"output_compression": 50}, "output_compression must be a whole number from 100 to 100"),
        ({"extra_body": {"style": "vivid"}}, "a request has no style"),
    ],
)
def test_what_is_not_here_is_refused(client: Any, given: dict[str, Any], error: str) -> None:
    with pytest.raises(openai.BadRequestError, match=error):
        client.images.generate(**{"prompt": "a", **given})


def test_files_that_do_not_fit_are_refused(client: Any, url: str) -> None:
    image = png(Image.new("RGB", (32, 32)))
    with pytest.raises(openai.BadRequestError, match="mask must be transparent"):
        client.images.edit(image=("a.png", image), mask=("m.png", image), prompt="a")
    with pytest.raises(openai.BadRequestError, match="the request has 2 files called image"):
        client.images.edit(image=[("a.png", image), ("b.png", image)], prompt="a")
    with pytest.raises(openai.BadRequestError, match="is not an image"):
        client.images.edit(image=("../../etc/passwd", b"GIF89a"), prompt="a")
    broken = httpx.post(
        f"{url}/v1/images/edits", content=b"--x\r\nbroken", headers={"Content-Type": "multipart/form-data; boundary=x"}
    )
    assert broken.status_code == 400 and "error" in broken.json()

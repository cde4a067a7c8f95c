"""A server of `genpipe serve`, called like a `Pipeline`. Imports no torch."""

import base64
import io
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Unpack, overload
from urllib.parse import urlsplit

import requests
from PIL import Image

from genpipe.fields import settings_of
from genpipe.images import Picture, encode_image
from genpipe.imprint import texts_in
from genpipe.inputs import Control, ControlList, ImageInput, InputImage, LoraList
from genpipe.messages import one_line, quoted
from genpipe.progress import Progress
from genpipe.request import Request
from genpipe.seeds import expand
from genpipe.settings import Settings

KEY_VARIABLE = "GENPIPE_API_KEY"
# Seconds without a sign of life after which a server is given up.
PATIENCE = 60.0
# Times that a server without room is asked again.
TRIES = 100


class ClientOptions(Settings, total=False):
    """What `Client.__call__` takes besides prompt, n and seeds."""

    seed: int | None
    progress: bool


class Client:
    """A server that draws, called like a `Pipeline`: requests in, PIL images out.

        draw = genpipe.Client("http://127.0.0.1:8000")
        draw("pirate ship", seed=7).save("ship.png")

    Args:
        url: of the server.
        api_key: that it wants; None is what GENPIPE_API_KEY says.
        model: the name of the server's model; None is the server's first.

    Raises:
        ValueError: the address is none of HTTP.
    """

    def __init__(self, url: str, *, api_key: str | None = None, model: str | None = None) -> None:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise ValueError(f"{quoted(url)} is not the address of a server: give one as in http://127.0.0.1:8000")
        self.url, self.model = f"{parts.scheme}://{parts.netloc}", model
        self._session = requests.Session()
        self._session.trust_env = False  # what the environment says of proxies and passwords is for other hosts
        key = os.environ.get(KEY_VARIABLE) if api_key is None else api_key
        if key:
            self._session.headers["Authorization"] = f"Bearer {key}"
        self._session.headers["X-Client"] = os.urandom(8).hex()

    @overload
    def __call__(
        self, prompt: str, *, n: Literal[1] = 1, seeds: None = None, **options: Unpack[ClientOptions]
    ) -> Picture: ...
    @overload
    def __call__(
        self, prompt: Sequence[str], *, n: int = 1, seeds: Sequence[int] | None = None, **options: Unpack[ClientOptions]
    ) -> list[Picture]: ...
    @overload
    def __call__(
        self,
        prompt: str | Sequence[str],
        *,
        n: int = 1,
        seeds: Sequence[int] | None = None,
        **options: Unpack[ClientOptions],
    ) -> Picture | list[Picture]: ...
    def __call__(
        self,
        prompt: str | Sequence[str],
        *,
        n: int = 1,
        seeds: Sequence[int] | None = None,
        seed: int | None = None,
        progress: bool = True,
        **settings: Unpack[Settings],
    ) -> Picture | list[Picture]:
        """Draw on the server; arguments and result as of `Pipeline.__call__`.

        Images of `settings` are sent as data. LoRAs are those that the server has: name them in the prompt, as
        <lora:name:0.8>. Warnings of the server are in `image.info["warnings"]`, one per line.

        Raises:
            ValueError: the server refuses what is asked for.
            OSError: the server cannot be reached, ends, wants another key, or could not draw.
        """
        wanted = expand(prompt, n=n, seed=seed, seeds=seeds)
        sent = {name: _sent(name, value) for name, value in settings.items() if value is not None}
        if sent.get("vary") and seeds is None:
            wanted = [(text, wanted[0][1]) for text, _ in wanted]
        bodies = [
            {**sent, **({} if self.model is None else {"model": self.model}), "prompt": text, "seed": str(own)}
            for text, own in wanted
        ]
        _vary(bodies)
        drawings: list[str] = []
        images: list[Picture] = []
        try:
            for body in bodies:
                drawings.append(self._begin({**body, "previews": False}))
            with Progress(None, unit="step", quiet=not progress) as shown:
                for index, identifier in enumerate(drawings):
                    images.append(self._finished(identifier, shown, len(drawings) - index))
        finally:
            for identifier in drawings[len(images) :]:  # nothing is drawn for nobody
                self._ask("DELETE", f"/api/drawings/{identifier}", quiet=True)
        return images[0] if isinstance(prompt, str) and n == 1 and seeds is None else images

    def models(self) -> list[dict[str, Any]]:
        """List the server's models, the one that draws by default first, with their default settings."""
        return self._ask("GET", "/api/models").json()

    def _begin(self, body: Mapping[str, Any]) -> str:
        for _ in range(TRIES):
            answer = self._ask("POST", "/api/drawings", json=body, passes=(429,))
            if answer.status_code != 429:
                return answer.json()["id"]
            time.sleep(float(answer.headers.get("Retry-After", 5)))
        raise OSError(f"{self.url} had no room after {TRIES} tries: try later")

    def _finished(self, identifier: str, shown: Progress, left: int) -> Picture:
        done = shown.done
        for name, said in self._events(identifier):
            if name == "step":
                shown.total = done + left * said["steps"]
                shown.update(done + said["step"] - shown.done)
            elif name == "failed":
                raise (ValueError if said["kind"] == "refused" else OSError)(said["error"])
            elif name == "image":
                data = self._ask("GET", said["url"]).content
                with Image.open(io.BytesIO(data)) as image:
                    picture = Picture.of(image)
                    picture.info = {**texts_in(image)}
                if said["warnings"]:
                    picture.info["warnings"] = "\n".join(each["text"] for each in said["warnings"])
                return picture
        raise OSError(f"{self.url} ended before the image was done: try again")

    def _events(self, identifier: str) -> Iterator[tuple[str, dict[str, Any]]]:
        name = ""
        with self._ask("GET", f"/api/drawings/{identifier}/events", stream=True) as answer:
            try:
                for line in answer.iter_lines():
                    if line.startswith(b"event: "):
                        name = line.removeprefix(b"event: ").decode()
                    elif line.startswith(b"data: "):
                        yield name, json.loads(line.removeprefix(b"data: "))
            except requests.RequestException:
                return

    def _ask(
        self,
        method: str,
        path: str,
        *,
        json: Any = None,
        stream: bool = False,
        passes: tuple[int, ...] = (),
        quiet: bool = False,
    ) -> requests.Response:
        try:
            answer = self._session.request(method, f"{self.url}{path}", json=json, stream=stream, timeout=PATIENCE)
        except requests.RequestException as error:
            if quiet:
                return requests.Response()
            raise OSError(f"{self.url} does not answer: is genpipe serve running there? ({_why(error)})") from None
        if answer.ok or quiet or answer.status_code in passes:
            return answer
        try:
            reason = answer.json()["error"]
        except (ValueError, KeyError, TypeError):
            reason = f"it is no server of genpipe's: it says {answer.status_code}"
        raise (ValueError if answer.status_code in (400, 413) else OSError)(f"{self.url}: {one_line(str(reason))}")


def _sent(name: str, value: Any) -> Any:
    """A setting as JSON; files are sent whole."""
    described = settings_of(Request).get(name)
    if described is None:
        raise ValueError(f"a request has no {quoted(name)}: its keys are {', '.join(settings_of(Request))}")
    kind = described.kind
    if isinstance(kind, LoraList):
        if not value:
            return None
        raise ValueError("LoRAs are the server's own: name them in the prompt, as <lora:name:0.8>")
    checked = kind.check(name, value)
    if isinstance(kind, ImageInput):
        return _data(checked)
    if isinstance(kind, ControlList):
        return [{**_control(one), "image": _data(one.image)} for one in checked]
    return checked


def _control(control: Control) -> dict[str, Any]:
    said = {"scale": control.scale, "start": control.start, "end": control.end}
    return said if control.preprocessor is None else {**said, "preprocessor": control.preprocessor}


def _data(image: InputImage) -> str:
    data = encode_image(image.held, ".png") if image.held is not None else Path(str(image.path)).read_bytes()
    return base64.b64encode(data).decode()


def _vary(bodies: list[dict[str, Any]]) -> None:
    """Let the variations of one prompt and seed go toward one seed after the other, as in one call."""
    counts: dict[tuple[str, str], int] = {}
    for body in bodies:
        if body.get("vary"):
            key = (body["prompt"], body["seed"])
            first = int(body["seed"]) + 1 if body.get("vary_seed") is None else int(body["vary_seed"])
            body["vary_seed"] = str((first + counts.get(key, 0)) % 2**64)
            counts[key] = counts.get(key, 0) + 1


def _why(error: Exception) -> str:
    return "it took too long" if isinstance(error, requests.Timeout) else type(error).__name__

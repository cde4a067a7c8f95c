"""What a server is started with. Imports neither torch nor a web framework, so that a bad value is refused at once."""

import ipaddress
import os
from dataclasses import dataclass, field, replace
from pathlib import Path

from genpipe.messages import quoted
from genpipe.server.limits import Limits
from genpipe.spec import ModelSpec
from genpipe.workers.devices import parse_devices

KEY_VARIABLE = "GENPIPE_API_KEY"


@dataclass(frozen=True)
class Options:
    """What a server is started with.

    Attributes:
        models: to load, as `ModelSpec.model` says; () is the embedded one. The first draws where a request names none.
        spec: the other options of loading them.
        host, port: where it listens; port 0 takes a free one.
        devices: of the workers, see `genpipe.workers.devices.parse_devices`.
        batch: images that a worker draws at a time; None measures how many go together.
        deterministic: bitwise the same images whatever else is drawn; each is drawn alone.
        waiting: images that may wait.
        limits: of requests.
        api_key: that clients have to know; None is what GENPIPE_API_KEY says.
        insecure: let everybody in who reaches a host that is not this machine alone.
        allow_host, allow_origin: see `genpipe.server.app.create_app`.
        drain_seconds: for what was taken before SIGTERM.
        log_json: log a JSON object per request.
        log_prompts: log the prompts of each drawing, too.
    """

    models: tuple[str, ...] = ()
    spec: ModelSpec = field(default_factory=ModelSpec)
    host: str = "127.0.0.1"
    port: int = 8000
    devices: str = "auto"
    batch: int | None = None
    deterministic: bool = False
    waiting: int = 256
    limits: Limits = field(default_factory=Limits)
    api_key: str | None = None
    insecure: bool = False
    allow_host: tuple[str, ...] = ()
    allow_origin: tuple[str, ...] = ()
    drain_seconds: float = 60.0
    log_json: bool = False
    log_prompts: bool = False

    def __post_init__(self) -> None:
        if self.api_key is None and os.environ.get(KEY_VARIABLE):
            object.__setattr__(self, "api_key", os.environ[KEY_VARIABLE])

    @property
    def lora_dir(self) -> str | None:
        """Where LoRAs are that prompts name."""
        return self.spec.lora_dir

    def check(self) -> None:
        """Raise ValueError if the options do not go together, or would let strangers in unasked."""
        parse_devices(self.devices)
        self.specs()
        if self.api_key is not None and not (self.api_key.isascii() and self.api_key.strip() == self.api_key):
            raise ValueError("the API key must be ASCII without spaces around it")
        if not self.api_key and not self.insecure and not is_loopback(self.host):
            raise ValueError(
                f"host {quoted(self.host)} is open to others: give --api-key or set {KEY_VARIABLE}, or say --insecure"
            )

    def specs(self) -> dict[str, ModelSpec]:
        """Give the models by the names that clients call them by: those of their files."""
        found: dict[str, ModelSpec] = {}
        for model in self.models or ("embedded",):
            name = Path(model).expanduser().name.removesuffix(".safetensors") or model
            if name in found:
                raise ValueError(f"two models are called {quoted(name)}: give one of them another name")
            found[name] = replace(self.spec, model=None if model == "embedded" else model)
        return found

    def address(self, port: int) -> str:
        """Give what a browser is told."""
        host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(
            self.host, f"[{self.host}]" if ":" in self.host else self.host
        )
        return f"http://{host}:{port}/"


def is_loopback(host: str) -> bool:
    """Tell whether only this machine reaches a host."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"

"""What a `Pipeline` draws with: genpipe's own networks, or a pipeline of diffusers."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from genpipe.fit import Traits
from genpipe.images import Picture
from genpipe.pipeline.progress import Progress
from genpipe.pipeline.run import Run
from genpipe.request import Request
from genpipe.spec import ModelSpec


class Drawer(Protocol):
    """A loaded model. `Pipeline` has the same attributes and methods, and says what they are.

    Attributes:
        preview: gives latents (B, C, h, w) as rough images.
    """

    name: str
    device: torch.device
    dtype: torch.dtype
    spec: ModelSpec

    @property
    def text_seconds(self) -> float: ...
    @property
    def made_by(self) -> dict[str, Any]: ...
    @property
    def traits(self) -> Traits: ...
    def defaults(self, sampler: str | None = None) -> dict[str, Any]: ...
    def stream(self, requests: Sequence[Request]) -> Iterator[Progress]: ...
    def begin(self, request: Request) -> Run | None: ...
    def decode(self, latents: Tensor, requests: Sequence[Request]) -> list[Picture]: ...
    @property
    def preview(self) -> Callable[[Tensor], list[Picture]]: ...

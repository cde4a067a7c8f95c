"""The settings of a request as keyword arguments."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from genpipe.inputs import Control, InputImage, Lora

if TYPE_CHECKING:
    from PIL import Image


class Settings(TypedDict, total=False):
    """The fields of `genpipe.request.Request` but prompt and seed, as keyword arguments; None leaves one to the model."""

    steps: int | None
    guidance_scale: float | None
    height: int | None
    width: int | None
    negative_prompt: str
    prompt_syntax: str
    guidance_rescale: float | None
    sampler: str | None
    clip_skip: int
    speed: str
    original_size: tuple[int, int] | None
    crop: tuple[int, int] | None
    target_size: tuple[int, int] | None
    refiner_start: float | None
    image: "str | Path | Image.Image | InputImage | None"
    strength: float | None
    mask: "str | Path | Image.Image | InputImage | None"
    mask_blur: int
    only_masked: int | None
    outpaint: "str | Mapping[str, int] | tuple[int, int, int, int] | None"
    image_guidance_scale: float | None
    depth: "str | Path | Image.Image | InputImage | None"
    control: "str | Path | Image.Image | Mapping[str, Any] | Control | Sequence[Any]"
    guess: bool
    reference: "str | Path | Image.Image | InputImage | None"
    ip_scale: float
    vary: float
    vary_seed: int | None
    upscale: float
    upscale_strength: float | None
    upscale_guidance_scale: float | None
    upscale_by: str
    tile: bool
    loras: "Sequence[str | Path | tuple[str | Path, float] | Lora]"
    arguments: "str | Mapping[str, Any] | Sequence[Any]"

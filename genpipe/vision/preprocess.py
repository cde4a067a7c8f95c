"""From an image to what a classifier was trained on."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from genpipe.messages import listed, quoted

MAX_SIDE = 8192  # pixels
INTERPOLATIONS = ("bilinear", "bicubic", "lanczos")


@dataclass(frozen=True)
class Preprocess:
    """How images are resized by the shorter side, cropped to the middle and normalised. The defaults are those of ImageNet's published weights.

    Computes what torchvision's `Resize`, `CenterCrop`, `ToTensor` and `Normalize` compute of a PIL image.

    Args:
        resize: the shorter side, in pixels.
        crop: the side of the square in the middle, not above `resize`.
        mean: of each channel on the scale 0 … 1; one number makes images grey.
        std: of each channel.
        interpolation: bilinear, bicubic or lanczos, antialiased.

    Raises:
        ValueError: settings out of range.
    """

    resize: int = 256
    crop: int = 224
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    interpolation: str = "bilinear"

    def __post_init__(self) -> None:
        for name, value in (("resize", self.resize), ("crop", self.crop)):
            if type(value) is not int or not 1 <= value <= MAX_SIDE:
                raise ValueError(f"{name} {quoted(value)} is out of range: use a whole number from 1 to {MAX_SIDE}")
        if self.crop > self.resize:
            raise ValueError(
                f"crop {self.crop} of images resized to {self.resize} does not fit: use 1 to {self.resize}"
            )
        if len(self.mean) not in (1, 3) or len(self.std) != len(self.mean):
            raise ValueError(
                f"{len(self.mean)} means and {len(self.std)} stds are neither grey nor RGB: give 1 or 3 of both"
            )
        if not all(math.isfinite(value) for value in self.mean) or not all(0 < value < math.inf for value in self.std):
            raise ValueError(
                f"mean {quoted(self.mean)} and std {quoted(self.std)} cannot normalise: use finite means, positive stds"
            )
        if self.interpolation not in INTERPOLATIONS:
            raise ValueError(
                f"interpolation {quoted(self.interpolation)} is not known: use {', '.join(INTERPOLATIONS)}"
            )

    def __call__(self, image: Image.Image) -> Tensor:
        """Return a PIL image of any size as (C, crop, crop) float32."""
        return self.normalise(self.square(image))

    def square(self, image: Image.Image) -> Tensor:
        """Return the middle of a resized PIL image, before it is normalised: (C, crop, crop) uint8."""
        image = image.convert("L" if len(self.mean) == 1 else "RGB")
        short = min(image.size)
        resized = [self.resize if side == short else int(self.resize * side / short) for side in image.size]
        # Only the square is computed: an image one pixel high would be resized to millions of pixels.
        box = []
        for side, whole in zip(image.size, resized, strict=True):
            start, scale = round((whole - self.crop) / 2), side / whole
            box.append((start * scale, min((start + self.crop) * scale, side)))
        (left, right), (top, bottom) = box
        method = Image.Resampling[self.interpolation.upper()]
        square = image.resize((self.crop, self.crop), method, box=(left, top, right, bottom))
        levels = np.asarray(square).reshape(self.crop, self.crop, -1)  # (H, W, C)
        return torch.from_numpy(levels.transpose(2, 0, 1).copy())

    def normalise(self, levels: Tensor) -> Tensor:
        """Turn levels 0 … 255 (…, C, H, W) of any type into float32 as the network was trained on."""
        mean, std = (levels.new_tensor(each, dtype=torch.float32)[:, None, None] for each in (self.mean, self.std))
        return (levels.float() / 255 - mean) / std

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as JSON has them."""
        return asdict(self)

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> "Preprocess":
        """Read settings that `to_dict` wrote.

        Raises:
            ValueError: settings are missing, unknown or out of range.
        """
        try:
            mean, std = (tuple(map(float, settings[name])) for name in ("mean", "std"))
            others = {name: settings[name] for name in settings if name not in ("mean", "std")}
        except KeyError as error:
            raise ValueError(f"{quoted(settings)} is not a preprocessing: it lacks {error}") from None
        except (TypeError, ValueError, OverflowError):
            raise ValueError(f"{quoted(settings)} is not a preprocessing: mean and std must hold numbers") from None
        if unknown := [name for name in others if name not in {field.name for field in fields(cls)}]:
            raise ValueError(f"{quoted(settings)} is not a preprocessing: it has {listed(unknown)}")
        return cls(**others, mean=mean, std=std)

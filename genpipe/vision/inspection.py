"""Looking inside a classifier: its first filters, the maps of any layer, and what its decision rests on."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from genpipe.files import atomic_write
from genpipe.messages import quoted
from genpipe.vision.transfer import features
from genpipe.vision.weights import Classifier

CELL, MOST = 64, 256  # side of a cell of a grid, in pixels, and how many a grid shows at most
SHOWN = 224  # side of the image beside Grad-CAM, about


@dataclass(frozen=True)
class Inspection:
    """What a classifier does with one image, as images."""

    layer: str  # whose maps these are
    target: int  # the class that `grad_cam` explains
    filters: Image.Image
    maps: Image.Image
    grad_cam: Image.Image  # the image as the network sees it, and beside it what speaks for the class

    def save(self, directory: Path, stem: str) -> list[Path]:
        """Write `stem`-filters.png, `stem`-LAYER.png and `stem`-grad-cam.png, each wholly or not at all.

        Raises:
            OSError: the folder or a file cannot be written.
        """
        directory.mkdir(parents=True, exist_ok=True)
        paths = []
        for name, image in (("filters", self.filters), (self.layer, self.maps), ("grad-cam", self.grad_cam)):
            path = directory / f"{stem}-{name}.png"
            with atomic_write(path) as part:
                image.save(part, "PNG")
            paths.append(path)
        return paths


def inspect_image(
    classifier: Classifier, image: Image.Image, *, layer: str | None = None, target: int | str | None = None
) -> Inspection:
    """Draw the first filters, the feature maps of `layer`, and Grad-CAM at it.

    Args:
        image: in RGB, see `genpipe.vision.reading.read_image`.
        layer: by default the last that has maps.
        target: number or name of the class to explain; by default the likeliest.

    Raises:
        ValueError: no such layer or class, or a layer that puts out no maps.
    """
    network = classifier.network.eval()
    settings = classifier.preprocess
    first = next(network.parameters())
    pixels = settings(image)[None].to(first.device, first.dtype)
    if layer is None:
        layer = last_maps(network, pixels)
    with torch.no_grad():
        if target is None:
            target = int(network(pixels).argmax())
        maps = feature_maps(network, pixels, layer)
    number = _class_number(classifier.classes, target)
    heat = grad_cam(network, pixels, layer, number)
    seen = settings.square(image).expand(3, -1, -1).float() / 255
    return Inspection(
        layer=layer,
        target=number,
        filters=image_grid(stretched(first_filters(network))),
        maps=image_grid(stretched(maps[:, None])),
        grad_cam=image_grid(torch.stack([seen, 0.5 * seen + 0.5 * heat_colours(heat.cpu())]), cell=SHOWN),
    )


def first_filters(model: nn.Module) -> Tensor:
    """Return the weights of the first convolution: (N, C, k, k).

    Raises:
        ValueError: the model has none.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            return module.weight.detach()
    raise ValueError(f"{type(model).__name__} has no convolution, so it has no filters to show")


@torch.no_grad()
def feature_maps(model: nn.Module, pixels: Tensor, layer: str) -> Tensor:
    """Return what `layer` makes of one image (1, C, H, W): (K, h, w).

    Raises:
        ValueError: no such layer, or it puts out no maps.
    """
    found = features(model, [layer])(pixels)[layer]
    if found.ndim != 4:
        raise ValueError(f"layer {layer!r} puts out {tuple(found.shape[1:])}, which are no maps: name an earlier one")
    return found[0]


@torch.no_grad()
def last_maps(model: nn.Module, pixels: Tensor) -> str:
    """Return the name of the layer, alone or a block of them, that is the last to put out maps of more than one pixel.

    Raises:
        ValueError: there is none.
    """
    found: list[str] = []

    def note(name: str) -> Callable[[nn.Module, object, object], None]:
        def hook(module: nn.Module, inputs: object, output: object) -> None:
            if isinstance(output, Tensor) and output.ndim == 4 and output.shape[-2] * output.shape[-1] > 1:
                found.append(name)

        return hook

    hooks = [module.register_forward_hook(note(name)) for name, module in model.named_modules() if name]
    try:
        model(pixels)
    finally:
        for hook in hooks:
            hook.remove()
    if not found:
        raise ValueError(f"{type(model).__name__} has no layer that puts out maps")
    return found[-1]


def grad_cam(model: nn.Module, pixels: Tensor, layer: str, target: int) -> Tensor:
    """Return where in an image (1, C, H, W) the evidence for class `target` is: (H, W), 0 … 1, all 0 for none.

    It is the maps of `layer`, each weighted by the mean of the logit's gradient over it; of their sum the positive part
    ("Grad-CAM: Visual Explanations from Deep Networks via Gradient-Based Localization", Selvaraju et al., 2017),
    enlarged to the image's size and divided by its maximum.
    """
    kept: list[Tensor] = []

    def keep(module: nn.Module, inputs: object, output: Tensor) -> Tensor:
        kept.append(output)
        return output.clone()  # the next layer may change it in place

    hook = model.get_submodule(layer).register_forward_hook(keep)
    try:
        with torch.enable_grad():
            # A network whose weights are all frozen still has gradients of its maps.
            logits = model(pixels.detach().requires_grad_())
            (gradient,) = torch.autograd.grad(logits[0, target], kept[-1])
    finally:
        hook.remove()
    weights = gradient.mean(dim=(2, 3), keepdim=True)  # (1, K, 1, 1)
    evidence = (weights * kept[-1].detach()).sum(dim=1, keepdim=True).relu().float()
    evidence = F.interpolate(evidence, size=pixels.shape[-2:], mode="bilinear", align_corners=False)[0, 0]
    return evidence / evidence.max().clamp(min=1e-12)


def stretched(cells: Tensor) -> Tensor:
    """Stretch each of (N, C, h, w) from its own least to its own greatest value, 0 … 1; one that is flat is 0."""
    flat = cells.float().cpu().flatten(1)
    least, greatest = (each[:, None, None, None] for each in (flat.amin(1), flat.amax(1)))
    return (cells.float().cpu() - least) / (greatest - least).clamp(min=1e-12)


def heat_colours(heat: Tensor) -> Tensor:
    """Colour 0 … 1 (H, W) as blue, green, yellow, red: (3, H, W)."""
    return torch.stack([(1.5 - (4 * heat - peak).abs()).clamp(0, 1) for peak in (3, 2, 1)])


def image_grid(cells: Tensor, *, cell: int = CELL) -> Image.Image:
    """Lay cells (N, 1 or 3, h, w) of 0 … 1 side by side in rows: the first 256, small ones enlarged to about `cell` pixels
    with their pixels visible."""
    cells = cells[:MOST].expand(-1, 3, -1, -1)
    scale = max(1, round(cell / max(cells.shape[-2:])))
    cells = cells.repeat_interleave(scale, dim=2).repeat_interleave(scale, dim=3)
    count, _, height, width = cells.shape
    columns = math.ceil(math.sqrt(count))
    whole = torch.ones(3, -(-count // columns) * (height + 1) - 1, columns * (width + 1) - 1)
    for index, part in enumerate(cells):
        top, left = index // columns * (height + 1), index % columns * (width + 1)
        whole[:, top : top + height, left : left + width] = part
    return Image.fromarray((whole * 255).round().byte().permute(1, 2, 0).numpy().astype(np.uint8))


def _class_number(classes: tuple[str, ...], target: int | str) -> int:
    if isinstance(target, str):
        if target not in classes:
            raise ValueError(
                f"class {quoted(target)} is not among the {len(classes)} of this classifier: give its number"
            )
        return classes.index(target)
    if not 0 <= target < len(classes):
        raise ValueError(f"class {target} is out of range: use 0 to {len(classes) - 1}")
    return target

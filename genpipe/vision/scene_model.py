"""What an image of genpipe's world shows: a setting, and objects with their places, concepts and colours.

One trunk and a dense head, after "FCOS" (Tian et al., 2019): every cell of a 6×6 grid says whether the centre of an
object lies near it, where that object ends, what it is and in which colour; the setting is told from the whole image.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from genpipe.blocks import conv1x1, conv_unit
from genpipe.embedded import JUDGES
from genpipe.vision.detection import suppress
from genpipe.vision.preprocess import Preprocess
from genpipe.vision.resnet import ResNetEncoder
from genpipe.vision.weights import Classifier, read_tensors

INPUT_SIDE = 96  # pixels per side of what the models look at: images of 128 made smaller
STRIDE = 16  # pixels per side of a cell
CHANNELS = 128  # of what the heads read
PREPROCESS = Preprocess(resize=INPUT_SIDE, crop=INPUT_SIDE, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


class ResNetTrunk(nn.Module):
    """A narrow ResNet-18 whose last two stages are added up, as in "Feature Pyramid Networks" (2016)."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.resnet = ResNetEncoder(18, width=width)
        self.lateral = conv1x1(4 * width, CHANNELS)
        self.top = conv1x1(8 * width, CHANNELS)
        self.neck = conv_unit(CHANNELS, CHANNELS)
        self.early_channels = 2 * width

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, H, W) -> an early map (B, 2·width, H/8, W/8) and the cells (B, CHANNELS, H/16, W/16)."""
        _, _, early, cells = self.maps(pixels)
        return early, cells

    def maps(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the same after two finer maps: (B, width, H/2, W/2) and (B, width, H/4, W/4)."""
        stem, first, early, middle, late = self.resnet(pixels)
        late = F.interpolate(self.top(late), size=middle.shape[-2:], mode="nearest")
        return stem, first, early, self.neck(self.lateral(middle) + late)


class PlainTrunk(nn.Module):
    """A stack of 3×3 convolutions without shortcuts, after VGG (2014): made unlike the other trunk, to check on it."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        w = width
        self.first = nn.Sequential(conv_unit(3, w, kernel=5, stride=4), conv_unit(w, w))
        self.second = nn.Sequential(conv_unit(w, 2 * w, stride=2), conv_unit(2 * w, 2 * w))
        self.third = nn.Sequential(
            conv_unit(2 * w, 4 * w, stride=2),
            conv_unit(4 * w, 4 * w),
            conv_unit(4 * w, 4 * w),
            conv_unit(4 * w, CHANNELS),
        )
        self.early_channels = 2 * w

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """See `ResNetTrunk.forward`."""
        early = self.second(self.first(pixels))
        return early, self.third(early)


TRUNKS = {"resnet18": ResNetTrunk, "plain": PlainTrunk}


@dataclass(frozen=True)
class SceneOutput:
    """What the network puts out for a batch, with h = H/16 and w = W/16."""

    objectness: Tensor  # (B, h, w) logits
    boxes: Tensor  # (B, h, w, 4): left, top, right, bottom in pixels
    cells: Tensor  # (B, h, w, CHANNELS): what `SceneModel.concepts` and `SceneModel.colours` read
    settings: Tensor  # (B, settings) logits
    features: Tensor  # (B, CHANNELS): the mean of the cells


class SceneModel(nn.Module):
    """A network that tells what pixels in [-1, 1] show.

    Args:
        trunk: "resnet18" or "plain".
        concepts, colours, settings: how many there are; one more colour stands for the natural ones.
        width: channels of the trunk's first stage.
    """

    def __init__(self, trunk: str, *, concepts: int, colours: int, settings: int, width: int = 32) -> None:
        super().__init__()
        if trunk not in TRUNKS:
            raise ValueError(f"trunk {trunk!r} is not known: use one of {', '.join(TRUNKS)}")
        self.architecture, self.width = trunk, width
        self.trunk = TRUNKS[trunk](width)
        self.place = conv1x1(CHANNELS, 5)
        self.concepts = nn.Linear(CHANNELS, concepts)
        self.colours = nn.Linear(CHANNELS, colours + 1)
        self.settings = nn.Linear(CHANNELS + self.trunk.early_channels, settings)
        with torch.no_grad():  # at first: objects are rare, and reach two cells to every side
            self.place.weight.mul_(0.1)
            self.place.bias.copy_(torch.tensor([-3.0, 2.0, 2.0, 2.0, 2.0]))  # pyright: ignore[reportOptionalMemberAccess]

    def forward(self, pixels: Tensor) -> SceneOutput:
        """(B, 3, H, W) in [-1, 1], H and W multiples of 32."""
        early, cells = self.trunk(pixels)
        place = self.place(cells).float()  # (B, 5, h, w)
        features = cells.float().mean(dim=(2, 3))
        whole = torch.cat([features, early.float().mean(dim=(2, 3))], dim=1)
        return SceneOutput(
            objectness=place[:, 0],
            boxes=_boxes(place[:, 1:]),
            cells=cells.permute(0, 2, 3, 1),
            settings=self.settings(whole),
            features=features,
        )


class SurestConcept(nn.Module):
    """Scene models as one classifier: what the surest object of an image is.

    The cells around its middle say it together, each as far as it is sure that something is there; the models by the
    geometric mean of their probabilities, which is small for what one of them rules out.
    """

    def __init__(self, *models: SceneModel) -> None:
        super().__init__()
        self.models = nn.ModuleList(models)

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] -> logarithms of probabilities, up to a constant (B, concepts)."""
        seen: list[SceneOutput] = [model(pixels) for model in self.models]
        there = torch.stack([each.objectness.sigmoid() for each in seen]).mean(0)  # (B, h, w)
        near = torch.zeros_like(there).flatten(1)
        near.scatter_(1, there.flatten(1).argmax(1, keepdim=True), 1.0)
        near = F.max_pool2d(near.view_as(there)[:, None], 3, stride=1, padding=1)[:, 0]
        share = (there * near)[..., None] / (there * near).sum((1, 2))[:, None, None, None]
        said = [
            (share * model.concepts(each.cells).float().softmax(-1)).sum((1, 2))  # pyright: ignore[reportCallIssue]
            for model, each in zip(self.models, seen, strict=True)
        ]
        return torch.stack(said).clamp(min=1e-9).log().mean(0)


def shrink(pixels: Tensor) -> Tensor:
    """Shrink images (B, 3, H, W) to what the models take: (B, 3, INPUT_SIDE, INPUT_SIDE), antialiased."""
    return F.interpolate(pixels, size=(INPUT_SIDE, INPUT_SIDE), mode="bilinear", antialias=True)


def centres(height: int, width: int, device: torch.device | str = "cpu") -> Tensor:
    """Return the middle of each cell in pixels, x and y: (h, w, 2)."""
    y, x = torch.meshgrid(torch.arange(height, device=device), torch.arange(width, device=device), indexing="ij")
    return (torch.stack([x, y], dim=-1) + 0.5) * STRIDE


def _boxes(distances: Tensor) -> Tensor:
    """Distances from a cell's middle to left, top, right and bottom in cells (B, 4, h, w) as boxes (B, h, w, 4)."""
    middle = centres(distances.shape[-2], distances.shape[-1], distances.device)
    away = distances.permute(0, 2, 3, 1) * STRIDE
    return torch.cat([middle - away[..., :2], middle + away[..., 2:]], dim=-1)


@dataclass(frozen=True)
class FoundObjects:
    """The objects that an image shows, the surest first."""

    scores: Tensor  # (K,) in 0 … 1
    boxes: Tensor  # (K, 4): left, top, right, bottom in pixels
    concepts: Tensor  # (K, concepts) probabilities
    colours: Tensor  # (K, colours + 1) probabilities, the last of the natural colours


@torch.no_grad()
def find_objects(
    model: SceneModel, seen: SceneOutput, *, threshold: float = 0.5, overlap: float = 0.5
) -> list[FoundObjects]:
    """Find the objects in each image of a batch.

    Cells above `threshold` are taken from the surest down, leaving out those whose box overlaps that of one taken
    before by more than `overlap` (intersection over union). The surest cell is always taken, whatever its score.
    """
    found = []
    for scores, boxes, cells in zip(seen.objectness.sigmoid(), seen.boxes, seen.cells, strict=True):
        scores, boxes, cells = scores.flatten(), boxes.flatten(0, 1), cells.flatten(0, 1).float()
        likely = scores.argsort(descending=True)[: max(1, int((scores > threshold).sum()))]
        kept = suppress(boxes[likely], scores[likely], torch.zeros_like(likely), overlap)
        chosen = likely[kept]
        found.append(
            FoundObjects(
                scores[chosen],
                boxes[chosen],
                model.concepts(cells[chosen]).float().softmax(dim=1),
                model.colours(cells[chosen]).float().softmax(dim=1),
            )
        )
    return found


def load_scene_model(path: str | Path) -> tuple[SceneModel, dict[str, tuple[str, ...]]]:
    """Load the scene model in a file, in fp32 on the CPU, and what its "concepts", "colours" and "settings" stand for.

    Raises:
        ValueError: the file is damaged or holds something else.
        OSError: there is no such file.
    """
    tensors, metadata = read_tensors(path)
    try:
        known = {key: tuple(json.loads(metadata[key])) for key in ("concepts", "colours", "settings")}
        counts = {key: len(value) for key, value in known.items()}
        with torch.random.fork_rng(devices=[]):  # the first weights are drawn only to be replaced
            model = SceneModel(metadata["trunk"], **counts, width=int(metadata["width"]))
        model.load_state_dict(tensors)
    except (KeyError, ValueError, RuntimeError) as error:
        raise ValueError(f"{path} is no judge of scenes: {' '.join(str(error).split())}") from None
    return model, known


def scene_classifier() -> Classifier:
    """Load two embedded judges, the critic and the second, as one classifier of what is surest to be in an image."""
    models, known = zip(
        *(load_scene_model(JUDGES / f"{name}.safetensors") for name in ("critic", "second")), strict=True
    )
    assert known[0] == known[1]
    return Classifier(SurestConcept(*models).eval(), "scene", known[0]["concepts"], PREPROCESS)

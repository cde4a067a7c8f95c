"""Which pixels of an image of genpipe's world belong to what kind of thing.

Masks come from the features of a judge, and their names from the objects that it finds there.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from genpipe.blocks import conv1x1, conv_unit
from genpipe.judge.scene_judge import SURE, Judge
from genpipe.judge.scores import BATCH
from genpipe.scenes.concepts import concepts
from genpipe.vision.scene_model import CHANNELS, INPUT_SIDE, PREPROCESS, FoundObjects, ResNetTrunk
from genpipe.vision.weights import read_tensors, write_tensors

CATEGORIES = ("background", *dict.fromkeys(concept.category for concept in concepts().values()))


class MaskHead(nn.Module):
    """A head that tells for each pixel whether it belongs to a thing, from the maps of a trained trunk, which stays as it is.

    From the cells up, each finer map is added and mixed in, to half the image's size, as in "Panoptic Feature Pyramid
    Networks" (Kirillov et al., 2019).

    Args:
        trunk: of a `SceneModel`; its weights are not this module's.
        channels: of the maps on the way up.

    Raises:
        ValueError: the trunk has no finer maps.
    """

    def __init__(self, trunk: nn.Module, channels: int = 48) -> None:
        super().__init__()
        if not isinstance(trunk, ResNetTrunk):
            raise ValueError(f"a {type(trunk).__name__} has no finer maps to segment by: use a judge on resnet18")
        self._trunk = [trunk]  # in a list, so that it is no part of this module
        width = trunk.early_channels // 2
        self.laterals = nn.ModuleList(conv1x1(c, channels) for c in (CHANNELS, 2 * width, width, width))
        self.mixes = nn.ModuleList(conv_unit(channels, channels) for _ in range(3))
        self.head = conv1x1(channels, 1)

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] -> logits (B, 1, H/2, W/2), to be enlarged bilinearly."""
        with torch.no_grad():
            stem, first, early, cells = self._trunk[0].eval().maps(pixels)
        x = self.laterals[0](cells)
        for lateral, mix, finer in zip(list(self.laterals)[1:], self.mixes, (early, first, stem), strict=True):
            x = mix(lateral(finer) + F.interpolate(x, size=finer.shape[-2:], mode="nearest"))
        return self.head(x)


class Segmentation:
    """A mask head with the judge on whose features it was trained."""

    def __init__(self, head: MaskHead, judge: Judge) -> None:
        self.head, self.judge = head.eval(), judge
        self._category = torch.tensor([CATEGORIES.index(concepts()[name].category) for name in judge.concepts])

    @classmethod
    def load(cls, path: str | Path, judge: Judge) -> "Segmentation":
        """Load the segmentation in a file that `save` wrote, for the judge that it was trained with.

        Raises:
            ValueError: the file is damaged or holds something else, or the judge is of another architecture.
            OSError: there is no such file.
        """
        tensors, _ = read_tensors(path)
        head = MaskHead(judge.model.trunk)
        try:
            head.load_state_dict(tensors)
        except RuntimeError as error:
            raise ValueError(f"{path} is no segmentation of scenes: {' '.join(str(error).split())}") from None
        return cls(head.to(next(judge.model.parameters()).device), judge)

    def save(self, path: str | Path) -> None:
        """Write the head in fp16 to a .safetensors file, wholly or not at all; the judge is not in it."""
        write_tensors(path, self.head.state_dict(), {}, dtype=torch.float16)

    @torch.inference_mode()
    def __call__(self, images: Sequence[Image.Image], size: int = 128) -> Tensor:
        """Return what each pixel of images resized to `size` belongs to: (N, size, size) int64, indices of CATEGORIES."""
        masks = self._masks(images, size)
        observed = self.judge.observe(images)
        return torch.stack(
            [mask * self._nearest(observation.objects, size) for mask, observation in zip(masks, observed, strict=True)]
        )

    def _masks(self, images: Sequence[Image.Image], size: int) -> Tensor:
        """(N, size, size) bool."""
        device, masks = next(self.head.parameters()).device, []
        for start in range(0, len(images), BATCH):
            pixels = torch.stack([PREPROCESS(image) for image in images[start : start + BATCH]])
            logits = self.head(pixels.to(device, memory_format=torch.channels_last)).float()
            enlarged = F.interpolate(logits, size=(size, size), mode="bilinear", align_corners=False)
            masks.append((enlarged[:, 0] > 0).cpu())
        return torch.cat(masks)

    def _nearest(self, objects: FoundObjects, size: int) -> Tensor:
        """The category of the object in whose box a pixel is, or whose box is nearest: (size, size) int64."""
        sure = max(1, int((objects.scores >= SURE).sum()))
        kinds = objects.concepts[:sure].cpu()
        chances = torch.zeros(sure, len(CATEGORIES)).index_add(1, self._category, kinds)
        boxes = objects.boxes[:sure].cpu() * (size / INPUT_SIDE)
        left, top, right, bottom = boxes.T[..., None, None]  # (sure, 1, 1) each
        at = torch.arange(size) + 0.5
        across = torch.maximum(left - at, at - right).clamp(min=0)  # (sure, 1, size)
        down = torch.maximum(top - at[:, None], at[:, None] - bottom).clamp(min=0)  # (sure, size, 1)
        return chances.argmax(dim=1)[(across + down).argmin(dim=0)]

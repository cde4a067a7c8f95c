"""Which pixels of a picture of genpipe's world belong to what kind of thing, on the features of a judge."""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from genpipe.vision.blocks import conv1x1, conv_unit
from genpipe.vision.judge import BATCH, PREPROCESS, Judge
from genpipe.vision.scene_model import CHANNELS, ResNetTrunk
from genpipe.vision.weights import read_tensors, write_tensors


class Segmenter(nn.Module):
    """What each pixel belongs to, read off the maps of a trained trunk, which stays as it is.

    From the cells up, each finer map is added and mixed in, as in "Panoptic Feature Pyramid Networks" (2019), to half the
    picture's size.

    Args:
        trunk: of a `SceneModel`; its weights are not this module's.
        classes: of a pixel, the background among them.
        channels: of the maps on the way up.
    """

    def __init__(self, trunk: ResNetTrunk, classes: int, channels: int = 48) -> None:
        super().__init__()
        self._trunk = [trunk]  # in a list, so that it is no part of this module
        width = trunk.early_channels // 2
        self.laterals = nn.ModuleList(conv1x1(c, channels) for c in (CHANNELS, 2 * width, width, width))
        self.mixes = nn.ModuleList(conv_unit(channels, channels) for _ in range(3))
        self.head = conv1x1(channels, classes)

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] -> logits (B, classes, H/2, W/2), to be enlarged bilinearly."""
        with torch.no_grad():
            stem, first, early, cells = self._trunk[0].eval().maps(pixels)
        x = self.laterals[0](cells)
        for lateral, mix, finer in zip(list(self.laterals)[1:], self.mixes, (early, first, stem), strict=True):
            x = mix(lateral(finer) + F.interpolate(x, size=finer.shape[-2:], mode="nearest"))
        return self.head(x)


class Segmentation:
    """A segmenter with the names of what it knows."""

    def __init__(self, network: Segmenter, classes: Sequence[str]) -> None:
        self.network, self.classes = network.eval(), tuple(classes)

    @classmethod
    def load(cls, path: str | Path, judge: Judge) -> "Segmentation":
        """The segmentation in a file that `save` wrote, on the features of the judge that it was trained with.

        Raises:
            ValueError: the file is damaged or holds something else.
            OSError: there is no such file.
        """
        trunk = judge.model.trunk
        if not isinstance(trunk, ResNetTrunk):
            raise ValueError(
                f"a judge with the trunk {judge.model.architecture} has no maps to segment by: use resnet18"
            )
        tensors, metadata = read_tensors(path)
        try:
            classes = json.loads(metadata["classes"])
            network = Segmenter(trunk, len(classes))
            network.load_state_dict(tensors)
        except (KeyError, ValueError, RuntimeError) as error:
            raise ValueError(f"{path} is no segmentation of scenes: {' '.join(str(error).split())}") from None
        return cls(network.to(next(trunk.parameters()).device), classes)

    def save(self, path: str | Path) -> None:
        """Write it in fp16 to a .safetensors file, wholly or not at all; the judge's features are not in it."""
        write_tensors(path, self.network.state_dict(), {"classes": json.dumps(self.classes)}, dtype=torch.float16)

    @torch.inference_mode()
    def __call__(self, images: Sequence[Image.Image], size: int = 128) -> Tensor:
        """The class of each pixel of pictures resized to `size`: (N, size, size) int64, indices of `classes`."""
        device, maps = next(self.network.parameters()).device, []
        for start in range(0, len(images), BATCH):
            pixels = torch.stack([PREPROCESS(image) for image in images[start : start + BATCH]])
            logits = self.network(pixels.to(device, memory_format=torch.channels_last)).float()
            enlarged = F.interpolate(logits, size=(size, size), mode="bilinear", align_corners=False)
            maps.append(enlarged.argmax(dim=1).cpu())
        return torch.cat(maps)

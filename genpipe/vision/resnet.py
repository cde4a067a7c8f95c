"""ResNets, of "Deep Residual Learning for Image Recognition" (He, Zhang, Ren and Sun, 2015), with torchvision's keys.

Bottlenecks take their stride on the 3×3 convolution, as in torchvision and unlike in the paper ("ResNet v1.5").
"""

from torch import Tensor, nn
from torch.nn import functional as F

from genpipe.blocks import conv1x1, conv3x3


class BasicUnit(nn.Module):
    """Two 3×3 convolutions with batch norm around a shortcut; ReLU after the first and after the sum.

    The shortcut is a strided 1×1 convolution with batch norm where the shape changes, else the identity.
    """

    expansion = 1

    def __init__(self, in_channels: int, width: int, *, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = conv3x3(in_channels, width, stride=stride, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv3x3(width, width, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = _shortcut(in_channels, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, width, ⌈H/stride⌉, ⌈W/stride⌉)."""
        h = F.relu(self.bn1(self.conv1(x)), inplace=True)
        h = self.bn2(self.conv2(h))
        h += x if self.downsample is None else self.downsample(x)
        return F.relu(h, inplace=True)


class BottleneckUnit(nn.Module):
    """1×1 down to `width` channels, 3×3 with the stride, 1×1 up to four times `width`, around a shortcut."""

    expansion = 4

    def __init__(self, in_channels: int, width: int, *, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = conv1x1(in_channels, width, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv3x3(width, width, stride=stride, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = conv1x1(width, width * self.expansion, bias=False)
        self.bn3 = nn.BatchNorm2d(width * self.expansion)
        self.downsample = _shortcut(in_channels, width * self.expansion, stride)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, 4·width, ⌈H/stride⌉, ⌈W/stride⌉)."""
        h = F.relu(self.bn1(self.conv1(x)), inplace=True)
        h = F.relu(self.bn2(self.conv2(h)), inplace=True)
        h = self.bn3(self.conv3(h))
        h += x if self.downsample is None else self.downsample(x)
        return F.relu(h, inplace=True)


Unit = type[BasicUnit] | type[BottleneckUnit]
DEPTHS: dict[int, tuple[Unit, tuple[int, int, int, int]]] = {
    18: (BasicUnit, (2, 2, 2, 2)),
    34: (BasicUnit, (3, 4, 6, 3)),
    50: (BottleneckUnit, (3, 4, 6, 3)),
    101: (BottleneckUnit, (3, 4, 23, 3)),
    152: (BottleneckUnit, (3, 8, 36, 3)),
}


class ResNetEncoder(nn.Module):
    """A ResNet up to its last feature maps, for classifiers, segmentation and detection alike.

    Convolutions start with He's normal weights (fan out), batch norms as the identity.

    Args:
        depth: as in the paper's table 1: 18, 34, 50, 101 or 152.
        width: channels of the first stage, 64 in the paper; a quarter of it makes a sixteenth of the parameters.

    Attributes:
        channels: of the five maps that `forward` returns.

    Raises:
        ValueError: another depth, or a width below 1.
    """

    def __init__(self, depth: int, *, width: int = 64) -> None:
        super().__init__()
        if depth not in DEPTHS:
            raise ValueError(f"a ResNet of {depth} layers is not in the paper: use {', '.join(map(str, DEPTHS))}")
        if width < 1:
            raise ValueError(f"a ResNet of width {width} has no channels: use 1 or more, 64 as in the paper")
        unit, (first, second, third, fourth) = DEPTHS[depth]
        wide = width * unit.expansion
        self.channels = (width, wide, 2 * wide, 4 * wide, 8 * wide)
        self.conv1 = nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, padding=1)
        self.layer1 = _stage(unit, width, width, first, stride=1)
        self.layer2 = _stage(unit, wide, 2 * width, second, stride=2)
        self.layer3 = _stage(unit, 2 * wide, 4 * width, third, stride=2)
        self.layer4 = _stage(unit, 4 * wide, 8 * width, fourth, stride=2)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """(B, 3, H, W) of any size -> what the stem and the four stages put out, at 1/2, 1/4, 1/8, 1/16 and 1/32."""
        stem = self.relu(self.bn1(self.conv1(pixels)))  # (B, width, H/2, W/2)
        first = self.layer1(self.maxpool(stem))  # (B, …, H/4, W/4)
        second = self.layer2(first)  # (B, …, H/8, W/8)
        third = self.layer3(second)  # (B, …, H/16, W/16)
        return stem, first, second, third, self.layer4(third)  # (B, …, H/32, W/32)


class ResNet(ResNetEncoder):
    """A ResNet of 18, 34, 50, 101 or 152 layers: the encoder, the mean of its last maps and a linear layer.

    Args:
        depth, width: see `ResNetEncoder`.
        classes: of the output.
    """

    def __init__(self, depth: int, classes: int = 1000, *, width: int = 64) -> None:
        super().__init__(depth, width=width)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(self.channels[-1], classes)

    def forward(self, pixels: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """(B, 3, H, W) of any size -> logits (B, classes)."""
        *_, maps = super().forward(pixels)
        return self.fc(self.avgpool(maps).flatten(1))


def _stage(unit: Unit, in_channels: int, width: int, units: int, *, stride: int) -> nn.Sequential:
    following = (unit(width * unit.expansion, width) for _ in range(units - 1))
    return nn.Sequential(unit(in_channels, width, stride=stride), *following)


def _shortcut(in_channels: int, out_channels: int, stride: int) -> nn.Sequential | None:
    if stride == 1 and in_channels == out_channels:
        return None
    return nn.Sequential(conv1x1(in_channels, out_channels, stride=stride, bias=False), nn.BatchNorm2d(out_channels))

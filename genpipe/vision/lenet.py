"""LeNet-5, of "Gradient-Based Learning Applied to Document Recognition" (LeCun, Bottou, Bengio and Haffner, 1998)."""

from collections import OrderedDict

from torch import Tensor, nn


class LeNet5(nn.Module):
    """The paper's layers C1 to F6 and a linear classifier, with tanh between them: 61,706 parameters for ten digits.

    As everyone has built it since, C3 sees all six maps where the paper's saw chosen ones, subsampling has no weights,
    and the last layer is linear where the paper compared with drawn characters.

    Args:
        classes: of the output.
        channels: of the input; the paper's images were grey.
    """

    def __init__(self, classes: int = 10, *, channels: int = 1) -> None:
        super().__init__()
        self.features = nn.Sequential(
            OrderedDict(
                c1=nn.Conv2d(channels, 6, 5),  # (B, 6, 28, 28)
                tanh1=nn.Tanh(),
                s2=nn.AvgPool2d(2),  # (B, 6, 14, 14)
                c3=nn.Conv2d(6, 16, 5),  # (B, 16, 10, 10)
                tanh3=nn.Tanh(),
                s4=nn.AvgPool2d(2),  # (B, 16, 5, 5)
                c5=nn.Conv2d(16, 120, 5),  # (B, 120, 1, 1)
                tanh5=nn.Tanh(),
            )
        )
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(OrderedDict(f6=nn.Linear(120, 84), tanh6=nn.Tanh(), fc=nn.Linear(84, classes)))

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, C, 32, 32) -> logits (B, classes); of a larger image the vectors of its 32×32 windows are averaged."""
        return self.classifier(self.avgpool(self.features(pixels)).flatten(1))

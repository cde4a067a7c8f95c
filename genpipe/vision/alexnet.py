"""AlexNet, in the form of the paper and in the form whose weights are published with torchvision.

"ImageNet Classification with Deep Convolutional Neural Networks" (Krizhevsky, Sutskever and Hinton, 2012), and "One weird
trick for parallelizing convolutional neural networks" (Krizhevsky, 2014), whose single-tower layers torchvision has.
"""

from torch import Tensor, nn


class AlexNet(nn.Module):
    """torchvision's form: one tower, no normalisation; 61,100,840 parameters. State dicts have torchvision's keys.

    Weights start as in "Delving Deep into Rectifiers" (He et al., 2015), normal (fan in), those of the head with a standard
    deviation of 0.01, and biases at zero: with torch's own the signal shrinks from layer to layer, and nothing here makes
    it larger again.

    Args:
        classes: of the output.
        dropout: share of the two hidden layers' inputs that training drops.
    """

    def __init__(self, classes: int = 1000, *, dropout: float = 0.5) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 64, 11, stride=4, padding=2),  # (B, 64, 55, 55)
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, 2),  # (B, 64, 27, 27)
            nn.Conv2d(64, 192, 5, padding=2),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, 2),  # (B, 192, 13, 13)
            nn.Conv2d(192, 384, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(384, 256, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(256, 256, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, 2),  # (B, 256, 6, 6)
        )
        self.avgpool = nn.AdaptiveAvgPool2d(6)
        self.classifier = nn.Sequential(
            nn.Dropout(dropout),
            nn.Linear(256 * 6 * 6, 4096),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            nn.Linear(4096, 4096),
            nn.ReLU(inplace=True),
            nn.Linear(4096, classes),
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                nn.init.zeros_(module.bias)
        nn.init.normal_(self.get_parameter("classifier.6.weight"), std=0.01)

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, 224, 224) -> logits (B, classes); other sizes, from 63 pixels, are pooled to the same 6×6 features."""
        return self.classifier(self.avgpool(self.features(pixels)).flatten(1))


class AlexNet2012(nn.Module):
    """The 2012 paper's form: second, fourth and fifth convolution in two groups, one for each GPU of the time, and local
    response normalisation after the first two; 60,965,224 parameters. Weights start as section 5 of the paper says.

    Args:
        classes: of the output.
        dropout: share of the two hidden layers' outputs that training drops.
    """

    def __init__(self, classes: int = 1000, *, dropout: float = 0.5) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 96, 11, stride=4, padding=2),  # (B, 96, 55, 55)
            nn.ReLU(inplace=True),
            local_response_norm(),
            nn.MaxPool2d(3, 2),  # (B, 96, 27, 27)
            nn.Conv2d(96, 256, 5, padding=2, groups=2),
            nn.ReLU(inplace=True),
            local_response_norm(),
            nn.MaxPool2d(3, 2),  # (B, 256, 13, 13)
            nn.Conv2d(256, 384, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(384, 384, 3, padding=1, groups=2),
            nn.ReLU(inplace=True),
            nn.Conv2d(384, 256, 3, padding=1, groups=2),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, 2),  # (B, 256, 6, 6)
        )
        self.avgpool = nn.AdaptiveAvgPool2d(6)
        self.classifier = nn.Sequential(
            nn.Linear(256 * 6 * 6, 4096),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            nn.Linear(4096, 4096),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            nn.Linear(4096, classes),
        )
        ones = {"features.4", "features.10", "features.12", "classifier.0", "classifier.3"}
        for name, module in self.named_modules():
            if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
                nn.init.normal_(module.weight, std=0.01)
                nn.init.constant_(module.bias, float(name in ones))

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, 224, 224) -> logits (B, classes); other sizes, from 63 pixels, are pooled to the same 6×6 features."""
        return self.classifier(self.avgpool(self.features(pixels)).flatten(1))


def local_response_norm() -> nn.LocalResponseNorm:
    """Return section 3.3 of the paper: x / (2 + 10⁻⁴ Σ x²)^0.75, the sum over the five nearest maps."""
    # torch divides alpha by the number of maps, the paper does not.
    return nn.LocalResponseNorm(5, alpha=5e-4, beta=0.75, k=2.0)

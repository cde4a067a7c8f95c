import itertools

import pytest
import torch
from torch.nn import functional as F

from genpipe.vision.resnet import ResNet
from genpipe.vision.segmentation import SegmentationConfig, SegmentationUNet
from genpipe.vision.transfer import load_encoder

TINY = SegmentationConfig(classes=3, width=4, levels=3)
TINY_RESNET = SegmentationConfig(classes=3, width=4, encoder=18)


def test_the_papers_network_has_its_layers_and_parameters() -> None:
    with torch.device("meta"):
        network = SegmentationUNet(SegmentationConfig(classes=2))
    widths = (64, 128, 256, 512, 1024)

    def two(before: int, after: int) -> int:  # two 3×3 convolutions without bias, two norms
        return 9 * before * after + 9 * after**2 + 4 * after

    down = sum(two(before, after) for before, after in zip((3, *widths), widths, strict=False))
    up = sum(4 * wide * narrow + narrow + two(wide, narrow) for narrow, wide in itertools.pairwise(widths))
    assert sum(parameter.numel() for parameter in network.parameters()) == down + up + 2 * 64 + 2 == 31_037_698


def test_two_levels_compute_what_the_paper_draws(shake) -> None:
    torch.manual_seed(0)
    network = SegmentationUNet(SegmentationConfig(classes=2, width=3, levels=2)).eval()
    shake(network)
    state = network.state_dict()

    def two(x: torch.Tensor, name: str) -> torch.Tensor:
        for index in (0, 1):
            norm = f"{name}.{index}.1"
            x = F.conv2d(x, state[f"{name}.{index}.0.weight"], padding=1)
            centred = x - state[f"{norm}.running_mean"][:, None, None]
            x = centred / (state[f"{norm}.running_var"][:, None, None] + 1e-5).sqrt()
            x = (x * state[f"{norm}.weight"][:, None, None] + state[f"{norm}.bias"][:, None, None]).relu()
        return x

    pixels = torch.randn(2, 3, 8, 6)
    fine = two(pixels, "encoder.levels.0")
    coarse = two(F.max_pool2d(fine, 2), "encoder.levels.1")
    raised = F.conv_transpose2d(coarse, state["up.0.up.weight"], state["up.0.up.bias"], stride=2)
    joined = two(torch.cat([fine, raised], dim=1), "up.0.convs")
    expected = F.conv2d(joined, state["head.weight"], state["head.bias"])
    with torch.no_grad():
        assert expected.std() > 0.01 and torch.allclose(network(pixels), expected, atol=1e-5)


@pytest.mark.parametrize("config", [TINY, TINY_RESNET], ids=["paper", "ResNet"])
@pytest.mark.parametrize("size", [(32, 32), (33, 47), (5, 1)])
def test_every_pixel_of_any_size_gets_its_logits(config: SegmentationConfig, size: tuple[int, int]) -> None:
    with torch.no_grad():
        assert SegmentationUNet(config).eval()(torch.zeros(1, 3, *size)).shape == (1, 3, *size)


@pytest.mark.parametrize("config", [TINY, TINY_RESNET], ids=["paper", "ResNet"])
def test_every_parameter_gets_a_gradient(config: SegmentationConfig) -> None:
    torch.manual_seed(0)
    network = SegmentationUNet(config).train()
    labels = torch.randint(3, (4, 64, 64))
    F.cross_entropy(network(torch.randn(4, 3, 64, 64)), labels).backward()
    dead = [
        name
        for name, parameter in network.named_parameters()
        if parameter.grad is None or not parameter.grad.isfinite().all() or not parameter.grad.any()
    ]
    assert not dead


def test_an_encoder_takes_what_a_classifier_learned() -> None:
    torch.manual_seed(0)
    classifier, network = ResNet(18, 5, width=4), SegmentationUNet(TINY_RESNET)
    load_encoder(network.encoder, classifier)  # pyright: ignore[reportArgumentType]
    pixels = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        pooled = network.eval().encoder(pixels)[-1].mean(dim=(2, 3))
        assert torch.allclose(classifier.eval()(pixels), classifier.fc(pooled), atol=1e-6)
    with pytest.raises(ValueError, match="build them alike"):
        load_encoder(network.encoder, ResNet(34, 5, width=4))  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(("name", "value"), [("classes", 1), ("width", 0), ("levels", 1)])
def test_what_is_no_segmentation_is_refused(name: str, value: int) -> None:
    with pytest.raises(ValueError, match=f"{name} {value} of a segmentation is too small"):
        SegmentationConfig(**{"classes": 2, name: value})

import pytest
import torch
from torch import nn

from genpipe.vision.alexnet import AlexNet, AlexNet2012, local_response_norm

# torchvision.models.alexnet().state_dict(), biases left out.
TORCHVISION = {
    "features.0.weight": (64, 3, 11, 11),
    "features.3.weight": (192, 64, 5, 5),
    "features.6.weight": (384, 192, 3, 3),
    "features.8.weight": (256, 384, 3, 3),
    "features.10.weight": (256, 256, 3, 3),
    "classifier.1.weight": (4096, 9216),
    "classifier.4.weight": (4096, 4096),
    "classifier.6.weight": (1000, 4096),
}


def test_the_state_dict_is_torchvisions() -> None:
    state = AlexNet().state_dict()
    biases = {key.replace("weight", "bias"): shape[:1] for key, shape in TORCHVISION.items()}
    assert {key: tuple(tensor.shape) for key, tensor in state.items()} == TORCHVISION | biases
    assert sum(tensor.numel() for tensor in state.values()) == 61_100_840


def test_the_papers_form_is_counted_by_hand() -> None:
    maps = [96 * (3 * 121 + 1), 256 * (48 * 25 + 1), 384 * (256 * 9 + 1), 384 * (192 * 9 + 1), 256 * (192 * 9 + 1)]
    vectors = [4096 * (9216 + 1), 4096 * (4096 + 1), 1000 * (4096 + 1)]
    assert sum(p.numel() for p in AlexNet2012().parameters()) == sum(maps + vectors) == 60_965_224


def test_the_papers_form_begins_as_its_section_5_says() -> None:
    torch.manual_seed(0)
    layers = [m for m in AlexNet2012().modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert [layer.bias.unique().item() for layer in layers if layer.bias is not None] == [0, 1, 0, 1, 1, 1, 1, 0]
    assert all(abs(layer.weight.std().item() - 0.01) < 2e-4 for layer in layers)


def test_torchvisions_form_begins_with_hes_weights_and_a_signal_that_lasts() -> None:
    torch.manual_seed(0)
    network = AlexNet(10).eval()
    layers = [module for module in network.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    for layer in layers:
        expected = 0.01 if layer is layers[-1] else (2 / layer.weight[0].numel()) ** 0.5
        assert layer.weight.std().item() == pytest.approx(expected, rel=0.02)
        assert layer.bias is not None and not layer.bias.any()
    with torch.no_grad():
        logits = network(torch.randn(8, 3, 64, 64))
    # What differs between images; with torch's own weights it is 0.0004.
    assert 0.05 < logits.std(dim=0).mean() < 2


def test_response_normalisation_is_the_papers_formula() -> None:
    x = 20 * torch.randn(1, 7, 2, 2, generator=torch.Generator().manual_seed(0))
    expected = torch.empty_like(x)
    for i in range(7):
        near = x[:, max(0, i - 2) : i + 3].square().sum(dim=1)
        expected[:, i] = x[:, i] / (2 + 1e-4 * near) ** 0.75
    assert torch.allclose(local_response_norm()(x), expected, rtol=1e-6)


@pytest.mark.parametrize("build", [AlexNet, AlexNet2012])
def test_224_pixels_leave_six_by_six_features(build: type[AlexNet] | type[AlexNet2012]) -> None:
    with torch.device("meta"):
        assert build().features(torch.empty(2, 3, 224, 224)).shape == (2, 256, 6, 6)
        assert build(7)(torch.empty(2, 3, 224, 224)).shape == (2, 7)


@pytest.mark.parametrize("build", [AlexNet, AlexNet2012])
def test_every_parameter_gets_a_gradient(build: type[AlexNet] | type[AlexNet2012], gradients) -> None:
    torch.manual_seed(0)
    assert all(gradients(build(5), (4, 3, 96, 96)).values())


def test_logits_are_torchvisions(torchvision_models) -> None:
    torch.manual_seed(0)
    theirs, ours = torchvision_models.alexnet().eval(), AlexNet().eval()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    pixels = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        assert (ours(pixels) - theirs(pixels)).abs().max() <= 1e-4

import torch

from genpipe.vision.lenet import LeNet5


def test_parameters_are_counted_by_hand() -> None:
    layers = [6 * (25 + 1), 16 * (6 * 25 + 1), 120 * (16 * 25 + 1), 84 * (120 + 1), 10 * (84 + 1)]
    assert sum(p.numel() for p in LeNet5().parameters()) == sum(layers) == 61_706


def test_classes_channels_and_larger_images() -> None:
    assert LeNet5()(torch.zeros(2, 1, 32, 32)).shape == (2, 10)
    assert LeNet5(3, channels=3)(torch.zeros(2, 3, 48, 40)).shape == (2, 3)


def test_every_parameter_gets_a_gradient(gradients) -> None:
    torch.manual_seed(0)
    assert all(gradients(LeNet5(), (4, 1, 32, 32)).values())

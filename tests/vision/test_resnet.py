"""ResNets compute what transformers' (and, where it imports, torchvision's) compute from the same weights."""

import re

import pytest
import torch
from transformers import ResNetConfig, ResNetForImageClassification

from genpipe.vision.resnet import DEPTHS, BottleneckUnit, ResNet, ResNetEncoder

# torchvision's counts; all keys of a unit with a shortcut, of each kind.
PARAMETERS = {18: 11_689_512, 34: 21_797_672, 50: 25_557_032, 101: 44_549_160, 152: 60_192_808}
NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def norm(name: str, width: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.{key}": () if key == "num_batches_tracked" else (width,) for key in NORM}


def test_the_state_dict_of_resnet_18_is_torchvisions() -> None:
    expected = {"conv1.weight": (64, 3, 7, 7), **norm("bn1", 64), "fc.weight": (1000, 512), "fc.bias": (1000,)}
    width = 64
    for stage, out in enumerate((64, 128, 256, 512), 1):
        for unit in (0, 1):
            name = f"layer{stage}.{unit}"
            expected |= {f"{name}.conv1.weight": (out, width, 3, 3), **norm(f"{name}.bn1", out)}
            expected |= {f"{name}.conv2.weight": (out, out, 3, 3), **norm(f"{name}.bn2", out)}
            if width != out:
                shortcut = f"{name}.downsample"
                expected |= {f"{shortcut}.0.weight": (out, width, 1, 1), **norm(f"{shortcut}.1", out)}
            width = out
    assert {key: tuple(tensor.shape) for key, tensor in ResNet(18).state_dict().items()} == expected


def test_the_state_dict_of_resnet_50_is_torchvisions() -> None:
    expected = {"conv1.weight": (64, 3, 7, 7), **norm("bn1", 64), "fc.weight": (1000, 2048), "fc.bias": (1000,)}
    width = 64
    for stage, (inner, units) in enumerate(zip((64, 128, 256, 512), (3, 4, 6, 3), strict=True), 1):
        for unit in range(units):
            name, out = f"layer{stage}.{unit}", 4 * inner
            expected |= {f"{name}.conv1.weight": (inner, width, 1, 1), **norm(f"{name}.bn1", inner)}
            expected |= {f"{name}.conv2.weight": (inner, inner, 3, 3), **norm(f"{name}.bn2", inner)}
            expected |= {f"{name}.conv3.weight": (out, inner, 1, 1), **norm(f"{name}.bn3", out)}
            if unit == 0:
                shortcut = f"{name}.downsample"
                expected |= {f"{shortcut}.0.weight": (out, width, 1, 1), **norm(f"{shortcut}.1", out)}
            width = out
    assert {key: tuple(tensor.shape) for key, tensor in ResNet(50).state_dict().items()} == expected


@pytest.mark.parametrize("depth", DEPTHS)
def test_parameters_are_those_of_torchvision(depth: int) -> None:
    with torch.device("meta"):
        assert sum(parameter.numel() for parameter in ResNet(depth).parameters()) == PARAMETERS[depth]


def test_a_quarter_of_the_width_is_a_sixteenth_of_the_weights() -> None:
    with torch.device("meta"):
        wide, narrow = (
            sum(p.numel() for p in ResNet(18, width=w).layer3.parameters() if p.ndim == 4) for w in (64, 16)
        )
        assert wide == 16 * narrow and ResNet(50, width=16).channels == (16, 64, 128, 256, 512)


def test_a_bottleneck_strides_on_its_3x3() -> None:
    unit = BottleneckUnit(8, 2, stride=2)
    assert [conv.stride for conv in (unit.conv1, unit.conv2, unit.conv3)] == [(1, 1), (2, 2), (1, 1)]


def transformers_key(ours: str) -> str:
    """What transformers calls a tensor of our state dict."""
    if ours.startswith("fc."):
        return f"classifier.1.{ours[3:]}"
    name = re.sub(r"^conv1\.", "resnet.embedder.embedder.convolution.", ours)
    name = re.sub(r"^bn1\.", "resnet.embedder.embedder.normalization.", name)
    name = re.sub(r"^layer(\d)\.", lambda m: f"resnet.encoder.stages.{int(m[1]) - 1}.layers.", name)
    name = name.replace("downsample.0.", "shortcut.convolution.").replace("downsample.1.", "shortcut.normalization.")
    name = re.sub(r"\.conv(\d)\.", lambda m: f".layer.{int(m[1]) - 1}.convolution.", name)
    return re.sub(r"\.bn(\d)\.", lambda m: f".layer.{int(m[1]) - 1}.normalization.", name)


@pytest.mark.parametrize("depth", DEPTHS)
def test_logits_are_those_of_transformers(depth: int, shake) -> None:
    torch.manual_seed(0)
    unit, units = DEPTHS[depth]
    config = ResNetConfig(
        depths=list(units),
        hidden_sizes=[width * unit.expansion for width in (64, 128, 256, 512)],
        layer_type="bottleneck" if unit.expansion == 4 else "basic",
    )
    config.num_labels = 1000
    ours, theirs = ResNet(depth).eval(), ResNetForImageClassification(config).eval()
    shake(ours)
    theirs.load_state_dict({transformers_key(key): tensor for key, tensor in ours.state_dict().items()}, strict=True)
    pixels = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = theirs(pixels).logits
        assert expected.std() > 0.1  # or else anything would agree
        assert (ours(pixels) - expected).abs().max() <= 1e-4


@pytest.mark.parametrize("depth", DEPTHS)
def test_logits_are_torchvisions(depth: int, torchvision_models, shake) -> None:
    torch.manual_seed(0)
    theirs, ours = getattr(torchvision_models, f"resnet{depth}")().eval(), ResNet(depth).eval()
    shake(theirs)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    pixels = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        assert (ours(pixels) - theirs(pixels)).abs().max() <= 1e-4


@pytest.mark.parametrize("depth", DEPTHS)
def test_every_parameter_gets_a_gradient(depth: int, gradients) -> None:
    torch.manual_seed(0)
    assert all(gradients(ResNet(depth, 5, width=16), (4, 3, 64, 64)).values())


def test_the_encoders_maps_halve_from_one_to_the_next() -> None:
    with torch.no_grad():
        maps = ResNetEncoder(18, width=4).eval()(torch.zeros(1, 3, 65, 96))
    sizes = [(4, 33, 48), (4, 17, 24), (8, 9, 12), (16, 5, 6), (32, 3, 3)]
    assert [tuple(part.shape[1:]) for part in maps] == sizes


def test_other_depths_and_widths_are_refused() -> None:
    with pytest.raises(ValueError, match="a ResNet of width 0 has no channels"):
        ResNet(18, width=0)
    with pytest.raises(ValueError, match="a ResNet of 20 layers is not in the paper: use 18, 34, 50, 101, 152"):
        ResNet(20)

import pytest
import torch
from torch import Tensor, nn

from genpipe.vision.detection import Detector, DetectorConfig
from genpipe.vision.inference import fold_batch_norms, prepare_for_inference
from genpipe.vision.resnet import ResNet
from genpipe.vision.segmentation import SegmentationConfig, SegmentationUNet

NETWORKS = {
    "ResNet-18": lambda: ResNet(18, 5),
    "ResNet-50": lambda: ResNet(50, 5, width=16),
    "U-Net": lambda: SegmentationUNet(SegmentationConfig(classes=3, width=8, levels=3)),
    "U-Net on ResNet": lambda: SegmentationUNet(SegmentationConfig(classes=3, width=8, encoder=18)),
    "detector": lambda: Detector(DetectorConfig(classes=3, width=8, channels=16)),
}


def outputs(model: nn.Module, pixels: Tensor) -> tuple[Tensor, ...]:
    with torch.no_grad():
        found = model(pixels)
    return found if isinstance(found, tuple) else (found,)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_computes_the_same_without_its_norms(name: str, shake) -> None:
    torch.manual_seed(0)
    model = NETWORKS[name]()
    shake(model)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    pixels = torch.randn(2, 3, 64, 64)
    prepared = prepare_for_inference(model)
    for expected, actual in zip(outputs(model.eval(), pixels), outputs(prepared, pixels), strict=True):
        assert expected.std() > 1e-3
        assert (actual - expected).abs().max() <= 1e-4 * expected.abs().max()
    assert any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    assert not any(isinstance(module, nn.BatchNorm2d) for module in prepared.modules())
    assert all(torch.equal(before[key], tensor) for key, tensor in model.state_dict().items())


def test_a_norm_without_its_convolution_stays() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3), nn.ReLU(), nn.BatchNorm2d(4))
    folded = fold_batch_norms(model)
    assert [type(module) for module in folded] == [nn.BatchNorm2d, nn.Conv2d, nn.ReLU, nn.BatchNorm2d]
    unkept = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False))
    assert isinstance(fold_batch_norms(unkept)[1], nn.BatchNorm2d)


def test_what_is_prepared_is_in_evaluation_in_the_dtype_and_order_asked_for() -> None:
    prepared = prepare_for_inference(ResNet(18, 5, width=4).train(), dtype=torch.bfloat16)
    assert not any(module.training for module in prepared.modules())
    assert {parameter.dtype for parameter in prepared.parameters()} == {torch.bfloat16}
    assert prepared.get_parameter("layer1.0.conv1.weight").is_contiguous(memory_format=torch.channels_last)
    (logits,) = outputs(prepared, torch.zeros(1, 3, 64, 64, dtype=torch.bfloat16))
    assert logits.shape == (1, 5) and logits.dtype == torch.bfloat16

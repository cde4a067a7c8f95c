import itertools

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from genpipe.blocks import PhaseUpsample, ResidualBlock, Upsample, conv_output_size, conv_unit, pooling_head


def test_output_sizes_are_torchs_and_below_one_exactly_where_torch_refuses() -> None:
    refused = 0
    for size, kernel, stride, padding, dilation in itertools.product(
        (1, 2, 5, 7, 16, 31), (1, 2, 3, 5, 7), (1, 2, 3, 4), (0, 1, 3), (1, 2, 3)
    ):
        x, weight = torch.zeros(1, 1, size), torch.zeros(1, 1, kernel)
        expected = conv_output_size(size, kernel, stride, padding, dilation)
        try:
            actual = F.conv1d(x, weight, stride=stride, padding=padding, dilation=dilation).shape[-1]
        except RuntimeError:
            assert expected < 1, (size, kernel, stride, padding, dilation)
            refused += 1
            continue
        assert actual == expected, (size, kernel, stride, padding, dilation)
        if padding <= kernel // 2:  # as far as torch lets a pooling be padded
            pooled = F.max_pool1d(x, kernel, stride, padding, dilation)
            assert pooled.shape[-1] == expected
    assert refused


@pytest.mark.parametrize(
    ("arguments", "name"),
    [((0, 1), "size 0"), ((8, 0), "kernel 0"), ((8, 1, 0), "stride 0"), ((8, 1, 1, -1), "padding -1"),
     ((8, 1, 1, 0, 0), "dilation 0")],
)  # fmt: skip
def test_what_no_convolution_has_is_refused(arguments: tuple[int, ...], name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} of a convolution is too small"):
        conv_output_size(*arguments)


def test_a_conv_unit_is_convolution_then_norm_then_activation() -> None:
    torch.manual_seed(0)
    unit = conv_unit(3, 8, stride=2).eval()
    conv, norm = unit[0], unit[1]
    assert isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d)
    x = torch.randn(2, 3, 9, 9)
    assert torch.equal(unit(x), norm(F.conv2d(x, conv.weight, stride=2, padding=1)).relu())


@pytest.mark.parametrize("kernel", [1, 3, 5, 7])
def test_a_conv_unit_keeps_the_size(kernel: int) -> None:
    assert conv_unit(2, 4, kernel=kernel)(torch.zeros(1, 2, 9, 6)).shape == (1, 4, 9, 6)


def test_only_a_convolution_without_norm_has_a_bias() -> None:
    assert [len(list(conv_unit(2, 4, norm=norm).parameters())) for norm in (None, nn.BatchNorm2d)] == [2, 3]
    bare = conv_unit(2, 4, norm=None, activation=None)
    assert len(bare) == 1 and bare(torch.randn(1, 2, 4, 4, generator=torch.Generator().manual_seed(0))).min() < 0


def test_a_pooling_head_is_a_linear_map_of_means_or_maxima() -> None:
    torch.manual_seed(0)
    maps = torch.randn(2, 3, 8, 12)
    for average in (True, False):
        head = pooling_head(3, 5, size=2, average=average)
        parts = maps.reshape(2, 3, 2, 4, 2, 6)
        pooled = parts.mean(dim=(3, 5)) if average else parts.amax(dim=(3, 5))
        linear = head[-1]
        assert isinstance(linear, nn.Linear)
        assert torch.allclose(head(maps), F.linear(pooled.flatten(1), linear.weight, linear.bias), atol=1e-6)
    assert pooling_head(3, 5)(torch.zeros(1, 3, 7, 1)).shape == (1, 5)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (2, 3), (8, 5)])
@pytest.mark.parametrize("cut", [(0, 0), (1, 0), (0, 1), (1, 1)])
def test_phases_compute_what_upsampling_and_convolution_compute(height: int, width: int, cut: tuple[int, int]) -> None:
    torch.manual_seed(0)
    upsample, x = Upsample(6).eval(), torch.randn(2, 6, height, width)
    size = (2 * height - cut[0], 2 * width - cut[1])
    large = F.interpolate(x, size=size, mode="nearest")
    expected = F.conv2d(large, upsample.conv.weight, upsample.conv.bias, padding=1)
    phases = PhaseUpsample(upsample)
    assert phases(x, size).shape == expected.shape
    assert (phases(x, size) - expected).abs().max() <= 1e-6
    if cut == (0, 0):
        assert torch.equal(phases(x), phases(x, size))


def test_phases_are_summed_before_they_are_rounded() -> None:
    torch.manual_seed(0)
    upsample = Upsample(4).half()
    kernel = upsample.conv.weight.detach().double().transpose(0, 1)
    exact = torch.stack([kernel[:, :, 2], kernel[:, :, 1:].sum(2), kernel[:, :, :2].sum(2), kernel[:, :, 0]], dim=2)
    exact = torch.stack([exact[..., 2], exact[..., 1:].sum(-1), exact[..., :2].sum(-1), exact[..., 0]], dim=-1)
    weight = PhaseUpsample(upsample).to(torch.bfloat16).conv.weight
    assert torch.equal(weight, exact.float().to(torch.bfloat16))


def test_a_residual_block_says_when_its_embedding_is_missing_or_unwanted() -> None:
    x = torch.zeros(1, 8, 4, 4)
    with pytest.raises(ValueError, match="needs its shift"):
        ResidualBlock(8, 8, embedding_channels=4, groups=2)(x)
    with pytest.raises(ValueError, match="takes none"):
        ResidualBlock(8, 8, groups=2).shift(torch.zeros(1, 4))

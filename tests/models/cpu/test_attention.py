"""Blocked attention is softmax attention, in little memory, whatever the scores."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from genpipe.models.attention import Attention, FusedSelfAttention
from genpipe.models.cpu import attention as cpu_attention
from genpipe.models.cpu.attention import blocked_attention
from tests.models.conftest import packs_bf16

pytestmark = packs_bf16


def inputs(rows: int, keys: int, width: int, *, spread: float = 1.0, heads: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    """Strided as a fused projection leaves them; `spread` is the standard deviation of the scores."""
    torch.manual_seed(0)
    scales = (spread * width**-0.5, 1.0, 1.0)
    q, k, v = (
        (scale * torch.randn(2, count, heads, width)).bfloat16().transpose(1, 2)
        for scale, count in zip(scales, (rows, keys, keys), strict=True)
    )
    return q, k, v


def softmax(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.softmax(q.double() @ k.double().mT, dim=-1) @ v.double()


def error(result: Tensor, expected: Tensor) -> float:
    """Root mean square, relative."""
    return float(((result - expected).square().mean() / expected.square().mean()).sqrt())


@torch.inference_mode()
@pytest.mark.parametrize("spread", [0.1, 1.0, 5.0, 50.0])
@pytest.mark.parametrize(
    ("rows", "keys", "width"), [(256, 256, 40), (70, 333, 64), (1, 1, 8), (130, 77, 16), (64, 64, 160), (50, 20, 31)]
)
def test_it_is_softmax_attention(rows: int, keys: int, width: int, spread: float) -> None:
    q, k, v = inputs(rows, keys, width, spread=spread)
    result = blocked_attention(q, k, v, block=64 * keys)  # several blocks
    assert result.dtype == torch.bfloat16 and result.shape == q.shape
    # Three roundings to bf16, where torch's own kernel has two.
    assert error(result, softmax(q, k, v)) <= 4e-3


@torch.inference_mode()
@pytest.mark.parametrize("size", [100.0, 1e4, 1e6])
def test_a_peak_that_the_sample_misses_is_left_to_torch(size: float, monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = inputs(40, 200, 16)
    q[..., 0] = 1.0
    k[:, :, 151, 0] = size  # the sample looks at every third key
    left: list[Any] = []
    original: Any = F.scaled_dot_product_attention

    def recorded(*tensors: Tensor, **settings: Any) -> Tensor:
        left.append(settings)
        return original(*tensors, **settings)

    monkeypatch.setattr(cpu_attention.F, "scaled_dot_product_attention", recorded)
    assert error(blocked_attention(q, k, v), softmax(q, k, v)) <= 4e-3
    assert len(left) == 1
    k[:, :, 151, 0] = 10.0
    assert error(blocked_attention(q, k, v), softmax(q, k, v)) <= 4e-3
    assert len(left) == 1


@torch.inference_mode()
def test_what_is_not_finite_stays_so() -> None:
    q, k, v = inputs(8, 40, 16)
    q[0, 0, 3, 0] = float("nan")
    result = blocked_attention(q, k, v)
    assert result[0, 0, 3].isnan().all() and result[1].isfinite().all()


@torch.inference_mode()
def test_memory_grows_with_the_tokens_and_not_with_their_square() -> None:
    class Largest(TorchDispatchMode):
        numbers = 0

        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = function(*args, **(kwargs or {}))
            if isinstance(result, Tensor):
                self.numbers = max(self.numbers, result.numel())
            return result

    largest = []
    for tokens in (1024, 2048):
        with Largest() as mode:
            blocked_attention(*inputs(tokens, tokens, 16, heads=1), block=16 * 1024)
        largest.append(mode.numbers)
    assert largest[1] <= 2.1 * largest[0] < 1024 * 1024  # 61 keys of 1,024 are sampled, and 63 of 2,048


@torch.inference_mode()
def test_self_attention_takes_it_from_so_many_keys_on(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    plain = Attention(32, heads=2, bias=True)
    seen: list[torch.Size] = []

    def recorded(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        seen.append(k.shape)
        return blocked_attention(q, k, v)

    monkeypatch.setattr("genpipe.models.attention.blocked_attention", recorded)
    fused = FusedSelfAttention(copy.deepcopy(plain), blocked_from=50).bfloat16()
    for tokens in (49, 50):
        x = torch.randn(2, tokens, 32)
        assert error(fused(x.bfloat16()), plain(x)) <= 1.5e-2
    assert seen == [(2, 2, 50, 16)]
    FusedSelfAttention(plain, blocked_from=50)(torch.randn(2, 50, 32))  # fp32 is torch's
    assert len(seen) == 1

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from genpipe.models.conditioning import LONGEST, Conditioning, common_length


def conditioning(rows: int, *, pooled: bool = True) -> Conditioning:
    torch.manual_seed(rows)
    return Conditioning(torch.randn(rows, 5, 8), pooled=torch.randn(rows, 6) if pooled else None)


def test_rows_of_what_was_joined_are_the_parts() -> None:
    parts = [conditioning(1), conditioning(3), conditioning(2)]
    joined = Conditioning.join(parts)
    assert len(joined) == 6
    for part, found in zip(
        parts, (joined.rows([0]), joined.rows(slice(1, 4)), joined.rows(slice(-2, None))), strict=True
    ):
        assert torch.equal(found.context, part.context)
        assert found.pooled is not None and part.pooled is not None and torch.equal(found.pooled, part.pooled)
        assert found.time_ids is found.extra_channels is found.guidance_scale is None


def test_its_size_counts_every_tensor() -> None:
    assert conditioning(2, pooled=False).nbytes == 2 * 5 * 8 * 4
    assert conditioning(2).nbytes == 2 * (5 * 8 + 6) * 4


def test_what_does_not_go_together_is_refused() -> None:
    with pytest.raises(ValueError, match="1 of 2 parts have pooled: all must, or none"):
        Conditioning.join([conditioning(1), conditioning(1, pooled=False)])
    with pytest.raises(ValueError, match="at least one"):
        Conditioning.join([])
    with pytest.raises(ValueError, match="time_ids has 2 rows where the context has 1"):
        Conditioning(torch.zeros(1, 5, 8), time_ids=torch.zeros(2, 6))


def test_contexts_of_different_lengths_are_repeated_to_one_that_says_the_same_to_attention() -> None:
    generator = torch.Generator("cpu").manual_seed(0)
    parts = [Conditioning(torch.randn(1, length, 8, generator=generator)) for length in (4, 6, 12, 4)]
    joined = Conditioning.join(parts)
    assert joined.context.shape == (4, 12, 8)
    query = torch.randn(1, 3, 8, generator=generator)
    for row, part in enumerate(parts):
        found, alone = (scaled_dot_product_attention(query, k, k) for k in (joined.rows([row]).context, part.context))
        assert torch.allclose(found, alone, atol=1e-6)


def test_contexts_are_never_repeated_beyond_a_limit() -> None:
    assert common_length([77, 77]) == 77 and common_length([77, 154, 231]) == 462
    assert common_length([77 * 13, 77 * 17]) == 77 * 17 <= LONGEST

"""Prompts become what transformers makes of them, joined and pooled as SDXL wants it, and no prompt is encoded twice."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from genpipe.models.conditioning import Conditioning
from genpipe.models.finite import NonFiniteError
from genpipe.models.text_encoder import TextEncoder
from genpipe.models.tokenizer import Tokenizer
from genpipe.prompts.encoder import PromptEncoder, TextPart
from tests.conftest import tiny_parts, tiny_xl_parts

CPU = torch.device("cpu")
pytestmark = pytest.mark.filterwarnings("error")


@pytest.fixture(autouse=True)
def no_gradients() -> Iterator[None]:
    with torch.inference_mode():
        yield


class Lender:
    """Lends one network, and counts how often."""

    def __init__(self, encoder: TextEncoder) -> None:
        self.encoder, self.lent = encoder.eval(), 0
        self.encoded: list[torch.Tensor] = []
        encoder.register_forward_hook(lambda module, given, result: self.encoded.append(given[0]))

    @contextmanager
    def __call__(self) -> Iterator[TextEncoder]:
        self.lent += 1
        yield self.encoder


def encoder_of(parts: dict[str, Any], **settings: Any) -> tuple[PromptEncoder, list[Lender]]:
    lenders = [Lender(encoder) for encoder in parts["text_encoders"]]
    pairs = zip(parts["tokenizers"], lenders, strict=True)
    return PromptEncoder([TextPart(*pair) for pair in pairs], device=CPU, model="tiny", **settings), lenders


def ids(tokenizer: Tokenizer, prompt: str) -> torch.Tensor:
    return torch.tensor(tokenizer([prompt]).ids)


def test_one_encoder_gives_its_normalised_context_alone() -> None:
    parts = tiny_parts()
    encode, _ = encoder_of(parts)
    for skip in (0, 2):
        found = encode(["a red cat", "a blue dog"], clip_skip=skip)
        for row, prompt in enumerate(("a red cat", "a blue dog")):
            expected = parts["text_encoders"][0](ids(parts["tokenizers"][0], prompt), clip_skip=skip)
            assert torch.equal(found.context[[row]], expected.context)
        assert found.pooled is None and found.time_ids is None


def test_penultimate_layers_are_joined_and_the_last_encoder_pools() -> None:
    parts = tiny_xl_parts()
    encode, _ = encoder_of(parts, pooled=True)
    found = encode(["a red cat", "a blue dog"], clip_skip=[1, 0])
    for row, (prompt, skip) in enumerate((("a red cat", 1), ("a blue dog", 0))):
        first, second = (
            encoder(ids(tokenizer, prompt), clip_skip=skip, penultimate=True)
            for encoder, tokenizer in zip(parts["text_encoders"], parts["tokenizers"], strict=True)
        )
        assert torch.equal(found.context[[row]], torch.cat([first.context, second.context], dim=-1))
        assert found.pooled is not None and torch.equal(found.pooled[[row]], second.pooled)


def test_a_prompt_is_encoded_once_for_each_number_of_layers_left_out() -> None:
    encode, lenders = encoder_of(tiny_xl_parts(), pooled=True)
    first = encode(["a", "b", "a"])
    assert [len(lender.encoded) for lender in lenders] == [2, 2]
    again = encode(["b", "a"])
    assert torch.equal(again.context, first.context[[1, 0]])
    assert [(len(lender.encoded), lender.lent) for lender in lenders] == [(2, 1)] * 2
    spent = encode.seconds
    encode(["a"], clip_skip=1)
    assert len(lenders[0].encoded) == 3 and encode.seconds > spent > 0


def test_what_is_kept_is_bounded_and_what_was_used_last_stays() -> None:
    parts = tiny_parts()
    row = encoder_of(parts)[0](["a"]).nbytes
    encode, (lender,) = encoder_of(parts, kept_bytes=2 * row)

    def encoded(prompts: Sequence[str]) -> int:
        before = len(lender.encoded)
        encode(prompts)
        return len(lender.encoded) - before

    assert [encoded(prompts) for prompts in (["a"], ["b"], ["a"], ["c"])] == [1, 1, 0, 1]
    assert encoded(["a"]) == 0  # "b", used longest ago, was let go
    assert encoded(["b"]) == 1
    assert encoded(["a", "b", "c"]) > 0  # more than are kept at once are encoded all the same
    assert encoder_of(parts, kept_bytes=0)[0](["a"]).context.shape == (1, 16, 32)


def test_a_prompt_does_not_depend_on_its_batch() -> None:
    encode, _ = encoder_of(tiny_xl_parts(), pooled=True)
    together = encode(["a red cat", "a blue dog", "a pirate ship at sea"])
    alone, _ = encoder_of(tiny_xl_parts(), pooled=True)
    for row, prompt in enumerate(("a red cat", "a blue dog", "a pirate ship at sea")):
        found = alone([prompt])
        assert found.pooled is not None and together.pooled is not None
        assert torch.equal(found.context[0], together.context[row]) and torch.equal(
            found.pooled[0], together.pooled[row]
        )


def test_a_long_prompt_is_cut_with_one_warning_each_time() -> None:
    encode, _ = encoder_of(tiny_xl_parts(), pooled=True)
    long = "a red cat and a blue dog " * 4
    with pytest.warns(UserWarning, match=r"cut after 14 tokens, leaving out '.*dog'") as caught:
        encode([long.strip(), "a cat"], syntax="plain")
    assert len(caught) == 1
    with pytest.warns(UserWarning, match=r"cut after 14 tokens, leaving out '.*dog'") as again:  # its vectors are kept
        encode([long.strip()], syntax="plain")
    assert len(again) == 1
    with pytest.warns(UserWarning, match=r"cut after 280 tokens, leaving out 'cat .*…'") as caught:
        encode(["cat " * 1000, "a cat"])
    assert len(caught) == 1


@pytest.mark.parametrize("part", [0, 1])
def test_a_prompt_that_overflows_is_encoded_in_fp32_and_the_others_are_left_alone(part: int) -> None:
    parts = tiny_xl_parts()
    usual, _ = encoder_of(
        {**parts, "text_encoders": [e.bfloat16() for e in tiny_xl_parts()["text_encoders"]]}, pooled=True
    )
    encoders = [encoder.bfloat16() for encoder in parts["text_encoders"]]
    cat, dog = (set(ids(parts["tokenizers"][0], prompt)[0].tolist()) for prompt in ("cat", "a blue dog"))
    only = min(cat - dog)

    def broken_in_bf16(module: TextEncoder, given: Any, result: Any) -> Any:
        bad = (given[0] == only).any() and module.final_norm.weight.dtype == torch.bfloat16
        return type(result)(result.context * torch.inf, result.pooled) if bad else result

    encoders[part].register_forward_hook(broken_in_bf16)
    encode, _ = encoder_of({**parts, "text_encoders": encoders}, pooled=True)
    found, expected = encode(["cat", "a blue dog"]), usual(["cat", "a blue dog"])
    assert found.context.isfinite().all()
    assert torch.equal(found.context[1], expected.context[1].to(found.context.dtype))
    assert 0 < float((found.context[0] - expected.context[0]).abs().max()) < 0.1


def test_what_is_not_finite_in_fp32_either_is_an_error_that_names_the_weights() -> None:
    parts = tiny_parts()
    with torch.no_grad():
        parts["text_encoders"][0].layers[1].norm1.weight[3] = float("nan")
    encode, _ = encoder_of(parts)
    with pytest.raises(NonFiniteError, match=r"text encoder of tiny .*layers\.1\.norm1\.weight"):
        encode(["a red cat"])


def test_threads_may_encode_at_once() -> None:
    from concurrent.futures import ThreadPoolExecutor

    encode, _ = encoder_of(tiny_parts(), kept_bytes=8000)
    prompts = [f"{color} {thing}" for color in ("red", "blue") for thing in ("cat", "dog", "ship", "circle")]
    expected = {prompt: encode([prompt]).context for prompt in prompts}

    def check(start: int) -> bool:
        with torch.inference_mode():
            order = prompts[start:] + prompts[:start]
            found: Conditioning = encode(order)
            return all(torch.equal(found.context[[row]], expected[prompt]) for row, prompt in enumerate(order))

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(check, [k % 8 for k in range(40)]))


@pytest.mark.parametrize("count", [1, 3, 4, 9])
def test_prompts_encoded_together_become_what_each_becomes_alone(count: int) -> None:
    prompts = ["a red cat", "a (blue:1.3) dog", *(f"ship {k} " * k for k in range(7))][:count]
    skips = [k % 2 for k in range(count)]
    alone, _ = encoder_of(tiny_xl_parts(), pooled=True)
    together, lenders = encoder_of(tiny_xl_parts(), pooled=True, rows=4)
    found, expected = together(prompts, clip_skip=skips), alone(prompts, clip_skip=skips)
    assert {len(ids) for lender in lenders for ids in lender.encoded} == {4}
    torch.testing.assert_close(found.context, expected.context)
    torch.testing.assert_close(found.pooled, expected.pooled)


def test_what_a_prompt_becomes_does_not_depend_on_those_that_are_encoded_with_it() -> None:
    first, second = (encoder_of(tiny_parts(), rows=4)[0] for _ in range(2))
    assert torch.equal(first(["a red cat"]).context, second(["a blue dog", "a ship", "a red cat"]).context[[2]])

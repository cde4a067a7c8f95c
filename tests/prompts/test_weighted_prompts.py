"""Contexts of weighted and long prompts against A1111's formulas, written out for prompts whose weights are known."""

import random
from contextlib import nullcontext
from functools import partial
from itertools import count
from typing import Any

import numpy as np
import pytest
import torch

from genpipe.models.text_encoder import TextEncoder
from genpipe.models.tokenizer import Tokenizer, train_tokenizer
from genpipe.prompts.encoder import PromptEncoder, TextPart
from tests.conftest import tiny_xl_parts

CPU = torch.device("cpu")
WORDS = ["a", "red", "cat", "blue dog", "pirate ship", ",", "at sea,", "круг", "and", "синий квадрат", "x-y", "(real)"]
Token = tuple[int, float]


@pytest.fixture(scope="module")
def parts() -> dict[str, Any]:
    """SDXL's two encoders, with vectors whose mean is not near 0, as random ones' is: the formula divides by it."""
    parts = tiny_xl_parts(length=77)
    generator = torch.Generator("cpu").manual_seed(3)
    for encoder in parts["text_encoders"]:
        for tensor in (encoder.final_norm.weight, encoder.final_norm.bias):
            tensor.data = 0.5 + torch.rand(tensor.shape, generator=generator)
        encoder.position_embedding.weight.data += 0.5
    return parts


def encoder_of(parts: dict[str, Any], **settings: Any) -> PromptEncoder:
    pairs = zip(parts["tokenizers"], parts["text_encoders"], strict=True)
    texts = [TextPart(tokenizer, partial(nullcontext, encoder.eval())) for tokenizer, encoder in pairs]
    return PromptEncoder(texts, device=CPU, model="tiny", **settings)


def generated(rng: random.Random, length: int) -> tuple[str, list[list[tuple[str, float]]]]:
    """A prompt in A1111's grammar, and the texts and weights that it was written from, between one BREAK and the next."""
    said: list[list[tuple[str, float]]] = [[]]

    def write(words: int, weight: float, depth: int) -> str:
        pieces = []
        while words > 0:
            kind, size = rng.random(), min(words, rng.randrange(1, 12))
            if depth < 3 and kind < 0.3:
                form, factor = rng.choice(
                    [("(%s)", 1.1), ("[%s]", 1 / 1.1), ("(%s:1.3)", 1.3), ("(%s:.4)", 0.4), ("((%s) )", 1.21)]
                )
                pieces.append(form % write(size, weight * factor, depth + 1))
            elif depth == 0 and kind < 0.33:
                pieces.append("BREAK")
                said.append([])
            else:
                text = " ".join(rng.choices(WORDS, k=size))
                said[-1].append((text, weight))
                pieces.append(text.replace("(", r"\(").replace(")", r"\)"))
            words -= size
        return " ".join(pieces)

    return write(length, 1.0, 0), said


def in_chunks(tokens: list[Token], comma: int | None) -> list[list[Token]]:
    """75 at a time; a comma among the last 20 ends a chunk, unless the next token is one itself."""
    chunks = []
    while len(tokens) > 75:
        near = [index for index in range(55, 75) if tokens[index][0] == comma]
        size = near[-1] + 1 if near and tokens[75][0] != comma else 75
        chunks.append(tokens[:size])
        tokens = tokens[size:]
    return [*chunks, tokens]


@torch.inference_mode()
def expected(
    said: list[list[tuple[str, float]]], tokenizer: Tokenizer, encoder: TextEncoder, *, penultimate: bool
) -> Any:
    """The context (T, D) in double precision, and the pooled vector of the first chunk."""
    chunks = []
    for section in said:
        tokens = [(token, weight) for text, weight in section for token in tokenizer.encode(text)[0]]
        chunks += in_chunks(tokens, tokenizer.comma_id)
    if len(chunks) > 1 and not chunks[-1]:
        chunks.pop()  # nothing follows the last BREAK
    contexts, pooled = [], None
    for chunk in chunks:
        ids = [tokenizer.bos_id, *(token for token, _ in chunk), tokenizer.eos_id]
        ids += [tokenizer.pad_id] * (77 - len(ids))
        weights = np.ones((77, 1))
        weights[1 : len(chunk) + 1, 0] = [weight for _, weight in chunk]
        encoding = encoder(torch.tensor([ids]), penultimate=penultimate)
        pooled = encoding.pooled if pooled is None else pooled
        z = encoding.context[0].double().numpy()
        contexts.append(z * weights * (z.mean() / (z * weights).mean()))
    return np.concatenate(contexts), pooled


def test_contexts_of_200_generated_prompts_are_those_of_the_formulas(parts: dict[str, Any]) -> None:
    rng = random.Random(0)
    for pooled in (False, True):
        used = (
            parts if pooled else {name: each[:1] if isinstance(each, tuple) else each for name, each in parts.items()}
        )
        encode = encoder_of(used, pooled=pooled)
        lengths = set()
        for _ in range(100):
            prompt, said = generated(rng, rng.choice([3, 10, 40, 90, 150]))
            found = encode([prompt])
            both = [
                expected(said, tokenizer, encoder, penultimate=pooled)
                for tokenizer, encoder in zip(used["tokenizers"], used["text_encoders"], strict=True)
            ]
            context = np.concatenate([context for context, _ in both], axis=-1)
            assert found.context.shape == (1, *context.shape), prompt
            scale = np.abs(context).max()
            assert np.abs(found.context[0].numpy() - context).max() <= 1e-5 * max(1.0, scale), prompt
            assert (found.pooled is not None) == pooled
            assert found.pooled is None or torch.equal(found.pooled, both[-1][1])
            lengths.add(len(context) // 77)
        assert {1, 2, 3} <= lengths


@pytest.mark.parametrize("tokens", [0, 1, 75])
def test_a_prompt_without_signs_is_read_as_it_is(parts: dict[str, Any], tokens: int) -> None:
    encode, plain = encoder_of(parts, pooled=True), encoder_of(parts, pooled=True)
    for prompt in ("a " * tokens, "a red cat: at sea, 3 ships!"):
        found, wanted = encode([prompt]), plain([prompt], syntax="plain")
        assert torch.equal(found.context, wanted.context)
        assert found.pooled is not None and wanted.pooled is not None and torch.equal(found.pooled, wanted.pooled)


@pytest.mark.parametrize(
    ("tokens", "chunks"), [(75, 1), (76, 2), (148, 2), (149, 2), (150, 2), (151, 3), (225, 3), (226, 4)]
)
def test_long_prompts_are_encoded_chunk_by_chunk(parts: dict[str, Any], tokens: int, chunks: int) -> None:
    encode = encoder_of(parts, pooled=True)
    found = encode(["a " * tokens])
    pieces = [encode(["a " * min(75, tokens - begin)]) for begin in range(0, tokens, 75)]
    assert len(pieces) == chunks
    assert torch.equal(found.context, torch.cat([piece.context for piece in pieces], dim=1))
    assert found.pooled is not None and pieces[0].pooled is not None and torch.equal(found.pooled, pieces[0].pooled)
    assert encode.lengths(["a " * tokens, "a"]) == [77 * chunks, 77]


def test_plain_syntax_reads_no_sign(parts: dict[str, Any]) -> None:
    encode = encoder_of(parts)
    prompt = "a (red:1.3) [cat] BREAK {a|b}"
    ids = torch.tensor(parts["tokenizers"][0]([prompt]).ids)
    with torch.inference_mode():
        each = [encoder(ids).context for encoder in parts["text_encoders"]]
    assert torch.equal(encode([prompt], syntax="plain").context, torch.cat(each, dim=-1))
    assert not torch.equal(encode([prompt]).context[:, :77], encode([prompt], syntax="plain").context)


def test_an_encoder_of_more_chunks_gives_the_other_empty_ones() -> None:
    parts = tiny_xl_parts(length=77)
    first, second = parts["tokenizers"][0], train_tokenizer([], 514)  # which reads letter by letter
    parts["tokenizers"] = (first, second)
    encode = encoder_of(parts)
    word = next(word for word in (" pirate" * number for number in count(1)) if len(second.encode(word)[0]) > 75)
    found = encode([word])
    assert len(first.encode(word)[0]) <= 75 and found.context.shape[1] == 2 * 77
    with torch.inference_mode():
        empty = parts["text_encoders"][0](torch.tensor(first([""]).ids)).context
    assert torch.equal(found.context[:, 77:, :32], empty)

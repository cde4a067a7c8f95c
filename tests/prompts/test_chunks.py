"""Prompts of any length as chunks of tokens."""

import random
from itertools import pairwise

import pytest

from genpipe.models.tokenizer import Tokenizer, train_tokenizer
from genpipe.prompts.chunks import COMMA_REACH, MAX_CHUNKS, chunks_of
from tests.conftest import CAPTIONS


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    tokenizer = train_tokenizer(CAPTIONS, 560)
    tokenizer.pad_id = 0  # as Stable Diffusion 2's, unlike the end mark
    return tokenizer


def of_tokens(count: int) -> str:
    """A prompt of so many tokens."""
    return "a" + " a" * (count - 1)


def own(chunk) -> list[int]:
    """The token ids of a chunk without marks and padding."""
    return chunk.ids[1 : chunk.ids.index(max(chunk.ids))]


@pytest.mark.parametrize(
    ("count", "sizes"), [(0, [0]), (1, [1]), (75, [75]), (76, [75, 1]), (148, [75, 73]), (150, [75, 75]), (151, [75, 75, 1]), (225, [75] * 3), (226, [75, 75, 75, 1])]
)  # fmt: skip
def test_every_75_tokens_are_a_chunk(tokenizer: Tokenizer, count: int, sizes: list[int]) -> None:
    prompt = of_tokens(count) if count else ""
    found = chunks_of(prompt, tokenizer)
    assert [len(own(chunk)) for chunk in found.chunks] == sizes and not found.cut
    for chunk, size in zip(found.chunks, sizes, strict=True):
        assert chunk.ids[0] == tokenizer.bos_id and chunk.ids[size + 1 :] == [tokenizer.eos_id] + [0] * (75 - size)
        assert len(chunk.ids) == len(chunk.weights) == 77
    assert [token for chunk in found.chunks for token in own(chunk)] == tokenizer.encode(prompt)[0]


def test_a_prompt_that_fits_is_what_the_tokenizer_makes_of_it(tokenizer: Tokenizer) -> None:
    for prompt in [*CAPTIONS, "", "a ship, at sea: red", of_tokens(75)]:
        (chunk,) = chunks_of(prompt, tokenizer).chunks
        assert chunk.ids == tokenizer([prompt]).ids[0]
        assert set(chunk.weights) == {1.0}


@pytest.mark.parametrize("after", [0, 1, COMMA_REACH - 1, COMMA_REACH, 60])
def test_a_comma_near_the_end_moves_what_follows_it_on(tokenizer: Tokenizer, after: int) -> None:
    prompt = f"{of_tokens(74 - after)},{' a' * after} red"
    first, second = (own(chunk) for chunk in chunks_of(prompt, tokenizer).chunks)
    moved = after if after < COMMA_REACH else 0
    assert (len(first), len(second)) == (75 - moved, moved + len(tokenizer.encode(" red")[0]))


def test_commas_never_lose_or_reorder_tokens(tokenizer: Tokenizer) -> None:
    rng = random.Random(0)
    for _ in range(100):
        prompt = " ".join(rng.choices(["a", "red", ",", "ship"], [4, 2, rng.choice([0.1, 1]), 1], k=rng.randrange(300)))
        chunks = chunks_of(prompt, tokenizer).chunks
        assert [token for chunk in chunks for token in own(chunk)] == tokenizer.encode(prompt)[0]
        for chunk, following in pairwise(chunks):
            tokens = own(chunk)
            # It is full, or ends in a comma; and then what follows up to the next comma would not have fitted.
            assert len(tokens) == 75 or (tokens[-1] == tokenizer.comma_id and len(tokens) >= 76 - COMMA_REACH)
            if len(tokens) < 75:
                assert tokenizer.comma_id not in own(following)[: 75 - len(tokens)]


def test_break_begins_a_chunk(tokenizer: Tokenizer) -> None:
    sizes = [len(own(chunk)) for chunk in chunks_of("a cat BREAK BREAK a ship BREAK", tokenizer).chunks]
    one, two = (len(tokenizer.encode(text)[0]) for text in ("a cat", "a ship"))
    assert sizes == [one, 0, two]


def test_weights_stand_at_their_tokens(tokenizer: Tokenizer) -> None:
    (chunk,) = chunks_of("a (red:1.5) [a]", tokenizer).chunks
    red = len(tokenizer.encode("red")[0])
    expected = [1, 1, *[1.5] * red, 1 / 1.1]
    assert chunk.weights == pytest.approx(expected + [1] * (77 - len(expected)))


def test_what_is_past_the_last_chunk_is_given_back(tokenizer: Tokenizer) -> None:
    found = chunks_of(of_tokens(75 * MAX_CHUNKS) + " red ship", tokenizer)
    assert (len(found.chunks), found.cut) == (MAX_CHUNKS, "red ship")
    found = chunks_of("a BREAK " * (MAX_CHUNKS + 1) + "red", tokenizer)
    assert (len(found.chunks), found.cut) == (MAX_CHUNKS, "a BREAK red")


def test_the_vectors_of_a_textual_inversion_stay_in_one_chunk(tokenizer: Tokenizer) -> None:
    taught = tokenizer.with_words({"mystyle": 4, "tiny": 1}, first=1000)
    for before, sizes in ((71, [75]), (72, [72, 4]), (75, [75, 4])):
        found = chunks_of(f"{of_tokens(before)} mystyle", taught).chunks
        assert [len(chunk.ids[1 : chunk.ids.index(tokenizer.eos_id)]) for chunk in found] == sizes
    (chunk,) = chunks_of("a (mystyle tiny:1.5)", taught).chunks
    assert chunk.ids[2:7] == [1000, 1001, 1002, 1003, 1004] and chunk.weights[2:7] == [1.5] * 5


def test_shorter_text_encoders_have_shorter_chunks() -> None:
    tokenizer = train_tokenizer(CAPTIONS, 560, length=16)
    assert [len(own(chunk)) for chunk in chunks_of(of_tokens(20), tokenizer).chunks] == [14, 6]

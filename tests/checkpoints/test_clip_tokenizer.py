"""The tokenizer that ships for single files gives CLIP's ids, and transformers' for its own files."""

from pathlib import Path

import pytest
from transformers import CLIPTokenizer

from genpipe.checkpoints.clip_tokenizer import clip_tokenizer

TEXTS = [
    "a photo of a cat",
    "",
    "An ASTRONAUT riding a horse!!! it's 1,234.5 km... don't",
    "Ünïcödé, 日本語 и кириллица 🚀 <|endoftext|> (masterpiece:1.2), <lora:x:1>",
    "a " * 100,
]


def test_the_ids_are_those_that_clip_publishes() -> None:
    tokenizer = clip_tokenizer()
    assert (tokenizer.vocab_size, tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (49408, 49406, 49407, 49407)
    assert tokenizer(["a photo of a cat"]).ids[0][:8] == [49406, 320, 1125, 539, 320, 2368, 49407, 49407]
    assert len(tokenizer.vocabulary) == 49408 and clip_tokenizer("!").pad_id == 0


@pytest.mark.parametrize("pad", ["<|endoftext|>", "!"])
def test_transformers_gives_the_same_ids_of_its_files(tmp_path: Path, pad: str) -> None:
    tokenizer = clip_tokenizer(pad)
    tokenizer.save(tmp_path)
    theirs = CLIPTokenizer.from_pretrained(tmp_path)
    for text, ids in zip(TEXTS, tokenizer(TEXTS).ids, strict=True):
        assert theirs(text, padding="max_length", truncation=True, max_length=77).input_ids == ids

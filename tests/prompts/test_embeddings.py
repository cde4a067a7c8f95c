"""Words of textual inversions stand for their vectors in every text encoder, as in diffusers."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from torch import Tensor

from genpipe.checkpoints import Checkpoint, load_checkpoint
from genpipe.prompts.embeddings import missing, with_embeddings
from genpipe.prompts.encoder import PromptEncoder, TextPart

CPU = torch.device("cpu")


def encoder_of(checkpoint: Checkpoint, vectors: dict[str, tuple[Tensor, ...]]) -> PromptEncoder:
    parts = [
        TextPart(tokenizer, lambda encoder=encoder: nullcontext(encoder.eval()))
        for tokenizer, encoder in zip(checkpoint.tokenizers, checkpoint.text_encoders, strict=True)
    ]
    sizes = [encoder.config.vocab_size for encoder in checkpoint.text_encoders]
    taught = with_embeddings(parts, vectors, vocab_sizes=sizes, device=CPU)
    return PromptEncoder(taught, device=CPU, model="tiny", pooled=len(parts) > 1)


@torch.inference_mode()
def test_both_encoders_of_xl_encode_as_in_diffusers(tiny_xl_checkpoint: Path) -> None:
    generator = torch.Generator("cpu").manual_seed(0)
    learned = tuple(torch.randn(2, width, generator=generator) for width in (32, 48))
    theirs: Any = DiffusionPipeline.from_pretrained(tiny_xl_checkpoint)
    for vectors, part in zip(learned, ("", "_2"), strict=True):
        encoder, tokenizer = getattr(theirs, f"text_encoder{part}"), getattr(theirs, f"tokenizer{part}")
        theirs.load_textual_inversion({"<sun>": vectors}, token="<sun>", text_encoder=encoder, tokenizer=tokenizer)
    prompt = "a <sun> and a red cat"
    context, _, pooled, _ = theirs.encode_prompt(prompt, device="cpu", do_classifier_free_guidance=False)
    ours = encoder_of(load_checkpoint(tiny_xl_checkpoint), {"<sun>": learned})([prompt])
    assert ours.pooled is not None
    assert (ours.context - context).abs().max() <= 1e-5 and (ours.pooled - pooled).abs().max() <= 1e-5


@torch.inference_mode()
def test_several_words_keep_their_own_vectors(tiny_checkpoint: Path) -> None:
    checkpoint = load_checkpoint(tiny_checkpoint)
    table = checkpoint.text_encoders[0].token_embedding.weight
    plain = encoder_of(checkpoint, {})
    # Vectors that are those of tokens encode as the tokens do.
    ids = {word: checkpoint.tokenizers[0].encode(word)[0] for word in ("red cat", "blue")}
    taught = encoder_of(checkpoint, {"one": (table[ids["red cat"]],), "two-2": (table[ids["blue"]],)})
    for text, same in (("a one", "a red cat"), ("Two-2 ONE two-2", "blue red cat blue"), ("a dog", "a dog")):
        assert torch.equal(taught([text]).context, plain([same]).context)


def test_names_that_are_not_there_are_kept_as_words_with_one_warning(tiny_checkpoint: Path) -> None:
    checkpoint = load_checkpoint(tiny_checkpoint)
    encode = encoder_of(checkpoint, {"there": (torch.zeros(1, 32),)})
    with pytest.warns(UserWarning, match=r"no textual inversion 'not-there', .* give it with --embeddings") as caught:
        encode(["embedding:not-there", "embedding:there"])
    assert len([each for each in caught if "inversion" in str(each.message)]) == 1
    with pytest.warns(UserWarning, match="no textual inversion 'not-there'"):  # its vectors are kept
        encode(["embedding:not-there"])
    assert list(missing(["embedding:x y embedding:There2, reembedding:z"], ["there"])) == ["x"]

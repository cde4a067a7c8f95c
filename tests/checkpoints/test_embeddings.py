"""Textual inversions: files of every form give vectors by word, and encode as in diffusers."""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from safetensors.torch import save_file
from torch import Tensor

from genpipe.checkpoints import Checkpoint, CheckpointError, load_checkpoint
from genpipe.checkpoints.embeddings import load_embeddings


@pytest.fixture(scope="module")
def model(tiny_checkpoint: Path) -> Checkpoint:
    return load_checkpoint(tiny_checkpoint)


@pytest.fixture(scope="module")
def xl(tiny_xl_checkpoint: Path) -> Checkpoint:
    return load_checkpoint(tiny_xl_checkpoint)


def vectors(count: int, width: int) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(count * width))


def saved(path: Path, tensors: dict[str, Tensor], name: str = "Easy-Negative.safetensors") -> Path:
    path.mkdir(exist_ok=True)
    save_file(tensors, path / name)
    return path / name


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({"emb_params": vectors(2, 32)}, {"easy-negative"}),
        ({"<Cat>": vectors(2, 32)}, {"easy-negative", "<cat>"}),
        ({"<cat>": vectors(1, 32)[0]}, {"easy-negative", "<cat>"}),
        ({"string_to_param.*": vectors(2, 32)}, {"easy-negative"}),
        ({"string_to_param.*": vectors(2, 32), "string_to_token.*": torch.tensor(265)}, {"easy-negative"}),
    ],
)
def test_files_of_one_encoder_are_read(
    tmp_path: Path, model: Checkpoint, tensors: dict[str, Tensor], words: set[str]
) -> None:
    found = load_embeddings([saved(tmp_path, tensors)], model)
    expected = torch.atleast_2d(next(iter(tensors.values())))
    assert found.keys() == words and all(torch.equal(each[0], expected) for each in found.values())


def test_files_of_both_encoders_of_xl_are_read(tmp_path: Path, xl: Checkpoint) -> None:
    pair = {"clip_g": vectors(3, 48), "clip_l": vectors(3, 32)}
    bundled = {f"bundle_emb.Sun.{key}": tensor for key, tensor in pair.items()}
    lora = {"lora_unet_x.lora_down.weight": torch.zeros(2, 2), **bundled}
    found = load_embeddings([saved(tmp_path, pair), saved(tmp_path, lora, "lora.safetensors")], xl)
    assert list(found) == ["easy-negative", "sun"]
    for first, second in found.values():
        assert torch.equal(first, pair["clip_l"]) and torch.equal(second, pair["clip_g"])


def test_a_folder_gives_what_fits(tmp_path: Path, model: Checkpoint) -> None:
    saved(tmp_path, {"emb_params": vectors(2, 32)}, "one.safetensors")
    saved(tmp_path, {"emb_params": vectors(2, 768)}, "other family.safetensors")
    saved(tmp_path, {"emb_params": vectors(4, 32)}, "two.safetensors")
    (tmp_path / "notes.txt").write_text("x")
    assert list(load_embeddings([tmp_path], model)) == ["one", "two"]
    (tmp_path / "torn.safetensors").write_bytes(b"")
    with pytest.warns(UserWarning, match=r"left out of the textual inversions: .*torn.safetensors .*it is empty"):
        assert list(load_embeddings([tmp_path], model)) == ["one", "two"]


def test_a_pickle_is_read_only_where_it_is_allowed(tmp_path: Path, model: Checkpoint) -> None:
    content = {"string_to_token": {"*": 265}, "string_to_param": {"*": vectors(2, 32)}, "name": "x", "step": 5}
    torch.save(content, tmp_path / "old.pt")
    with pytest.raises(CheckpointError, match="is a pickle file"):
        load_embeddings([tmp_path / "old.pt"], model)
    assert load_embeddings([tmp_path], model) == {}
    for path in (tmp_path, tmp_path / "old.pt"):
        found = load_embeddings([path], model, allow_pickle=True)
        assert torch.equal(found["old"][0], vectors(2, 32))


ODD: dict[str, tuple[dict[str, Tensor], str]] = {
    "Stable Diffusion 1's": (
        {"emb_params": vectors(2, 768)},
        r"for Stable Diffusion 1.x \(vectors of 768\), and .* is",
    ),
    "XL's": (
        {"clip_l": vectors(2, 768), "clip_g": vectors(2, 1280)},
        r"for Stable Diffusion XL \(vectors of 768 and 1280\), and",
    ),
    "too many": ({"emb_params": vectors(76, 32)}, "76 vectors are more than the 75 tokens of a prompt"),
    "no vectors": ({"emb_params": torch.zeros(0, 32)}, "is no vectors of a word"),
    "integers": ({"emb_params": torch.zeros(2, 32).int()}, "is no vectors of a word"),
    "not finite": ({"emb_params": torch.full((2, 32), torch.inf)}, "emb_params is not finite"),
    "a VAE": ({"decoder.conv_in.weight": torch.zeros(8, 4, 3, 3)}, "is a VAE, not a textual inversion"),
}


@pytest.mark.parametrize("name", ODD)
def test_files_that_do_not_fit_get_one_clear_line(tmp_path: Path, model: Checkpoint, name: str) -> None:
    tensors, message = ODD[name]
    with pytest.raises(CheckpointError, match=message) as caught:
        load_embeddings([saved(tmp_path, tensors)], model)
    assert "\n" not in str(caught.value)


def test_encoders_of_xl_take_as_many_vectors_each(tmp_path: Path, xl: Checkpoint) -> None:
    path = saved(tmp_path, {"clip_l": vectors(2, 32), "clip_g": vectors(3, 48)})
    with pytest.raises(CheckpointError, match="has 2 and 3 vectors for its text encoders"):
        load_embeddings([path], xl)
    with pytest.raises(CheckpointError, match="is a textual inversion for another model"):
        load_embeddings([saved(tmp_path, {"clip_l": vectors(2, 32)})], xl)
    with pytest.raises(CheckpointError, match="does not exist"):
        load_embeddings([tmp_path / "missing.safetensors"], xl)


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("end", [False, True])
def test_words_are_encoded_as_diffusers_does(
    tmp_path: Path, tiny_checkpoint: Path, model: Checkpoint, count: int, end: bool
) -> None:
    learned = vectors(count, 32)
    theirs: Any = DiffusionPipeline.from_pretrained(tiny_checkpoint, safety_checker=None)
    theirs.load_textual_inversion({"<cat>": learned}, token="<cat>")
    prompt = "a red <cat>" if end else "a <cat> and a blue dog"
    reference = theirs.encode_prompt(prompt, "cpu", 1, False)[0]
    encoder, tokenizer = model.text_encoders[0], model.tokenizers[0]
    words = tokenizer.with_words({"<cat>": count}, first=encoder.config.vocab_size)
    ids = torch.tensor(words([prompt]).ids)
    with torch.inference_mode():
        ours = encoder(ids, learned=learned)
        assert (ours.context - reference).abs().max() <= 1e-5
        # What it points at as the end of the text is the end mark.
        assert torch.equal(ours.pooled, ours.context[:, ids[0].tolist().index(tokenizer.eos_id)])
    assert not torch.allclose(ours.context, encoder(torch.tensor(tokenizer([prompt]).ids)).context)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a photo", ["a photo"]),
        ("easyneg", [1]),
        ("EasyNeg, bad", [1, ", bad"]),
        ("bad easyneg-2 and easyneg", ["bad ", 2, " and ", 1]),
        ("noteasyneg easynegs", ["noteasyneg easynegs"]),
        ("(easyneg:1.2), embedding:easyneg", ["(", 1, ":1.2), ", 1]),
        ("<cat><cat> x<cat>y", [3, 3, " x", 3, "y"]),
        ("embedding:other", ["embedding:other"]),
    ],
)
def test_words_are_found_where_they_stand_by_themselves(
    model: Checkpoint, text: str, expected: list[str | int]
) -> None:
    plain = model.tokenizers[0]
    tokenizer = plain.with_words({"easyneg": 2, "easyneg-2": 1, "<cat>": 3}, first=1000)
    new = {1: [1000, 1001], 2: [1002], 3: [1003, 1004, 1005]}
    ids, starts = tokenizer.encode(text)
    assert ids == [i for each in expected for i in (new[each] if isinstance(each, int) else plain.encode(each)[0])]
    assert len(starts) == len(ids) and all(0 <= start < len(text) for start in starts) and starts == sorted(starts)
    assert plain.encode(text)[0] == model.tokenizers[0].with_words({}, first=1000).encode(text)[0]

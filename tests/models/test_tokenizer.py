"""The tokenizer gives the ids of transformers' `CLIPTokenizer`, whatever form its files have."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from transformers import CLIPTokenizer

from genpipe.models.tokenizer import BOS, EOS, Tokenizer, train_tokenizer

LENGTH = 24
CAPTIONS = [
    "a pirate ship with a black flag at sea, it's stormy!",
    "red circle above a blue square",
    "Пиратский корабль с чёрным флагом в море",
    "красный круг над синим квадратом",
]
WORDS = """pirate ship|RED Circle|Корабль|Ёёй|naïve|e\u0301|a\u030a\u0323|ﬁ|İıẞſ|汉字|한글|ไทย|עברית|العربية
|\u202eabc\u202c|😀|👩\u200d👩\u200d👧|🏴\u200d☠\ufe0f|🇫🇷|0|2026|٣٤|Ⅷ|½|it's|I'D|they'll|we've'|!|!!|ship!| ! |?.,;:'"()[]{}<>|@#$
|Ġ|</w>|#version|<|endof|Frida|frida|<cat-toy>| <cat-toy> | |  |\t|\r\n|\u00a0|\u3000|\u2028|\u200b|\ufeff|\x00|\x7f|\x85"""
FRAGMENTS = [*WORDS.split("|"), "|", BOS, EOS, BOS.upper()]


def strings(count: int) -> list[str]:
    """Strings of 0 to thousands of characters in many scripts, the same at every call."""
    rng = random.Random(0)
    made = ["", " ", "\x00", "a" * 10_000, "pirate ship " * 1000]
    while len(made) < count:
        pieces = (
            chr(rng.choice([rng.randrange(0xD800), rng.randrange(0xE000, 0x110000)]))
            if rng.random() < 0.1
            else rng.choice(FRAGMENTS)
            for _ in range(rng.choice([1, 2, 5, 12, 40]))
        )
        made.append("".join(pieces))
    return made


def reference_ids(directory: Path, texts: list[str]) -> list[list[int]]:
    reference = CLIPTokenizer.from_pretrained(directory)
    return reference(texts, padding="max_length", truncation=True, max_length=LENGTH)["input_ids"]


def write_json(directory: Path, files: dict[str, Any]) -> None:
    for name, content in files.items():
        (directory / name).write_text(json.dumps(content), encoding="utf-8")


def token(content: str, **flags: bool) -> dict[str, Any]:
    return {"content": content, "lstrip": False, "normalized": True, "rstrip": False, "single_word": False, **flags}


OLD_CONFIG = {
    "bos_token": {"__type": "AddedToken", **token(BOS)},
    "eos_token": {"__type": "AddedToken", **token(EOS)},
    "unk_token": {"__type": "AddedToken", **token(EOS)},
    "pad_token": EOS,
    "model_max_length": LENGTH,
}
OLD_MAP = {"bos_token": token(BOS), "eos_token": token(EOS), "unk_token": token(EOS), "pad_token": EOS}
# The files beside vocab.json and merges.txt, as different years wrote them.
FILES: dict[str, dict[str, Any]] = {
    "stable diffusion 1": {"tokenizer_config.json": OLD_CONFIG, "special_tokens_map.json": OLD_MAP},
    "stable diffusion 2": {
        "tokenizer_config.json": OLD_CONFIG,
        "special_tokens_map.json": {**OLD_MAP, "pad_token": "!"},
    },
    "pad token in the config": {"tokenizer_config.json": {**OLD_CONFIG, "pad_token": "!"}},
    "length alone": {"tokenizer_config.json": {"model_max_length": LENGTH}},
    "more special tokens": {
        "tokenizer_config.json": {
            **OLD_CONFIG,
            "additional_special_tokens": ["<cat-toy>", "Frida"],
            "mask_token": "<mask>",
            "sep_token": "|",
        },
    },
    "more special tokens, as transformers 5 names them": {
        "tokenizer_config.json": {**OLD_CONFIG, "extra_special_tokens": ["Frida"], "pad_token": "<cat-toy>"},
    },
    "special tokens by other roles": {
        "tokenizer_config.json": {**OLD_CONFIG, "extra_special_tokens": {"toy_token": "<cat-toy>"}},
    },
    "learned concepts": {
        "tokenizer_config.json": OLD_CONFIG,
        "added_tokens.json": {"<cat-toy>": 10_000, "Frida": 10_001},
    },
    "added tokens in the config": {
        "tokenizer_config.json": {
            "model_max_length": LENGTH,
            "pad_token": "!",
            "added_tokens_decoder": {
                "10000": token("Frida", special=False),
                "10001": token("<cat-toy>", special=False, normalized=False, lstrip=True),
                "0": token("!", special=True, normalized=False),
                "598": token(BOS, special=True),
                "599": token(EOS, special=True, normalized=False),
            },
        }
    },
}


@pytest.fixture(scope="module")
def learned() -> Tokenizer:
    return train_tokenizer(CAPTIONS, 600, length=LENGTH)


@pytest.fixture
def folder(learned: Tokenizer, tmp_path: Path) -> Path:
    """vocab.json and merges.txt alone."""
    learned.save(tmp_path)
    (tmp_path / "tokenizer_config.json").unlink()
    (tmp_path / "special_tokens_map.json").unlink()
    return tmp_path


def test_learned_tokenizer_gives_transformers_ids_on_2000_strings(learned: Tokenizer, tmp_path: Path) -> None:
    learned.save(tmp_path)
    texts = strings(2000)
    assert learned(texts).ids == reference_ids(tmp_path, texts)
    assert Tokenizer.from_files(tmp_path)(texts) == learned(texts)


@pytest.mark.parametrize("name", FILES)
def test_files_of_every_age_give_transformers_ids(folder: Path, name: str) -> None:
    write_json(folder, FILES[name])
    texts = strings(400)
    assert Tokenizer.from_files(folder)(texts).ids == reference_ids(folder, texts)


@pytest.mark.parametrize("name", FILES)
def test_tokenizer_json_gives_transformers_ids(
    folder: Path, tmp_path_factory: pytest.TempPathFactory, name: str
) -> None:
    write_json(folder, FILES[name])
    saved = tmp_path_factory.mktemp("fast")
    CLIPTokenizer.from_pretrained(folder).save_pretrained(saved)
    assert not (saved / "vocab.json").exists()
    texts = strings(400)
    assert Tokenizer.from_files(saved)(texts).ids == reference_ids(folder, texts)


def test_truncation_and_padding_baked_into_tokenizer_json_are_left_aside(folder: Path) -> None:
    expected = reference_ids(folder, CAPTIONS)
    CLIPTokenizer.from_pretrained(folder).save_pretrained(folder)
    fast = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    fast.enable_truncation(5)
    fast.enable_padding(length=7, pad_id=3, pad_token="$")
    fast.save(str(folder / "tokenizer.json"))
    assert Tokenizer.from_files(folder, max_length=LENGTH)(CAPTIONS).ids == expected


def test_pad_id_comes_from_the_files(folder: Path) -> None:
    for name, pad_id in (("stable diffusion 1", 599), ("stable diffusion 2", 0)):
        write_json(folder, FILES[name])
        tokenizer = Tokenizer.from_files(folder)
        assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (598, 599, pad_id)
        assert tokenizer([""]).ids == [[598, 599] + [pad_id] * (LENGTH - 2)]


def test_saving_what_was_read_keeps_the_ids(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    texts = strings(400)
    for name, files in FILES.items():
        write_json(folder, files)
        tokenizer, saved = Tokenizer.from_files(folder), tmp_path_factory.mktemp("saved")
        tokenizer.save(saved)
        assert Tokenizer.from_files(saved)(texts) == tokenizer(texts), name
        assert reference_ids(saved, texts) == tokenizer(texts).ids, name


def test_cut_is_the_end_of_the_prompt_that_did_not_fit(learned: Tokenizer) -> None:
    fits, cut = (LENGTH - 2) * "q ", learned(["q " * 40, (LENGTH - 2) * "q ", "Ж😀"]).cut
    assert cut == [("q " * 40).removeprefix(fits), "", ""]
    for text, end in zip(strings(400), learned(strings(400)).cut, strict=True):
        assert text.endswith(end)


def test_length_is_the_less_of_the_files_and_the_encoder(folder: Path) -> None:
    assert Tokenizer.from_files(folder).length == 77
    write_json(folder, {"tokenizer_config.json": {"model_max_length": 10**30}})
    assert Tokenizer.from_files(folder).length == 77
    assert Tokenizer.from_files(folder, max_length=16).length == 16
    write_json(folder, {"tokenizer_config.json": {"model_max_length": LENGTH}})
    assert Tokenizer.from_files(folder, max_length=77).length == LENGTH


def test_learned_vocabulary_has_the_layout_of_clip(learned: Tokenizer, tmp_path: Path) -> None:
    learned.save(tmp_path)
    vocab = json.loads((tmp_path / "vocab.json").read_text(encoding="utf-8"))
    assert learned.vocab_size == 600 and sorted(vocab.values()) == list(range(600))
    assert (vocab["!"], vocab["!</w>"], vocab[BOS], vocab[EOS]) == (0, 256, 598, 599)
    assert learned(["a"]).ids[0][:3] == [598, vocab["a</w>"], 599]
    korabl = len([index for index in learned(["корабль"]).ids[0] if index < 598])
    assert korabl < len("корабль".encode())  # Cyrillic was learned too, not only spelled in bytes


def test_learning_stops_at_what_the_captions_hold() -> None:
    tokenizer = train_tokenizer(["ab"], 5000)
    assert tokenizer.vocab_size == 515  # 512 bytes, "ab</w>" and the marks


def test_mistakes_are_named(folder: Path, learned: Tokenizer) -> None:
    with pytest.raises(ValueError, match="vocab_size 513 is too small: use 514"):
        train_tokenizer(CAPTIONS, 513)
    with pytest.raises(ValueError, match="length of 2 leaves no room"):
        Tokenizer.from_files(folder, max_length=2)
    with pytest.raises(ValueError, match=r"'a\\ud800' is not text"):
        learned(["a\ud800"])
    (folder / "special_tokens_map.json").write_text('{"pad_token": "§§"}', encoding="utf-8")
    assert Tokenizer.from_files(folder).pad_id == 600  # a mark that the vocabulary lacks is added to it
    (folder / "special_tokens_map.json").write_text("{", encoding="utf-8")
    with pytest.raises(ValueError, match=r"special_tokens_map.json cannot be used: it is not JSON"):
        Tokenizer.from_files(folder)
    (folder / "special_tokens_map.json").unlink()
    (folder / "merges.txt").write_text("#version: 0.2\nno such pair here\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"merges.txt is not a byte-pair encoding"):
        Tokenizer.from_files(folder)
    (folder / "merges.txt").unlink()
    with pytest.raises(ValueError, match=r"neither tokenizer.json nor vocab.json with merges.txt"):
        Tokenizer.from_files(folder)
    (folder / "tokenizer.json").write_text('{"model": {"type": "Unigram", "vocab": []}}', encoding="utf-8")
    with pytest.raises(ValueError, match=r"tokenizer.json cannot be used: it lacks merges"):
        Tokenizer.from_files(folder)


ODD = [
    *(
        None,
        True,
        0,
        -1,
        3,
        1.5,
        float("nan"),
        float("inf"),
        10**30,
        "",
        "a",
        "left",
        EOS,
        "x" * 5000,
        "\ud800",
        "\x1b[2J",
    ),
    *(
        [],
        [1],
        ["a"],
        [["a"]],
        [8, "8"],
        [10**9] * 2,
        {},
        {"content": 5},
        {"content": "x"},
        {"content": None},
        {"id": 1},
    ),
    *({"5": "x"}, {"x": {"content": "y"}}, {"1": {"content": "zz", "special": 5}}, {"²": {"content": "y"}}),
    *(
        {"9" * 5000: {"content": "y"}},
        [{"id": "a", "content": "b"}],
        [{"content": "b"}],
        [{"id": 3}],
        {"__class__": "x"},
    ),
    *(
        [{"id": [], "content": "b"}],
        [{"id": 3, "content": "b", "lstrip": "no"}],
        {"vocab": {"a": 1}, "merges": [["a"]]},
    ),
    *({"vocab": {"a": 1}, "merges": ["a"]}, {"vocab": {"a": -1}, "merges": []}, {"vocab": {"a": 10**12}, "merges": []}),
]
KEYS = {
    "tokenizer_config.json": (
        *("added_tokens_decoder", "model_max_length", "bos_token", "eos_token", "unk_token", "pad_token", "mask_token"),
        *("additional_special_tokens", "extra_special_tokens", "padding_side", "tokenizer_class"),
    ),
    "special_tokens_map.json": ("bos_token", "pad_token", "additional_special_tokens"),
    "added_tokens.json": ("x", "a"),
    "vocab.json": ("a", "new"),
    "tokenizer.json": ("model", "added_tokens", "normalizer"),
}


@pytest.mark.parametrize("name", KEYS)
@pytest.mark.parametrize("alone", [True, False])
def test_any_value_of_any_key_gives_a_tokenizer_or_one_clear_line(folder: Path, name: str, alone: bool) -> None:
    vocab, path = json.loads((folder / "vocab.json").read_text(encoding="utf-8")), folder / name
    base = {"vocab.json": vocab, "tokenizer.json": {"model": {"vocab": vocab, "merges": []}, "added_tokens": []}}
    read = refused = 0
    if not alone:
        write_json(folder, FILES["stable diffusion 2"])
    for key in KEYS[name]:
        for value in ODD:
            path.write_text(json.dumps({**base.get(name, {}), key: value}))
            try:
                assert len(Tokenizer.from_files(folder, max_length=16)(["a red cat"]).ids[0]) <= 16
                read += 1
            except ValueError as error:
                assert str(folder) in str(error) and str(error).isprintable(), (key, value)
                assert len(str(error)) - len(str(folder)) < 400, (key, value)
                refused += 1
    assert read and refused


@pytest.mark.parametrize("name", ["tokenizer_config.json", "vocab.json", "merges.txt"])
def test_a_byte_order_mark_is_nothing_to_speak_of(folder: Path, name: str) -> None:
    write_json(folder, FILES["stable diffusion 2"])
    expected = Tokenizer.from_files(folder)(strings(100))
    (folder / name).write_bytes(b"\xef\xbb\xbf" + (folder / name).read_bytes())
    assert Tokenizer.from_files(folder)(strings(100)) == expected


@pytest.mark.parametrize("content", [b"\xff\xfe", b"a\n", b"a b c\n", b"\x1b[2J" * 9999])
def test_merges_that_are_none_are_told_by_their_line(folder: Path, content: bytes) -> None:
    (folder / "merges.txt").write_bytes(b"#version: 0.2\n" + content)
    with pytest.raises(ValueError, match="is not a byte-pair encoding: ") as caught:
        Tokenizer.from_files(folder)
    assert str(caught.value).isprintable() and len(str(caught.value)) - len(str(folder)) < 400


@pytest.mark.parametrize("name", ["vocab.json", "tokenizer.json", "added_tokens.json"])
def test_a_token_that_is_no_text_is_told_by_its_file(folder: Path, name: str) -> None:
    write_json(folder, FILES["stable diffusion 2"])
    vocab = json.loads((folder / "vocab.json").read_text(encoding="utf-8")) | {"\udcff": 8}
    whole = {"model": {"vocab": vocab, "merges": []}, "added_tokens": []}
    (folder / name).write_text(json.dumps(whole if name == "tokenizer.json" else vocab))
    (folder / "tokenizer_config.json").unlink(missing_ok=True)
    with pytest.raises(ValueError, match=rf"{name} cannot be used: "):
        Tokenizer.from_files(folder)

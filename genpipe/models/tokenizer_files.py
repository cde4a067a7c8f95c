"""The files of a checkpoint's tokenizer folder, as the years and their libraries wrote them, checked and read."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken

from genpipe.checks import FLAG, NULL, Kind, Kinds, check, list_of, map_of, number, one_of, read_object, text, whole
from genpipe.messages import quoted

FILES = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.json",
)
BOS, EOS = "<|startoftext|>", "<|endoftext|>"
# What a file that does not name them means.
MARKS = {"bos_token": BOS, "eos_token": EOS, "unk_token": EOS, "pad_token": EOS}
FLAGS = ("lstrip", "normalized", "rstrip", "single_word", "special")
MAX_ID = 2**24

# In the order in which they are added to a vocabulary.
_ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
# Further special tokens; the second name is that of transformers 5, where it may also name a role for each.
_MORE = ("additional_special_tokens", "extra_special_tokens")

_TEXT = text(512)
_TOKEN_KEYS: Kinds = {"content": _TEXT, **dict.fromkeys(FLAGS, FLAG)}
_ID = whole(0, MAX_ID)


def _is_token(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and "content" in value
        and all(kind.accepts(value[key]) for key, kind in _TOKEN_KEYS.items() if key in value)
    )


_OBJECT = Kind('an object with "content" (text) and flags that are true or false', _is_token)
_TOKEN = Kind("text or an object with its content", lambda value: _TEXT.accepts(value) or _is_token(value))
_NAMED: Kinds = {
    **dict.fromkeys(_ROLES, _TOKEN | NULL),
    **dict.fromkeys(_MORE, list_of(_TOKEN, 0, 2**16) | map_of(_TOKEN) | NULL),
}
_NUMBERED = Kind(
    "an object of tokens by their number",
    lambda value: (
        isinstance(value, dict)
        and all(key.isascii() and key.isdecimal() and int(key) <= MAX_ID for key in value if len(key) < 20)
        and all(len(key) < 20 for key in value)
        and all(map(_OBJECT.accepts, value.values()))
    ),
)
_CONFIG: Kinds = {
    **_NAMED,
    "added_tokens_decoder": _NUMBERED | NULL,
    # transformers writes 10³⁰ for "not known".
    "model_max_length": number(3, 1e60) | NULL,
    "padding_side": one_of("right", None),
    "truncation_side": one_of("right", None),
}
_ADDED: Kinds = {
    "added_tokens": list_of(
        Kind(f"{_OBJECT.says}, and an id", lambda value: _is_token(value) and _ID.accepts(value.get("id"))), 0, 2**16
    )
    | NULL,
}
_MERGE = Kind("two tokens", lambda value: isinstance(value, str) and value.count(" ") == 1) | list_of(text(), 2, 2)
_MODEL: Kinds = {
    "type": one_of("BPE", None),
    "vocab": map_of(_ID, 1),
    "merges": list_of(_MERGE, 0, 2**22),
    "end_of_word_suffix": one_of("</w>", None),
    "continuing_subword_prefix": one_of("", None),
    "byte_fallback": one_of(False, None),
    "dropout": one_of(0, None),
}


@dataclass(frozen=True)
class TokenizerFiles:
    """What a folder's files say.

    Attributes:
        vocab: ids by token.
        merges: pairs of tokens that become one, the most frequent first.
        marks: the special tokens by role; those in `MARKS` are always there.
        added: all tokens that are matched whole, `marks` among them, in the order in which a vocabulary takes them up.
        length: tokens of every prompt; None where the files do not say.
    """

    vocab: dict[str, int]
    merges: list[tuple[str, str]]
    marks: dict[str, AddedToken]
    added: list[AddedToken]
    length: int | None


def read_tokenizer_files(directory: Path) -> TokenizerFiles:
    """Read a tokenizer folder: `tokenizer.json`, or else `vocab.json` and `merges.txt`, and the files beside them.

    Of `tokenizer.json` only the vocabulary, the merges and the added tokens count: how CLIP normalises and splits text is
    always the same, and truncation and padding are ours.

    Raises:
        ValueError: a file is missing, or holds what it may not; names the file, the key and the value.
        OSError: a file cannot be read.
    """
    config = _read(directory / "tokenizer_config.json", _CONFIG)
    fast = _read(directory / "tokenizer.json", _ADDED)
    pair = directory / "vocab.json", directory / "merges.txt"
    if not fast and not all(path.is_file() for path in pair):
        raise ValueError(f"{directory} holds neither tokenizer.json nor vocab.json with merges.txt")
    if fast:
        model = fast.get("model")
        if not isinstance(model, dict):
            raise ValueError(
                f"{directory / 'tokenizer.json'} cannot be used: model must be an object, not {quoted(model)}"
            )
        _check(directory / "tokenizer.json", model, _MODEL, required=("vocab", "merges"))
        vocab, merges = model["vocab"], [split_merge(merge) for merge in model["merges"]]
    else:
        vocab, merges = _read(pair[0]), list(_merges(pair[1]))
        if not map_of(_ID, 1).accepts(vocab):
            raise ValueError(
                f"{pair[0]} cannot be used: it must hold a number from 0 to {MAX_ID} for each of its tokens, which "
                "are UTF-8 text"
            )
    named, decoder = dict(config), config.get("added_tokens_decoder")
    if decoder is None:
        # Newer files list all of them in `tokenizer_config.json`; where that list is absent the others have their say.
        named |= _read(directory / "special_tokens_map.json", _NAMED)
        older = _read(directory / "added_tokens.json")
        if not map_of(_ID).accepts(older):
            raise ValueError(f"{directory / 'added_tokens.json'} cannot be used: it must hold a number for each token")
        decoder = {index: {"content": content} for content, index in older.items()}
        decoder |= {token["id"]: token for token in fast.get("added_tokens") or ()}
    marks, added = _tokens(named, [decoder[index] for index in sorted(decoder, key=int)])
    length = config.get("model_max_length")
    return TokenizerFiles(vocab, merges, marks, added, None if length is None or length > 10**6 else int(length))


def split_merge(merge: str | list[str]) -> tuple[str, str]:
    """Split a merge as `tokenizer.json` holds it: a list of two, or in older files one string."""
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    return left, right


def _tokens(named: Mapping[str, Any], listed: list[dict[str, Any]]) -> tuple[dict[str, AddedToken], list[AddedToken]]:
    """Give the special tokens by role, and all tokens in the order in which transformers adds them."""
    added = [_added_token(token) for token in listed]
    by_content = {token.content: token for token in added}

    def special(value: Any) -> AddedToken:
        token = _added_token({"special": True, **(value if isinstance(value, dict) else {"content": value})})
        return by_content.get(token.content, token)

    marks = {role: special(token) for role in _ROLES if (token := named.get(role) or MARKS.get(role))}
    added += marks.values()
    for name in _MORE:
        more = named.get(name) or ()
        added += [special(token) for token in (more.values() if isinstance(more, dict) else more)]
    return marks, added


def _added_token(fields: Mapping[str, Any]) -> AddedToken:
    return AddedToken(fields["content"], **{name: fields[name] for name in FLAGS if name in fields})


def _merges(path: Path) -> Iterator[tuple[str, str]]:
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not a byte-pair encoding: it is not UTF-8 text") from None
    for number_, line in enumerate(lines, 1):
        words = line.rstrip("\r").split(" ")
        if line.startswith("#version") or words == [""]:
            continue
        if len(words) != 2:
            raise ValueError(f"{path} is not a byte-pair encoding: line {number_} is {quoted(line)}, not two tokens")
        yield words[0], words[1]


def _read(path: Path, kinds: Kinds | None = None) -> dict[str, Any]:
    """Read the JSON object in a file, {} if there is no such file."""
    if not path.is_file():
        return {}
    try:
        content = read_object(path)
    except ValueError as error:
        raise ValueError(f"{path} cannot be used: {error}") from None
    _check(path, content, kinds or {})
    return content


def _check(path: Path, content: Mapping[str, Any], kinds: Kinds, *, required: tuple[str, ...] = ()) -> None:
    try:
        check(content, kinds, required=required)
    except ValueError as error:
        raise ValueError(f"{path} cannot be used: {error}") from None

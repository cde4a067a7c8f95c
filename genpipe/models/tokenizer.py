"""The tokenizer: CLIP's lower-cased byte-level byte-pair encoding, read from files or learned from captions.

"Neural Machine Translation of Rare Words with Subword Units" (2016) and "Language Models are Unsupervised Multitask
Learners" (2019). A token that ends a word carries the suffix `</w>`; ids equal those of transformers' `CLIPTokenizer`.
"""

import json
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from copy import copy
from pathlib import Path
from typing import NamedTuple

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, trainers

from genpipe.messages import one_line, quoted
from genpipe.models.tokenizer_files import BOS, EOS, FILES, FLAGS, MARKS, read_tokenizer_files, split_merge

__all__ = ["BOS", "EOS", "FILES", "LENGTH", "Tokenizer", "Tokens", "train_tokenizer"]

LENGTH = 77

_SUFFIX = "</w>"
# Marks, English contractions, runs of letters, single digits, runs of anything else that is not white space.
_PIECES = (
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d"
    r"|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
)


class Tokens(NamedTuple):
    """Prompts as ids, each exactly the tokenizer's `length` long, and `cut`: the end of each prompt that did not fit."""

    ids: list[list[int]]
    cut: list[str]


class Tokenizer:
    """Text to CLIP token ids.

    Args:
        backend: the byte-pair encoding; `Tokenizer.from_files` and `train_tokenizer` build it.
        marks: the text of `bos_token`, `eos_token`, `unk_token` and `pad_token`.
        length: tokens of every prompt, the begin and end marks included.

    Attributes:
        length, bos_id, eos_id, pad_id.
        normalise: rewrites each prompt before it is encoded; None (the default) leaves prompts as they are.
        vocab_size: one more than the largest id, without the words of `with_words`.
    """

    def __init__(self, backend: tokenizers.Tokenizer, marks: Mapping[str, str], *, length: int = LENGTH) -> None:
        if length < 3:
            raise ValueError(f"a tokenizer length of {length} leaves no room for text: use 3 or more")
        self._backend = backend
        self._marks = dict(marks)
        self.normalise: Callable[[str], str] | None = None
        self.length = length
        self.bos_id, self.eos_id, self.pad_id = (self._id(marks[f"{name}_token"]) for name in ("bos", "eos", "pad"))
        self.vocab_size = 1 + max(backend.get_vocab(with_added_tokens=True).values())
        self._words: dict[str, range] = {}
        self._word: re.Pattern[str] | None = None

    @classmethod
    def from_files(cls, directory: str | Path, *, max_length: int | None = None) -> "Tokenizer":
        """Read a checkpoint's tokenizer folder: `tokenizer.json`, or else `vocab.json` and `merges.txt`.

        Truncation and padding baked into `tokenizer.json` are left aside; the padding token is the one that
        `tokenizer_config.json` or `special_tokens_map.json` names (Stable Diffusion 2 pads with "!").

        Args:
            directory: the folder that holds the files.
            max_length: the text encoder's positions; `length` is this or the files' `model_max_length`, whichever is less.

        Raises:
            ValueError: a file is missing or is not that of a CLIP tokenizer; names the file.
        """
        directory = Path(directory)
        files = read_tokenizer_files(directory)
        try:
            backend = _backend(files.vocab, files.merges, unknown=files.marks["unk_token"].content)
            for token in files.added:
                backend.add_tokens([token])
        except Exception as error:  # the tokenizers library raises nothing more precise
            raise ValueError(f"{directory} is not a byte-pair encoding: {one_line(str(error), 200)}") from error
        length = LENGTH if files.length is None else files.length
        length = length if max_length is None else min(length, max_length)
        try:
            return cls(backend, {name: token.content for name, token in files.marks.items()}, length=length)
        except ValueError as error:
            raise ValueError(f"{directory} cannot be used: {error}") from None

    def __call__(self, texts: Sequence[str]) -> Tokens:
        """Encode prompts.

        Raises:
            ValueError: a prompt holds code points that are not text (lone surrogates).
        """
        ids, cut = [], []
        for text in texts if self.normalise is None else map(self.normalise, texts):
            own, starts = self.encode(text)
            ids.append(self.row(own[: self.length - 2]))
            cut.append(text[starts[self.length - 2] :] if len(own) > self.length - 2 else "")
        return Tokens(ids, cut)

    @property
    def words(self) -> Collection[str]:
        """The words that `with_words` added."""
        return self._words

    @property
    def vocabulary(self) -> dict[str, int]:
        """The id of every token, added ones included."""
        return self._backend.get_vocab(with_added_tokens=True)

    def encode(self, text: str) -> tuple[list[int], list[int]]:
        """Encode a text, however long and as it stands: without marks, padding and `normalise`.

        Returns:
            The ids, and at which character of the text each begins.

        Raises:
            ValueError: the text holds code points that are not text (lone surrogates).
        """
        if self._word is None:
            return self._encode(text)
        ids, starts, end = [], [], 0
        for match in self._word.finditer(text):
            between, places = self._encode(text[end : match.start()])
            word = self._words[match[1].lower()]
            ids += [*between, *word]
            starts += [*(end + place for place in places), *[match.start()] * len(word)]
            end = match.end()
        rest, places = self._encode(text[end:])
        return [*ids, *rest], [*starts, *(end + place for place in places)]

    def with_words(self, words: Mapping[str, int], *, first: int) -> "Tokenizer":
        """Add words that stand for new tokens: those of textual inversions.

        A word is found wherever it stands by itself, in upper or lower case, also after "embedding:" as ComfyUI writes it.

        Args:
            words: in lower case, and for how many tokens each stands.
            first: the id of the first of these tokens; the others follow, in this order.

        Returns:
            Another tokenizer; this one stays as it is.
        """
        other = copy(self)
        other._words = {}
        for word, count in words.items():
            other._words[word] = range(first, first + count)
            first += count
        # The longest first, as the beginning of one may be another. A word ends where no letter follows, a sign anywhere.
        forms = "|".join(
            rf"{_edge(word[0], before=True)}{re.escape(word)}{_edge(word[-1], before=False)}"
            for word in sorted(words, key=len, reverse=True)
        )
        other._word = re.compile(rf"(?:(?<!\w)embedding:)?({forms})", re.IGNORECASE) if words else None
        return other

    def _encode(self, text: str) -> tuple[list[int], list[int]]:
        try:
            encoding = self._backend.encode(text, add_special_tokens=False)
        except (TypeError, UnicodeEncodeError):
            raise ValueError(f"the prompt {quoted(text)} is not text that can be encoded as UTF-8") from None
        return encoding.ids, [start for start, _ in encoding.offsets]

    def texts(self, ids: Iterable[int]) -> list[str]:
        """Give what each token stands for; a piece of a word that goes on has "…" behind it.

        Of characters of several bytes a token may be a part, which is shown as U+FFFD.
        """
        return [self._text(index) for index in ids]

    def _text(self, index: int) -> str:
        for word, own in self._words.items():
            if index in own:
                return word if len(own) == 1 else f"{word} ({index - own.start + 1} of {len(own)})"
        token = self._backend.id_to_token(index) or ""
        if index in (self.bos_id, self.eos_id):
            return token
        word = decoders.ByteLevel().decode([token.removesuffix(_SUFFIX)])
        return word if token.endswith(_SUFFIX) else f"{word}…"

    def row(self, ids: Sequence[int]) -> list[int]:
        """Put ids, at most `length` - 2, between the begin and the end mark, padded to `length`."""
        return [self.bos_id, *ids, self.eos_id, *[self.pad_id] * (self.length - 2 - len(ids))]

    @property
    def comma_id(self) -> int | None:
        """The id of a comma that stands alone, None if the vocabulary lacks it."""
        return self._backend.token_to_id("," + _SUFFIX)

    def save(self, directory: str | Path) -> None:
        """Write `vocab.json`, `merges.txt`, `tokenizer_config.json` and `special_tokens_map.json` into a folder."""
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        self._backend.model.save(str(directory))
        added = {
            str(index): {name: getattr(token, name) for name in FLAGS} | {"content": token.content}
            for index, token in sorted(self._backend.get_added_tokens_decoder().items())
        }
        config = {
            "added_tokens_decoder": added,
            "add_prefix_space": False,
            "do_lower_case": True,
            "errors": "replace",
            "model_max_length": self.length,
            "tokenizer_class": "CLIPTokenizer",
            **self._marks,
        }
        for name, content in (("tokenizer_config.json", config), ("special_tokens_map.json", self._marks)):
            (directory / name).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

    def _id(self, token: str) -> int:
        index = self._backend.token_to_id(token)
        if index is None:
            raise ValueError(f"the tokenizer's vocabulary lacks its own mark {quoted(token)}")
        return index


def _edge(character: str, *, before: bool) -> str:
    """The pattern of the edge of a word that begins or ends with the character."""
    if not (character.isalnum() or character == "_"):
        return ""
    return r"(?:(?<!\w)|(?<=embedding:))" if before else r"(?!\w)"


def train_tokenizer(texts: Iterable[str], vocab_size: int, *, length: int = LENGTH) -> Tokenizer:
    """Learn a byte-level byte-pair encoding in CLIP's layout.

    Ids 0 … 255 are the bytes, 256 … 511 the bytes that end a word, then come the merges from the most frequent, and last
    the begin and the end mark: any text in any script can be encoded, however little of it was seen.

    Args:
        texts: captions.
        vocab_size: at most this many tokens, 514 or more; fewer when the captions do not hold so many pairs.
        length: tokens of every prompt.

    Raises:
        ValueError: `vocab_size` is below 514.
    """
    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    known = {*symbols, *(symbol + _SUFFIX for symbol in symbols)}
    merged = vocab_size - len(known) - 2
    if merged < 0:
        raise ValueError(f"vocab_size {vocab_size} is too small: use {len(known) + 2} or more")
    learner = _backend({}, [], unknown=None)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, initial_alphabet=symbols, end_of_word_suffix=_SUFFIX, show_progress=False
    )
    learner.train_from_iterator(texts, trainer=trainer)
    merges: list[tuple[str, str]] = []
    for pair in json.loads(learner.to_str())["model"]["merges"]:
        left, right = split_merge(pair)
        if left + right not in known:
            if not merged:
                break
            merged -= 1
            known.add(left + right)
        merges.append((left, right))
    return tokenizer_of_merges(merges, length=length)


def tokenizer_of_merges(merges: Sequence[tuple[str, str]], *, pad: str = EOS, length: int = LENGTH) -> Tokenizer:
    """Build a tokenizer in CLIP's layout of ids, see `train_tokenizer`, from its merges.

    Args:
        merges: pairs of symbols that become one, from the most frequent.
        pad: the token that fills prompts up.
        length: tokens of every prompt, the begin and end marks included.
    """
    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*symbols, *(symbol + _SUFFIX for symbol in symbols), *(left + right for left, right in merges), BOS, EOS]
    vocab = {token: index for index, token in enumerate(dict.fromkeys(tokens))}
    backend = _backend(vocab, list(merges), unknown=EOS)
    marks = {**MARKS, "pad_token": pad}
    for mark in dict.fromkeys(marks.values()):
        backend.add_tokens([AddedToken(mark, special=True, normalized=mark in (BOS, EOS))])
    return Tokenizer(backend, marks, length=length)


def _backend(vocab: dict[str, int], merges: list[tuple[str, str]], *, unknown: str | None) -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer(
        models.BPE(vocab=vocab, merges=merges, end_of_word_suffix=_SUFFIX, fuse_unk=False, unk_token=unknown)
    )
    backend.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    return backend

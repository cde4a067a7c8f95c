"""Prompts as people type them, in the plain words that a model of the world was trained on.

    normalise("SHIP!!!").text == "ship"
    normalise("🐈 in the snow").text == "cat in the snow"
    normalise("a pirate shp").text == "a pirate ship"

A caption of the world comes out as it went in. The prompt itself is left as it is in requests and metadata.
"""

import re
import unicodedata
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache, lru_cache

from genpipe.messages import Notice, listed, quoted
from genpipe.scenes import english
from genpipe.scenes.captions import INTRODUCTIONS, SETTING_NAMES, corpus
from genpipe.scenes.concepts import concepts
from genpipe.scenes.russian import COUNTS, russian_names
from genpipe.scenes.vocabulary import QUIET, WORD, has_hint, ordinary_words, vocabulary

CORRECTED = 64  # words of a prompt that are looked at for slips; the model reads no more than 30
SHORTEST = 3  # letters of a word that may be a slip of another
LONG, LONGER = 5, 7  # letters of a word in which more slips are likely than other words
SYMBOLS = "\u2190"  # the first character that may be an emoji
VOWELS = frozenset("aeiouyаеиоуыэюя")
# What changes how an emoji looks and not what it shows: its presentation and the colour of a skin.
_LOOKS = re.compile("[\ufe0e\ufe0f\U0001f3fb-\U0001f3ff]")


@dataclass(frozen=True)
class Normalised:
    """A prompt in plain words.

    Attributes:
        text: lower case, without punctuation, emoji as words, slips corrected.
        corrected: each word that was taken for a slip, and the word that stands for it.
        dropped: the emoji that the world has no name for.
    """

    text: str
    corrected: dict[str, str] = field(default_factory=dict)
    dropped: tuple[str, ...] = ()


@lru_cache(maxsize=1024)
def normalise(prompt: str, pool: tuple[str, ...] | None = None) -> Normalised:
    """Put a prompt into plain words.

    Args:
        prompt: of any characters.
        pool: the concepts that a model has learned, which slips are corrected to; None is all of the world's.
    """
    text = _LOOKS.sub("", unicodedata.normalize("NFKC", prompt)).lower().replace("’", "'")
    text = re.sub("[👨👩](?=\u200d)", "🧑", text)  # a woman who is an astronaut is drawn as an astronaut
    corrected: dict[str, str] = {}
    dropped: dict[str, None] = {}
    parts: list[str] = []
    looked_at = 0
    for kind, value in _pieces(text, pool):
        if kind == "word":
            looked_at += 1
            meant = slip(value, pool) if looked_at <= CORRECTED else None
            if meant is not None:
                corrected[value] = meant
            parts.append(meant or value)
        elif kind == "unknown":
            dropped[value] = None
        else:
            parts.append(value)
    return Normalised(_punctuated(parts), corrected, tuple(dropped))


def plain_words(prompt: str, pool: tuple[str, ...] | None = None) -> str:
    """Return the text of `normalise`, and warn of what it corrected and dropped: for a model's tokenizer."""
    plain = normalise(prompt, pool)
    for notice in notices(plain):
        warnings.warn(notice, stacklevel=2)
    return plain.text


def notices(plain: Normalised) -> list[Notice]:
    """Say what `normalise` corrected and dropped."""
    found = [
        Notice("the model reads {word} as {meant}", word=quoted(word), meant=quoted(meant))
        for word, meant in [*plain.corrected.items()][:10]
    ]
    if plain.dropped:
        found.append(Notice("the model has no word for {words}: it draws the rest", words=listed(plain.dropped)))
    return found


@lru_cache(maxsize=4096)
def slip(word: str, pool: tuple[str, ...] | None = None) -> str | None:
    """Return the word of the world that `word` is one slip of the finger away from, or None.

    A slip is two letters that changed places, a letter too many or one too few, a wrong vowel in words of five letters or
    more, and any wrong letter in words of seven or more. In shorter words, where another word is as likely, a letter too
    many counts if it stands double, and one too few if no vowel is left (shp). The first letter has to be right, and the
    word must not be one of the world, of its hints or of ordinary language.
    """
    if len(word) < SHORTEST or word.isdigit() or word in QUIET or word in vocabulary(pool):
        return None
    if word in ordinary_words() or word in vocabulary() or has_hint(word):
        return None
    return next((known for known in _alphabetical(pool).get(word[0], ()) if _is_slip(word, known)), None)


def _pieces(text: str, pool: tuple[str, ...] | None) -> Iterator[tuple[str, str]]:
    """Words, separators (","), what emoji say, and emoji that say nothing."""
    language = "ru" if re.search("[а-яё]", text) else "en"
    emoji: list[str] = []  # concepts, side by side
    counted, before = 1, ""
    for match in _pattern(any(character >= SYMBOLS for character in text)).finditer(text):
        kind, value = match.lastgroup, match[0]
        if kind == "emoji":
            concept = _emoji().get(value) or _emoji()[value[:-2]]  # without its gender
            emoji.append(_learned(concept, pool))
            counted = _counts().get(before, 1)
            continue
        if emoji and kind != "space":
            yield "said", _said(emoji, language, counted)
            emoji = []
        before = before if kind == "space" else value
        if kind == "word":
            yield "word", value
        elif kind == "separator":
            yield "separator", ","
        elif kind == "other" and unicodedata.category(value) == "So":
            yield "unknown", value
    if emoji:
        yield "said", _said(emoji, language, counted)


def _said(found: Sequence[str], language: str, counted: int) -> str:
    """Emoji side by side in words: "two apples", "cat and dog"; after the word of a number only what it counts."""
    names = [name if language == "en" else russian_names()[name][0].nominative() for name in found]
    count = counted if len(found) == 1 else len(found) if len(set(found)) == 1 else 1
    if count > 1 and count in english.NUMBERS:
        russian = russian_names()[found[0]][0].counted(count)
        phrase = f"{english.NUMBERS[count]} {english.plural(found[0])}" if language == "en" else russian
        return phrase.partition(" ")[2] if len(found) == 1 else phrase
    return (" and " if language == "en" else " и ").join(names)


def _punctuated(parts: Sequence[str]) -> str:
    """The words with the two marks that captions have: "рисунок: кот", and "cat, space" before a bare setting."""
    *before, last = "".join(part if part == "," else f" {part} " for part in parts).strip(", ").split(",")
    text, last = " ".join(" ".join(before).split()), " ".join(last.split())
    text = f"{text}, {last}" if text and last.replace("ё", "е") in _settings() else f"{text} {last}".strip()
    first, space, rest = text.partition(" ")
    return f"{first}:{space}{rest}" if f"{first}:" in INTRODUCTIONS["ru"] else text


def _is_slip(word: str, known: str) -> bool:
    """Whether `word` is `known` with one slip, see `slip`."""
    if abs(len(word) - len(known)) > 1 or word == known:
        return False
    same = next((i for i, (a, b) in enumerate(zip(word, known, strict=False)) if a != b), min(len(word), len(known)))
    ours, theirs = word[same:], known[same:]  # from the first letter that differs
    if len(word) < len(known):
        return ours == theirs[1:] and (len(word) >= LONG or not VOWELS & set(word))
    if len(word) > len(known):
        return ours[1:] == theirs and (len(word) >= LONG or word[same - 1] == word[same])
    if ours[:2] == theirs[1::-1] and ours[2:] == theirs[2:]:
        return True
    vowels = ours[0] in VOWELS and theirs[0] in VOWELS
    return ours[1:] == theirs[1:] and len(word) >= (LONG if vowels else LONGER)


@cache
def _settings() -> frozenset[str]:
    names = (name for language in SETTING_NAMES.values() for each in language.values() for name in each)
    return frozenset(name.replace("ё", "е") for name in names)


@cache
def _counts() -> dict[str, int]:
    """The words for two, three and four, in both languages."""
    words = {n: (str(n), english.NUMBERS[n], *COUNTS[n].values()) for n in COUNTS}
    return {word: n for n, each in words.items() for word in each}


@cache
def _alphabetical(pool: tuple[str, ...] | None) -> dict[str, tuple[str, ...]]:
    """The words of captions by their first letter, in the order of the table of concepts, which begins with the usual."""
    found: dict[str, dict[str, None]] = {}
    for line in corpus(pool):
        for word in WORD.findall(line.lower()):
            if len(word) >= SHORTEST:
                found.setdefault(word[0], {})[word] = None
    return {letter: tuple(words) for letter, words in found.items()}


def _learned(concept: str, pool: tuple[str, ...] | None) -> str:
    """The concept, or where a model has learned the animal but not its face or head, the animal."""
    animal = concept.removesuffix(" face").removesuffix(" head")
    return animal if pool is not None and concept not in pool and animal in pool else concept


@cache
def _emoji() -> dict[str, str]:
    """The concept whose sprite is drawn from each emoji."""
    return {
        _LOOKS.sub("", recipe): concept.name
        for concept in reversed(concepts().values())  # of several, the first in the table
        for recipe in concept.recipes
        if not recipe.startswith("@")
    }


@cache
def _pattern(with_emoji: bool) -> re.Pattern[str]:
    emoji = ""
    if with_emoji:  # it takes a while to compile
        known = "|".join(map(re.escape, sorted(_emoji(), key=len, reverse=True)))
        emoji = rf"(?P<emoji>(?:{known})(?:\u200d[♀♂])?)|"
    rest = rf"(?P<word>{WORD.pattern})|(?P<separator>[,;.])|(?P<space>\s+)|(?P<other>.)"
    return re.compile(emoji + rest, re.DOTALL)

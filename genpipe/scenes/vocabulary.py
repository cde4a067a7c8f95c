"""Which words the world knows, so that a prompt's other words can be named and something near be offered."""

import difflib
import re
from functools import cache, lru_cache
from importlib.resources import files

from genpipe.scenes.captions import COLOUR_NAMES, DETAIL_WORDS, RELATION_WORDS, SETTING_NAMES, SETTING_PHRASES, corpus
from genpipe.scenes.concepts import concepts
from genpipe.scenes.english import english_names
from genpipe.scenes.russian import agree, russian_names

WORD = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*|\d+")
ASKING = (  # words that ask for nothing to be drawn
    "a an the of in on at to with and or is are it its this that by for from me my please draw drawing picture image photo",
    "painting illustration show make i want some",
    "и с со на в во у к от для из или это мне нарисуй покажи рисунок картинка изображение фото пожалуйста",
)
QUIET = frozenset(word for line in ASKING for word in line.split())


@cache
def vocabulary(pool: tuple[str, ...] | None = None) -> frozenset[str]:
    """Return every word, in every form and both languages, that a caption can hold; lower case.

    Here and below `pool` narrows the world to these concepts, as a model may have learned only some (default: all).
    """
    return frozenset(word for line in corpus(pool) for word in WORD.findall(line.lower()))


@cache
def _names(pool: tuple[str, ...] | None) -> tuple[str, ...]:
    """Every name of a concept and of a setting, in both languages; lower case."""
    said = [name for language in SETTING_NAMES.values() for names in language.values() for name in names]
    said += [name for concept in pool or concepts() for name in english_names()[concept]]
    said += [name.nominative() for concept in pool or concepts() for name in russian_names()[concept]]
    return tuple(dict.fromkeys(name.lower() for name in said))


def unknown_words(prompt: str, pool: tuple[str, ...] | None = None, *, most: int = 10) -> dict[str, tuple[str, ...]]:
    """Return the words of `prompt` that the world does not know, in order, each with up to three known names near it.

    Names are near by meaning where a hint is listed, else by spelling; the tuple is empty where none is. They are looked
    up for the first `most` words only, as it takes milliseconds each.
    """
    known = vocabulary(pool) | QUIET
    words = [word for word in dict.fromkeys(WORD.findall(prompt.lower())) if word not in known and not word.isdigit()]
    return {word: near(word, pool) if index < most else () for index, word in enumerate(words)}


@cache
def hints() -> dict[str, tuple[str, ...]]:
    """Return words that the world lacks, and the known names that come near in meaning, the closest first (near.tsv)."""
    lines = (files("genpipe.scenes") / "near.tsv").read_text(encoding="utf-8").splitlines()
    rows = [line.split("\t") for line in lines]
    return {
        word.strip().replace("ё", "е"): tuple(names.split(", ")) for names, words in rows for word in words.split(",")
    }


@cache
def ordinary_words() -> frozenset[str]:
    """Return words of ordinary language that the world does not know and that look like slips of those it does."""
    return frozenset((files("genpipe.scenes") / "ordinary.txt").read_text(encoding="utf-8").split())


def has_hint(word: str) -> bool:
    """Return whether a hint says what comes near to `word` in meaning: then it is a word and no slip of the finger."""
    return word.lower().replace("ё", "е") in hints()


@lru_cache(maxsize=1024)
def near(word: str, pool: tuple[str, ...] | None = None) -> tuple[str, ...]:
    """Return up to three known names near `word`: the one that means most nearly the same, and those spelled alike."""
    word = word.lower()
    meant = hints().get(word.replace("ё", "е"), ())
    hint = next((name for name in meant if name not in concepts() or name in (pool or concepts())), None)
    alike = difflib.get_close_matches(word, _names(pool), n=3, cutoff=0.75)
    return tuple(dict.fromkeys([hint, *alike] if hint else alike))[:3]


def listing(word: str | None = None, pool: tuple[str, ...] | None = None) -> dict[str, tuple[str, ...]]:
    """Return what can be asked for: each canonical English name with its other names in both languages.

    With `word`, only entries that have it in one of their names.
    """
    entries = {
        name: (*english_names()[name][1:], *(russian.nominative() for russian in russian_names()[name]))
        for name in pool or concepts()
    }
    for setting in SETTING_PHRASES["en"]:
        entries[SETTING_PHRASES["en"][setting][0]] = (
            *SETTING_PHRASES["en"][setting][1:],
            *SETTING_PHRASES["ru"][setting],
        )
    for colour, names in COLOUR_NAMES["en"].items():
        entries[colour] = (*names[1:], *(agree(name, "m") for name in COLOUR_NAMES["ru"][colour]))
    for relation, names in RELATION_WORDS.items():
        entries.setdefault(relation, names)
    for detail in DETAIL_WORDS:
        entries.setdefault(detail, ())
    if word is None:
        return entries
    word = word.lower()
    return {name: others for name, others in entries.items() if any(word in one.lower() for one in (name, *others))}

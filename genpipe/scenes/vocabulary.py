"""Which words the world knows, so that a prompt's other words can be named and something near be offered."""

import difflib
import re
from functools import cache

from genpipe.scenes.captions import COLOUR_NAMES, RELATION_WORDS, SETTING_NAMES, SETTING_PHRASES, corpus
from genpipe.scenes.concepts import concepts
from genpipe.scenes.english import english_names
from genpipe.scenes.russian import agree, russian_names

WORD = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*|\d+")
QUIET = frozenset(
    [
        "a",
        "an",
        "the",
        "of",
        "in",
        "on",
        "at",
        "to",
        "with",
        "and",
        "or",
        "is",
        "are",
        "it",
        "its",
        "this",
        "that",
        "by",
        "for",
        "from",
        "me",
        "my",
        "please",
        "draw",
        "drawing",
        "picture",
        "image",
        "photo",
        "painting",
        "illustration",
        "show",
        "make",
        "i",
        "want",
        "some",
        "и",
        "с",
        "со",
        "на",
        "в",
        "во",
        "у",
        "к",
        "от",
        "для",
        "из",
        "или",
        "это",
        "мне",
        "нарисуй",
        "покажи",
        "рисунок",
        "картинка",
        "изображение",
        "фото",
        "пожалуйста",
    ]
)  # words that ask for nothing to be drawn


@cache
def vocabulary() -> frozenset[str]:
    """Every word, in every form and both languages, that a caption of the world can hold; lower case."""
    return frozenset(word for line in corpus() for word in WORD.findall(line.lower()))


@cache
def _nouns() -> dict[str, str]:
    """Every name of a concept and of a setting, in both languages, and the concept or setting that it names."""
    nouns: dict[str, str] = {}
    for setting in SETTING_NAMES["en"]:
        for language in ("en", "ru"):
            for name in SETTING_NAMES[language][setting]:
                nouns.setdefault(name.lower(), setting)
    for concept in concepts():
        for name in english_names()[concept]:
            nouns.setdefault(name.lower(), concept)
        for name in russian_names()[concept]:
            nouns.setdefault(name.nominative().lower(), concept)
    return nouns


def unknown_words(prompt: str) -> dict[str, tuple[str, ...]]:
    """The words of `prompt` that the world does not know, in order, each with up to three known names near it (by
    meaning where a hint is listed, else by spelling); empty tuples where nothing is near."""
    known = vocabulary() | QUIET
    words = dict.fromkeys(WORD.findall(prompt.lower()))
    return {word: near(word) for word in words if word not in known and not word.isdigit()}


def near(word: str) -> tuple[str, ...]:
    """Up to three known names near `word`."""
    word = word.lower()
    return tuple(difflib.get_close_matches(word, _nouns(), n=3, cutoff=0.72))


def listing(word: str | None = None) -> dict[str, tuple[str, ...]]:
    """What can be asked for: canonical English name to its other names in both languages; with `word`, only entries
    that have it in one of their names."""
    entries = {
        name: (*english_names()[name][1:], *(russian.nominative() for russian in russian_names()[name]))
        for name in concepts()
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
    if word is None:
        return entries
    word = word.lower()
    return {name: others for name, others in entries.items() if any(word in one.lower() for one in (name, *others))}

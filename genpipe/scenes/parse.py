"""What a prompt of the world asks for: the inverse of `caption`, for English and Russian in all their forms."""

from collections import defaultdict
from dataclasses import dataclass, replace
from functools import cache

from genpipe.scenes import english
from genpipe.scenes.captions import (
    COLOUR_NAMES,
    RELATION_WORDS,
    RUSSIAN_RELATIONS,
    SETTING_NAMES,
    SETTING_PHRASES,
    SIZE_NAMES,
)
from genpipe.scenes.concepts import concepts
from genpipe.scenes.english import english_names
from genpipe.scenes.russian import COUNTS, ONE, agree, decline_adjective, russian_names
from genpipe.scenes.vocabulary import WORD

# The form of a Russian noun that follows; elsewhere it is the nominative, after a number the counted one.
_CASES = {"left": "genitive", "right": "genitive", "above": "instrumental", "below": "instrumental"}


@dataclass(frozen=True)
class WantedObject:
    """One thing that a prompt asks for; what it does not say is None."""

    concept: str
    colour: str | None = None
    size: str | None = None
    count: int | None = None


@dataclass(frozen=True)
class WantedScene:
    """All that a prompt asks for; `relation` is where the first object stands, seen from the second."""

    objects: tuple[WantedObject, ...] = ()
    setting: str | None = None
    relation: str | None = None


@dataclass(frozen=True)
class _Meaning:
    part: str  # concept, setting, colour, size, count or relation
    value: str
    form: str = ""  # of a concept: nominative, genitive, instrumental or counted


def parse(prompt: str) -> WantedScene:
    """Read what `prompt` asks for, by the names that the world has; all other words are passed over.

    The longest known phrase is taken at each place. Of a phrase with several meanings ("дома" is a house's genitive and
    "at home") the form decides, and "orange" is a colour where a thing follows.
    """
    words = _words(prompt)
    wanted_scene, pending = WantedScene(), WantedObject("")
    place, thing_ended = 0, -1
    while place < len(words):
        length = _longest(words, place)
        if not length:
            place += 1
            continue
        options = _phrases()[words[place : place + length]]
        # "слон дома": what follows a thing at once is where it is.
        due = "setting" if place == thing_ended else _due(wanted_scene, pending)
        place += length
        meaning = _choose(options, due, followed=_thing_follows(words, place))
        if meaning.part == "concept":
            wanted_scene = replace(
                wanted_scene, objects=(*wanted_scene.objects, replace(pending, concept=meaning.value))
            )
            pending, thing_ended = WantedObject(""), place
        elif meaning.part == "setting":
            wanted_scene = replace(wanted_scene, setting=wanted_scene.setting or meaning.value)
        elif meaning.part == "relation":
            wanted_scene = replace(wanted_scene, relation=wanted_scene.relation or meaning.value)
        else:
            value = int(meaning.value) if meaning.part == "count" else meaning.value
            pending = replace(pending, **{meaning.part: value})
    return wanted_scene if len(wanted_scene.objects) > 1 else replace(wanted_scene, relation=None)


def _due(wanted_scene: WantedScene, pending: WantedObject) -> str:
    """The form that a concept has to have after what was read."""
    if pending.count not in (None, 1):
        return "counted"
    if wanted_scene.relation is not None and len(wanted_scene.objects) == 1:
        return _CASES[wanted_scene.relation]
    return "nominative"


def _choose(options: tuple[_Meaning, ...], due: str, *, followed: bool) -> _Meaning:
    """The meaning that fits best; of a word that is a thing and a colour, the colour where a thing follows."""

    def rank(meaning: _Meaning) -> int:
        if meaning.part == "concept":
            return 1 if meaning.form == due else 3
        return 0 if meaning.part == "colour" and followed else 2

    return min(options, key=rank)


def _thing_follows(words: tuple[str, ...], place: int) -> bool:
    """Whether a concept comes next, after other adjectives if any."""
    while length := _longest(words, place):
        parts = {meaning.part for meaning in _phrases()[words[place : place + length]]}
        if "concept" in parts:
            return True
        if not parts & {"colour", "size"}:
            return False
        place += length
    return False


def _longest(words: tuple[str, ...], place: int) -> int:
    """How many words from `place` on make the longest known phrase; 0 for none."""
    phrases = _phrases()
    lengths = range(min(_longest_phrase(), len(words) - place), 0, -1)
    return next((length for length in lengths if words[place : place + length] in phrases), 0)


def _words(text: str) -> tuple[str, ...]:
    return tuple(WORD.findall(text.lower().replace("ё", "е")))


@cache
def _longest_phrase() -> int:
    return max(map(len, _phrases()))


@cache
def _phrases() -> dict[tuple[str, ...], tuple[_Meaning, ...]]:
    """Every phrase of the world in every form, as its words, and all that it can mean."""
    table: dict[tuple[str, ...], dict[_Meaning, None]] = defaultdict(dict)

    def add(text: str, *meaning: str) -> None:
        table[_words(text)][_Meaning(*meaning)] = None

    for concept in concepts():
        for noun in english_names()[concept]:
            for form in ("nominative", "genitive", "instrumental"):  # English has the one
                add(noun, "concept", concept, form)
            add(english.plural(noun), "concept", concept, "counted")
        for name in russian_names()[concept]:
            add(name.nominative(), "concept", concept, "nominative")
            add(name.genitive(), "concept", concept, "genitive")
            add(name.instrumental(), "concept", concept, "instrumental")
            for n in COUNTS:
                add(name.counted(n).partition(" ")[2], "concept", concept, "counted")
    for language in SETTING_PHRASES:
        for names in (SETTING_PHRASES[language], SETTING_NAMES[language]):
            for setting, phrases in names.items():
                for phrase in phrases:
                    add(phrase, "setting", setting)
    for part, names in (("colour", COLOUR_NAMES), ("size", SIZE_NAMES)):
        for value, words in names["en"].items():
            for word in words:
                add(word, part, value)
        for value, words in names["ru"].items():
            for form in (form for word in words for form in _adjective_forms(word)):
                add(form, part, value)
    for n, number in english.NUMBERS.items():
        forms = ONE if n == 1 else COUNTS[n]
        for word in (number, str(n), *forms.values()):
            add(word, "count", str(n))
    for relation, phrases in RELATION_WORDS.items():
        for phrase in (*phrases, RUSSIAN_RELATIONS[relation]):
            add(phrase, "relation", relation)
    return {words: tuple(meanings) for words, meanings in table.items()}


def _adjective_forms(word: str) -> set[str]:
    """An adjective, given in the masculine nominative, in every gender and case that the world's phrases have."""
    forms = set()
    for gender in "mfnp":
        nominative = agree(word, gender)
        forms.add(nominative)
        forms |= {decline_adjective(nominative, gender, case) for case in ("gen", "ins", "many", "few")}
    return forms

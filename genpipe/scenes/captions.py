"""What people would type for a scene, in English and in Russian.

The wording is canonical and of low entropy, since a small text encoder has to learn it: the usual name most of the
time, one order of the parts, and nothing that the image does not show.
"""

import random
from collections.abc import Sequence
from typing import Literal, TypeVar

from genpipe.scenes import english
from genpipe.scenes.concepts import concepts
from genpipe.scenes.english import english_names
from genpipe.scenes.places import LIGHTS
from genpipe.scenes.russian import Name, agree, russian_names
from genpipe.scenes.world import Scene

Language = Literal["en", "ru"]
Style = Literal["full", "short", "bare"]
T = TypeVar("T")

USUAL = 0.75  # how often the usual one of several wordings is chosen
INTRODUCED = 0.05  # how often a caption begins with "a picture of"

SETTING_PHRASES: dict[Language, dict[str, tuple[str, ...]]] = {
    "en": {
        "sea": ("at sea", "on the sea", "in the sea", "in the ocean", "on the water"),
        "beach": ("on the beach", "on a beach"),
        "underwater": ("underwater", "under water", "under the sea"),
        "meadow": ("in a meadow", "in the meadow", "in a field", "on the grass", "in the park"),
        "forest": ("in the forest", "in a forest", "in the woods"),
        "mountains": ("in the mountains",),
        "desert": ("in the desert", "in a desert"),
        "snow": ("in the snow", "in snow", "in winter"),
        "sunset": ("at sunset",),
        "night": ("at night", "under the stars"),
        "space": ("in space", "in outer space"),
        "rain": ("in the rain",),
        "city": ("in the city", "in a city", "on the street", "in town"),
        "room": ("in a room", "in the room", "at home"),
        "table": ("on a table", "on the table"),
        "sky": ("in the sky",),
        "white": ("on a white background", "on white"),
        "yellow": ("on a yellow background", "on yellow"),
        "blue": ("on a blue background", "on blue"),
        "pink": ("on a pink background", "on pink"),
        "green": ("on a green background", "on green"),
    },
    "ru": {
        "sea": ("в море", "на море", "в океане", "на воде"),
        "beach": ("на пляже", "на берегу"),
        "underwater": ("под водой",),
        "meadow": ("на лугу", "на траве", "в поле", "в парке"),
        "forest": ("в лесу",),
        "mountains": ("в горах",),
        "desert": ("в пустыне",),
        "snow": ("в снегу", "на снегу", "зимой"),
        "sunset": ("на закате",),
        "night": ("ночью", "под звёздами"),
        "space": ("в космосе", "в открытом космосе"),
        "rain": ("под дождём",),
        "city": ("в городе", "на улице"),
        "room": ("в комнате", "дома"),
        "table": ("на столе",),
        "sky": ("в небе", "на небе"),
        "white": ("на белом фоне", "на белом"),
        "yellow": ("на жёлтом фоне", "на жёлтом"),
        "blue": ("на голубом фоне", "на синем фоне"),
        "pink": ("на розовом фоне", "на розовом"),
        "green": ("на зелёном фоне", "на зелёном"),
    },
}
SETTING_NAMES: dict[Language, dict[str, tuple[str, ...]]] = {
    "en": {
        "sea": ("sea", "ocean"), "beach": ("beach",), "underwater": ("underwater",), "meadow": ("meadow", "field"),
        "forest": ("forest", "woods"), "mountains": ("mountains",), "desert": ("desert",), "snow": ("snow", "winter"),
        "sunset": ("sunset",), "night": ("night", "night sky"), "space": ("space", "outer space"), "rain": ("rain",),
        "city": ("city", "street"), "room": ("room",), "table": ("table",), "sky": ("sky",),
        "white": ("white background",), "yellow": ("yellow background",), "blue": ("blue background",),
        "pink": ("pink background",), "green": ("green background",),
    },
    "ru": {
        "sea": ("море", "океан"), "beach": ("пляж",), "underwater": ("под водой",), "meadow": ("луг", "поле"),
        "forest": ("лес",), "mountains": ("горы",), "desert": ("пустыня",), "snow": ("снег", "зима"),
        "sunset": ("закат",), "night": ("ночь", "ночное небо"), "space": ("космос",), "rain": ("дождь",),
        "city": ("город", "улица"), "room": ("комната",), "table": ("стол",), "sky": ("небо",),
        "white": ("белый фон",), "yellow": ("жёлтый фон",), "blue": ("голубой фон", "синий фон"),
        "pink": ("розовый фон",), "green": ("зелёный фон",),
    },
}  # fmt: skip
COLOUR_NAMES: dict[Language, dict[str, tuple[str, ...]]] = {
    "en": {
        "red": ("red",), "orange": ("orange",), "yellow": ("yellow", "golden"), "green": ("green",),
        "turquoise": ("turquoise", "teal"), "blue": ("blue",), "purple": ("purple", "violet"), "pink": ("pink",),
        "brown": ("brown",), "black": ("black",), "white": ("white",), "gray": ("gray", "grey"),
    },
    "ru": {
        "red": ("красный",), "orange": ("оранжевый", "рыжий"), "yellow": ("жёлтый", "золотой"), "green": ("зелёный",),
        "turquoise": ("бирюзовый",), "blue": ("синий", "голубой"), "purple": ("фиолетовый",), "pink": ("розовый",),
        "brown": ("коричневый",), "black": ("чёрный",), "white": ("белый",), "gray": ("серый",),
    },
}  # fmt: skip
SIZE_NAMES: dict[Language, dict[str, tuple[str, ...]]] = {
    "en": {"small": ("small", "little", "tiny"), "big": ("big", "large", "huge")},
    "ru": {"small": ("маленький",), "big": ("большой", "огромный")},
}
RELATION_WORDS: dict[str, tuple[str, ...]] = {
    "left": ("to the left of", "left of"),
    "right": ("to the right of", "right of"),
    "above": ("above", "over"),
    "below": ("below", "under"),
}
RUSSIAN_RELATIONS = {"left": "слева от", "right": "справа от", "above": "над", "below": "под"}
INTRODUCTIONS: dict[Language, tuple[str, ...]] = {
    "en": ("a picture of", "a drawing of", "an image of", "a photo of"),
    "ru": ("картинка:", "рисунок:", "изображение:"),
}


# What captions need not say, in the order in which `details` says it; the first of each is what goes without saying.
LIGHT_WORDS: dict[str, str] = dict(zip(LIGHTS, ("", "sunny", "morning", "evening", "moonlight", "cloudy"), strict=True))
STAND_WORDS = ("", "left", "right", "away", "close")
SHADE_WORDS = ("", "dark", "pale")
FAR_WORDS = ("", "view", "scenery")
DETAIL_WORDS = tuple(
    word for words in (LIGHT_WORDS.values(), STAND_WORDS, SHADE_WORDS, FAR_WORDS) for word in words if word
)


class Words:
    """A choice among wordings: the usual one with a probability of USUAL, always where there is no `rng`."""

    def __init__(self, rng: random.Random | None) -> None:
        self.rng = rng

    def pick(self, options: Sequence[T]) -> T:
        """Return one of the wordings, of which the first is the usual one."""
        if self.rng is None or len(options) == 1 or self.rng.random() < USUAL:
            return options[0]
        return self.rng.choice(options[1:])

    def chance(self, share: float) -> bool:
        """Return True in such a share of the cases, never without `rng`."""
        return self.rng is not None and self.rng.random() < share


def caption(scene: Scene, rng: random.Random | None = None, language: Language = "en", style: Style = "full") -> str:
    """Word a caption of `scene`.

    full   a sentence's worth: "a pirate ship in space", "a cat to the left of a dog"
    short  the same without articles: "pirate ship in space"
    bare   as search terms: "pirate ship, space"; of a scene of one canonical object the noun alone

    Without `rng` the wording is the canonical one; with it, synonyms and other turns come in. Russian has no articles:
    there full and short differ only in what may be left out.
    """
    words = Words(rng)
    things = _english(scene, words, style) if language == "en" else _russian(scene, words)
    place = _place(scene, words, language, style)
    text = things + ((", " if style == "bare" and things else " ") + place if place else "")
    if style == "full" and words.chance(INTRODUCED):
        text = f"{words.pick(INTRODUCTIONS[language])} {text.strip()}"
    if language == "ru" and words.chance(0.3):
        text = text.replace("ё", "е").replace("Ё", "Е")
    return text.strip()


def details(scene: Scene, language: Language = "en") -> str:
    """Word what a caption of `scene` leaves open, after which nothing is open any more but the `look`.

    That is the place where the caption says none, the light of the day, where the only thing stands, its shade and what is
    far away, in words that follow the caption; nothing of what is as in the plainest scene.
    """
    words = [LIGHT_WORDS[scene.light], STAND_WORDS[scene.stand], FAR_WORDS[scene.far]]
    if scene.objects:
        words.insert(2, SHADE_WORDS[scene.objects[0].shade])
        if scene.anywhere and scene.setting != concepts()[scene.objects[0].concept].home:
            words.insert(0, SETTING_PHRASES[language][scene.setting][0])
    return " ".join(filter(None, words))


def in_full(caption: str, details: str) -> str:
    """Join a caption and what it leaves open, as `genpipe.scenes.normalise` puts them: without the comma in between."""
    return f"{caption.replace(',', '')} {details}" if details else caption


def _place(scene: Scene, words: Words, language: Language, style: Style) -> str:
    if not scene.objects:
        name = words.pick(SETTING_NAMES[language][scene.setting])
        bare = language == "ru" or style != "full" or name in ("mountains", "snow", "space", "outer space", "underwater",
                                                               "rain", "night", "winter", "woods")  # fmt: skip
        return name if bare else english.with_article(name, name)
    if scene.anywhere:
        return ""
    return words.pick((SETTING_NAMES if style == "bare" else SETTING_PHRASES)[language][scene.setting])


def _english(scene: Scene, words: Words, style: Style) -> str:
    if not scene.objects:
        return ""
    nouns = [words.pick(english_names()[placed.concept]) for placed in scene.objects]
    if scene.kind == "count":
        n, noun = len(scene.objects), nouns[0]
        number = words.pick((english.NUMBERS[n], str(n)))
        return f"{number} {noun if n == 1 else english.plural(noun)}"
    phrases = []
    for placed, noun in zip(scene.objects, nouns, strict=True):
        adjectives = [words.pick(COLOUR_NAMES["en"][placed.colour])] if placed.colour else []
        if scene.size:
            adjectives.insert(0, words.pick(SIZE_NAMES["en"][scene.size]))
        phrase = " ".join([*adjectives, noun])
        phrases.append(english.with_article(phrase, noun) if style == "full" else phrase)
    if len(phrases) == 1:
        return phrases[0]
    joint = words.pick(RELATION_WORDS[scene.relation]) if scene.relation else "and"
    return f"{phrases[0]} {joint} {phrases[1]}"


def _russian(scene: Scene, words: Words) -> str:
    if not scene.objects:
        return ""
    nouns = [words.pick(russian_names()[placed.concept]) for placed in scene.objects]
    if scene.kind == "count":
        return nouns[0].counted(len(scene.objects), digits=words.chance(1 - USUAL))
    if len(nouns) == 1:
        placed = scene.objects[0]
        colours = COLOUR_NAMES["ru"][placed.colour] if placed.colour else ()
        if "рыжий" in colours and concepts()[placed.concept].category != "animal":
            colours = colours[:1]
        adjectives = [words.pick(colours)] if colours else []
        if scene.size:
            adjectives.insert(0, words.pick(SIZE_NAMES["ru"][scene.size]))
        return nouns[0].nominative(*adjectives)
    first, second = nouns
    if scene.relation is None:
        return f"{first.nominative()} и {second.nominative()}"
    other = second.genitive() if scene.relation in ("left", "right") else second.instrumental()
    return f"{first.nominative()} {RUSSIAN_RELATIONS[scene.relation]} {other}"


def _forms(name: Name) -> list[str]:
    return [name.nominative(), name.genitive(), name.instrumental(), *(name.counted(n) for n in (1, 2, 3, 4))]


def corpus(pool: Sequence[str] | None = None) -> list[str]:
    """Return every word form and every pattern of the world in both languages, for a tokenizer to be trained on.

    That is each name and its forms, each place, colour, size and relation. Names are those of the concepts in `pool`
    (default: all).
    """
    lines: list[str] = []
    pool = tuple(concepts()) if pool is None else pool
    for tongue in ("en", "ru"):
        language: Language = tongue
        for table in (SETTING_PHRASES, SETTING_NAMES):
            lines += [phrase for phrases in table[language].values() for phrase in phrases]
        lines += INTRODUCTIONS[language]
    for concept in pool:
        for noun in english_names()[concept]:
            lines += [noun, english.with_article(noun, noun), f"{noun} and {english.with_article(noun, noun)}"]
            lines += [f"{number} {english.plural(noun)}" for number in list(english.NUMBERS.values())[1:]]
        for name in russian_names()[concept]:
            lines += [*_forms(name), f"{name.nominative()} и {name.nominative()}"]
            lines += [f"слева от {name.genitive()}", f"справа от {name.genitive()}"]
            lines += [f"над {name.instrumental()}", f"под {name.instrumental()}"]
    for table in (COLOUR_NAMES, SIZE_NAMES):
        lines += [word for words in table["en"].values() for word in words]
        lines += [agree(word, gender) for words in table["ru"].values() for word in words for gender in "mfnp"]
    lines += [f"a {joint} a" for joints in RELATION_WORDS.values() for joint in joints]
    lines += DETAIL_WORDS
    lines += [f"{n}" for n in english.NUMBERS] + list(english.NUMBERS.values())
    return lines + [line.replace("ё", "е") for line in lines if "ё" in line]

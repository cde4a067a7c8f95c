"""Russian phrases for the things of the world: gender, cases and counted forms, by rule with the exceptions in the table.

`russian.tsv` holds, for each concept, its names separated by `; `, the usual one first. A name is
`phrase:gender[:genitive[:instrumental]]`: the gender is m, f, n or p (plural only), with an `a` after it for a noun that
declines as an adjective (мороженое) and a `0` for one that does not decline (такси); the cases are of the head noun
alone, given where the rules below would go wrong (лев:m:льва). An underscore joins words that make one noun.
"""

import csv
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

HUSHING, VELAR = "жшчщ", "гкх"
COUNTS = {
    2: {"m": "два", "f": "две", "n": "два", "p": "двое"},
    3: {"m": "три", "f": "три", "n": "три", "p": "трое"},
    4: {"m": "четыре", "f": "четыре", "n": "четыре", "p": "четверо"},
}
ONE = {"m": "один", "f": "одна", "n": "одно", "p": "одни"}


def _is_adjective(word: str) -> bool:
    return word.endswith(("ый", "ий", "ой", "ая", "яя", "жья", "ое", "ее", "ые", "ие"))


def _soft(stem: str, ending: str) -> bool:
    """Whether an adjective's endings are spelled with и where others have ы (синий, маленький, большой)."""
    return ending in ("ий", "яя", "ее", "ие") or stem[-1] in HUSHING + VELAR


def agree(adjective: str, gender: str) -> str:
    """Return the nominative of an adjective, given in the masculine (красный, синий), that goes with a noun of `gender`."""
    stem, ending = adjective[:-2], adjective[-2:]
    tender = ending == "ий" and stem[-1] not in VELAR  # синий, рыжий
    if gender == "m":
        return adjective
    if gender == "p":
        return stem + ("ие" if _soft(stem, ending) else "ые")
    if gender == "f":
        return stem + ("яя" if tender and stem[-1] not in HUSHING else "ая")
    return stem + ("ее" if tender else "ое")


def decline_adjective(word: str, gender: str, case: str) -> str:
    """Return the genitive ("gen"), instrumental ("ins"), genitive plural ("many") or nominative plural ("few")."""
    stem, ending = word[:-2], word[-2:]
    i = "и" if _soft(stem, ending) else "ы"
    if ending == "ья":  # божья
        return stem + {"few": "ьи", "many": "ьих"}.get(case, "ьей")
    tender = ending in ("яя", "ее") or stem[-1] in {"ий": set("жшчщн"), "ая": set(HUSHING)}.get(ending, ())
    if case == "few":
        return stem + i + "е"
    if case == "many" or (gender == "p" and case == "gen"):
        return stem + i + "х"
    if gender == "p":
        return stem + i + "ми"
    if gender == "f":
        return stem + ("ей" if tender else "ой")
    return stem + (("его" if tender else "ого") if case == "gen" else i + "м")


def genitive(noun: str, gender: str) -> str:
    """Return the genitive of a noun, by the rules that most follow."""
    stem, last = noun[:-1], noun[-1]
    if last == "а":
        return stem + ("и" if stem[-1] in HUSHING + VELAR else "ы")
    if last == "я" or (last == "ь" and gender == "f"):
        return stem + "и"
    if last in "ьй":
        return stem + "я"
    if last == "о":
        return stem + "а"
    if last in "её":
        return stem + ("а" if stem[-1] in HUSHING + "ц" else "я")
    return noun + "а"


def instrumental(noun: str, gender: str, of: str) -> str:
    """Return the instrumental of a noun whose genitive is `of` (a vowel that falls out falls out of both)."""
    stem, last = of[:-1], noun[-1]
    if gender == "p":
        return noun[:-1] + ("ями" if last == "и" and noun[-2] not in HUSHING + VELAR else "ами")
    if last == "ь" and gender == "f":
        return noun[:-1] + "ью"
    if last == "а":
        return stem + ("ей" if stem[-1] in HUSHING + "ц" else "ой")
    if last == "я":
        return stem + "ей"
    if last == "ё":
        return stem + "ём"
    if last != "о" and (of[-1] == "я" or stem[-1] in HUSHING + "ц"):
        return stem + "ем"
    return stem + "ом"


@dataclass(frozen=True)
class Name:
    """A noun phrase: adjectives that agree, the noun, and words that do not change (чашка кофе)."""

    adjectives: tuple[str, ...]
    noun: str
    tail: str
    gender: str
    manner: str  # "" a noun, "a" declined as an adjective, "0" not declined
    noun_genitive: str
    noun_instrumental: str

    @classmethod
    def parse(cls, text: str) -> "Name":
        """Read a name as `russian.tsv` has it, see above."""
        phrase, kind, *cases = text.split(":")
        words, gender, manner = phrase.split(), kind[0], kind[1:]
        head = 0
        while manner != "a" and head < len(words) - 1 and _is_adjective(words[head]):
            head += 1
        noun = words[head]
        if manner == "0":
            of = by = noun
        elif manner == "a":
            of, by = decline_adjective(noun, gender, "gen"), decline_adjective(noun, gender, "ins")
        else:
            of = cases[0] if cases and cases[0] else genitive(noun, gender)
            by = cases[1] if len(cases) > 1 else instrumental(noun, gender, of)
        return cls(tuple(words[:head]), noun, " ".join(words[head + 1 :]), gender, manner, of, by)

    def _phrase(self, adjectives: list[str], noun: str) -> str:
        return " ".join([*adjectives, noun, self.tail]).strip().replace("_", " ")

    def nominative(self, *adjectives: str) -> str:
        """Return the phrase after further adjectives (given in the masculine), which agree with it."""
        return self._phrase([agree(word, self.gender) for word in adjectives] + list(self.adjectives), self.noun)

    def genitive(self) -> str:
        """Return the phrase in the genitive."""
        changed = [decline_adjective(word, self.gender, "gen") for word in self.adjectives]
        return self._phrase(changed, self.noun_genitive)

    def instrumental(self) -> str:
        """Return the phrase in the instrumental."""
        changed = [decline_adjective(word, self.gender, "ins") for word in self.adjectives]
        return self._phrase(changed, self.noun_instrumental)

    def counted(self, n: int, digits: bool = False) -> str:
        """Return two, three or four of it: две кошки, два пиратских корабля, двое очков."""
        if n == 1:
            return f"{1 if digits else ONE[self.gender]} {self.nominative()}"
        case = "few" if self.gender == "f" else "many"
        noun = decline_adjective(self.noun, self.gender, case) if self.manner == "a" else self.noun_genitive
        changed = [decline_adjective(word, self.gender, case) for word in self.adjectives]
        return f"{n if digits else COUNTS[n][self.gender]} {self._phrase(changed, noun)}"


@cache
def russian_names() -> dict[str, tuple[Name, ...]]:
    """Return the Russian names of each concept, the usual one first."""
    text = (files("genpipe.scenes") / "russian.tsv").read_text(encoding="utf-8")
    rows = csv.reader(text.splitlines(), delimiter="\t", quoting=csv.QUOTE_NONE)
    return {name: tuple(Name.parse(part) for part in parts.split("; ")) for name, parts in rows}

"""English phrases for the things of the world: articles and plurals."""

from functools import cache

from genpipe.scenes.concepts import concepts

NUMBERS = {1: "one", 2: "two", 3: "three", 4: "four"}
UNCOUNTED = {
    "bread", "cheese", "fire", "lightning", "ice cream", "coffee", "rice", "popcorn", "butter", "bacon", "meat", "milk",
    "honey", "money", "corn", "broccoli", "garlic", "lettuce", "ginger", "seaweed", "santa", "santa claus", "wheat",
    "bamboo", "sushi", "spaghetti", "pasta", "chocolate", "ice", "saturn", "fog", "tea", "beer", "wine", "coral", "salt",
}  # fmt: skip
PLURAL_ONLY = {
    "glasses", "grapes", "eyeglasses", "drums", "french fries", "fries", "scissors", "chopsticks", "jeans", "shorts",
    "sunglasses", "goggles", "cherries", "headphones", "pants", "socks", "gloves", "boxing gloves", "ballet shoes",
    "trousers", "swim trunks", "bagpipes", "dumplings", "beans", "peas", "blueberries", "skis", "ice skates", "binoculars",
    "twins", "footprints", "musical notes", "playing cards", "bells", "theater masks", "crossed swords", "maracas",
    "earphones", "briefs", "beads", "fireworks", "clinking glasses", "chips", "noodles",
}  # fmt: skip
THE = {"sun", "moon", "earth", "planet earth"}
IRREGULAR = {
    "fish": "fish", "sheep": "sheep", "mouse": "mice", "wolf": "wolves", "knife": "knives", "leaf": "leaves",
    "man": "men", "woman": "women", "person": "people", "tooth": "teeth", "foot": "feet", "goose": "geese",
    "ox": "oxen", "child": "children", "squid": "squid", "shrimp": "shrimp", "loaf": "loaves", "scarf": "scarves",
    "bison": "bison", "aircraft": "aircraft", "spacecraft": "spacecraft", "deer": "deer", "elf": "elves",
    "moose": "moose", "plankton": "plankton", "cactus": "cacti", "volcano": "volcanoes", "tomato": "tomatoes",
    "potato": "potatoes", "mango": "mangoes", "policeman": "policemen", "fireman": "firemen", "snowman": "snowmen",
    "spaceman": "spacemen", "fisherman": "fishermen",
}  # fmt: skip


def counts(noun: str) -> bool:
    """Whether one can say "two" of it."""
    return noun not in UNCOUNTED and noun not in THE


def with_article(phrase: str, noun: str) -> str:
    """`phrase` (the noun, perhaps after adjectives) with the article it takes."""
    if noun in UNCOUNTED or noun in PLURAL_ONLY:
        return phrase
    if noun in THE:
        return f"the {phrase}"
    vowel = phrase[0] in "aeio" or (phrase[0] == "u" and not phrase.startswith(("uni", "ufo", "uku")))
    return f"{'an' if vowel else 'a'} {phrase}"


def plural(noun: str) -> str:
    if noun in PLURAL_ONLY or noun in UNCOUNTED:
        return noun
    if " of " in noun:
        head, tail = noun.split(" of ", 1)
        return f"{plural(head)} of {tail}"
    head, _, last = noun.rpartition(" ")
    before = f"{head} " if head else ""
    if last in IRREGULAR:
        return before + IRREGULAR[last]
    if last.endswith(("s", "x", "z", "ch", "sh")):
        return f"{noun}es"
    if last.endswith("y") and last[-2] not in "aeiou":
        return f"{noun[:-1]}ies"
    return f"{noun}s"


@cache
def english_names() -> dict[str, tuple[str, ...]]:
    """The English names of each concept, the usual one first."""
    return {name: (name, *concept.synonyms) for name, concept in concepts().items()}

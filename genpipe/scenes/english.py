"""English phrases for the things of the world: articles and plurals."""

import re
from functools import cache

from genpipe.scenes.concepts import concepts

NUMBERS = {1: "one", 2: "two", 3: "three", 4: "four"}
UNCOUNTED = frozenset(
    [
        "bread",
        "cheese",
        "fire",
        "lightning",
        "ice cream",
        "coffee",
        "rice",
        "popcorn",
        "butter",
        "bacon",
        "meat",
        "milk",
        "honey",
        "corn",
        "broccoli",
        "garlic",
        "lettuce",
        "santa",
        "santa claus",
        "mrs claus",
        "wheat",
        "lavender",
        "sushi",
        "spaghetti",
        "pasta",
        "chocolate",
        "ice",
        "saturn",
        "tea",
        "green tea",
        "beer",
        "wine",
        "salt",
        "champagne",
        "whiskey",
        "soda",
        "juice",
        "bubble tea",
        "coral",
        "wood",
        "curry",
        "ramen",
        "soup",
        "stew",
        "soap",
        "toilet paper",
        "yarn",
        "thread",
        "dynamite",
        "dna",
        "medicine",
        "mail",
        "luggage",
        "confetti",
        "music",
        "treasure",
        "cutlery",
        "bowling",
        "tennis",
        "table tennis",
        "ping pong",
        "badminton",
        "ice hockey",
        "canned food",
        "chinese takeout",
        "poop",
        "poo",
        "mount fuji",
        "fuji",
        "camping",
        "shaved ice",
        "meat on the bone",
        "meat on bone",
        "nail polish",
        "hammer and wrench",
        "fork and knife",
        "knife and fork",
        "skull and crossbones",
        "nut and bolt",
        "bow and arrow",
    ]
)
SINGULAR_S = ("ss", "us", "is", "rhinoceros")  # a word that ends so is not a plural: dress, bus, tennis
THE = {"sun", "moon", "earth", "planet earth", "statue of liberty", "eiffel tower"}
TAIL = re.compile(r" (?:of|with|on|behind|in|at) ")
IRREGULAR = {
    "fish": "fish", "pufferfish": "pufferfish", "blowfish": "blowfish", "jellyfish": "jellyfish", "merman": "mermen",
    "hero": "heroes", "superhero": "superheroes", "buffalo": "buffaloes", "mosquito": "mosquitoes", "tornado": "tornadoes",
    "dice": "dice", "sheep": "sheep", "mouse": "mice", "wolf": "wolves", "knife": "knives", "leaf": "leaves",
    "man": "men", "woman": "women", "person": "people", "tooth": "teeth", "foot": "feet", "goose": "geese",
    "ox": "oxen", "child": "children", "squid": "squid", "shrimp": "shrimp", "loaf": "loaves", "scarf": "scarves",
    "bison": "bison", "aircraft": "aircraft", "spacecraft": "spacecraft", "deer": "deer", "elf": "elves",
    "moose": "moose", "plankton": "plankton", "cactus": "cacti", "volcano": "volcanoes", "tomato": "tomatoes",
    "potato": "potatoes", "mango": "mangoes", "policeman": "policemen", "fireman": "firemen", "snowman": "snowmen",
    "spaceman": "spacemen", "die": "dice",
}  # fmt: skip


def is_plural(noun: str) -> bool:
    """Return whether the noun is a plural already: glasses, tears of joy, but not face with glasses."""
    head = TAIL.split(noun)[0]
    return head == "skis" or (head.endswith("s") and not head.endswith(SINGULAR_S))


def with_article(phrase: str, noun: str) -> str:
    """Return `phrase` (the noun, perhaps after adjectives) with the article that it takes."""
    if noun in UNCOUNTED or is_plural(noun):
        return phrase
    if noun in THE:
        return f"the {phrase}"
    vowel = phrase.startswith(("a", "e", "i", "o", "hour", "suv")) or (
        phrase.startswith("u") and not phrase.startswith(("uni", "ufo"))
    )
    return f"{'an' if vowel else 'a'} {phrase}"


def plural(noun: str) -> str:
    """Return what follows "two": cats, pirate ships, cups of coffee, glasses."""
    if is_plural(noun) or noun in UNCOUNTED:
        return noun
    tail = TAIL.search(noun)
    if tail:
        return plural(noun[: tail.start()]) + noun[tail.start() :]
    before, space, last = noun.rpartition(" ")
    if last in IRREGULAR:
        last = IRREGULAR[last]
    elif last.endswith(("s", "x", "z", "ch", "sh")):
        last = f"{last}es"
    elif last.endswith("y") and last[-2] not in "aeiou":
        last = f"{last[:-1]}ies"
    else:
        last = f"{last}s"
    return before + space + last


@cache
def english_names() -> dict[str, tuple[str, ...]]:
    """Return the English names of each concept, the usual one first."""
    return {name: (name, *concept.synonyms) for name, concept in concepts().items()}

import random

import pytest

from genpipe.scenes import atlas, canonical, caption, concepts, corpus, sample_batch, vocabulary
from genpipe.scenes.captions import COLOUR_NAMES, RELATION_WORDS, SETTING_NAMES, SETTING_PHRASES
from genpipe.scenes.colours import COLOURS
from genpipe.scenes.english import english_names, plural, with_article
from genpipe.scenes.places import LOOK, SETTINGS
from genpipe.scenes.russian import Name, agree, russian_names
from genpipe.scenes.vocabulary import WORD
from genpipe.scenes.world import Placed, Scene


def scene(kind: str, *things: str, setting: str | None = None, colour: str | None = None, **more) -> Scene:
    objects = tuple(Placed(name, atlas.variants(name)[0], 0.5, 0.5, 0.5, colour=colour) for name in things)
    home, stated = concepts()[things[0]].home, setting is not None
    return Scene(kind, setting or home, (0.5,) * LOOK, objects, stated=stated, **more)


@pytest.mark.parametrize(
    ("what", "english", "russian"),
    [
        (canonical("pirate ship"), "a pirate ship", "пиратский корабль"),
        (scene("setting", "pirate ship", setting="space"), "a pirate ship in space", "пиратский корабль в космосе"),
        (scene("colour", "car", colour="red"), "a red car", "красная машина"),
        (scene("colour", "apple", colour="blue"), "a blue apple", "синее яблоко"),
        (scene("colour", "glasses", colour="green"), "green glasses", "зелёные очки"),
        (scene("colour", "owl", colour="orange", setting="snow"), "an orange owl in the snow", "оранжевая сова в снегу"),
        (scene("count", *["cat"] * 2), "two cats", "две кошки"),
        (scene("count", *["pirate ship"] * 3), "three pirate ships", "три пиратских корабля"),
        (scene("count", *["palm tree"] * 4, setting="desert"), "four palm trees in the desert", "четыре пальмы в пустыне"),
        (scene("count", "lion"), "one lion", "один лев"),
        (scene("count", *["glasses"] * 2), "two glasses", "двое очков"),
        (scene("size", "dragon", size="small"), "a small dragon", "маленький дракон"),
        (scene("size", "house", size="big"), "a big house", "большой дом"),
        (scene("pair", "cat", "dog", setting="beach"), "a cat and a dog on the beach", "кошка и собака на пляже"),
        (scene("pair", "cat", "dog", relation="left", setting="beach"),
         "a cat to the left of a dog on the beach", "кошка слева от собаки на пляже"),
        (scene("pair", "bird", "castle", relation="above"), "a bird above a castle", "птица над замком"),
        (scene("pair", "key", "lion", relation="below"), "a key below a lion", "ключ под львом"),
        (scene("pair", "owl", "sun", relation="right"), "an owl to the right of the sun", "сова справа от солнца"),
        (Scene("place", "sunset", (0.5,) * LOOK, ()), "a sunset", "закат"),
        (Scene("place", "space", (0.5,) * LOOK, ()), "space", "космос"),
    ],
)  # fmt: skip
def test_canonical_captions_are_what_a_person_types(what: Scene, english: str, russian: str):
    assert caption(what) == english
    assert caption(what, language="ru") == russian


def test_short_captions_drop_articles_and_bare_ones_are_search_terms():
    at_sea = scene("setting", "pirate ship", setting="space")
    assert caption(at_sea, style="short") == "pirate ship in space"
    assert caption(at_sea, style="bare") == "pirate ship, space"
    assert caption(at_sea, language="ru", style="bare") == "пиратский корабль, космос"
    assert caption(canonical("pirate ship"), style="bare") == "pirate ship"


def test_a_caption_names_each_object_its_colour_its_setting_and_nothing_else():
    rng = random.Random(0)
    for drawn in sample_batch(random.Random(1), 400):
        for style in ("full", "short", "bare"):
            english, russian = caption(drawn, rng, "en", style), caption(drawn, rng, "ru", style).replace("ё", "е")
            for o in drawn.objects:
                assert any(w in english or plural(w) in english for w in english_names()[o.concept]), (english, o)
                if o.colour:
                    assert any(word in english.split() for word in COLOUR_NAMES["en"][o.colour])
                    forms = {agree(w, g).replace("ё", "е") for w in COLOUR_NAMES["ru"][o.colour] for g in "mfnp"}
                    assert forms & set(WORD.findall(russian))
            if drawn.kind == "setting":
                phrases = SETTING_PHRASES["en"][drawn.setting] + SETTING_NAMES["en"][drawn.setting]
                assert any(english.endswith(phrase) for phrase in phrases), english
            if drawn.kind == "bare":
                assert not any(p in english for p in SETTING_PHRASES["en"][drawn.setting])
            if drawn.relation:
                assert any(f" {word} " in english for word in RELATION_WORDS[drawn.relation])


def test_captions_vary_but_mostly_use_the_usual_name():
    rng = random.Random(0)
    said = [caption(canonical("cat"), rng, style="bare") for _ in range(400)]
    assert {"cat", "kitty", "kitten"} == set(said)
    assert 0.65 < said.count("cat") / 400 < 0.85
    russian = [caption(canonical("cat"), rng, "ru") for _ in range(400)]
    assert {"кошка", "кот", "котенок"} < set(russian)


def test_every_word_of_a_caption_is_in_the_corpus():
    rng, known = random.Random(2), vocabulary()
    assert len(corpus()) > 10_000
    for drawn in sample_batch(random.Random(3), 1500):
        for language in ("en", "ru"):
            for style in ("full", "short", "bare"):
                said = caption(drawn, rng, language, style)
                assert set(WORD.findall(said.lower())) <= known, said


def test_every_setting_and_colour_can_be_said_in_both_languages():
    for language in ("en", "ru"):
        assert list(SETTING_PHRASES[language]) == list(SETTING_NAMES[language]) == list(SETTINGS)
        assert list(COLOUR_NAMES[language]) == list(COLOURS)


@pytest.mark.parametrize(
    ("noun", "one", "many"),
    [
        ("cat", "a cat", "cats"), ("octopus", "an octopus", "octopuses"), ("unicorn", "a unicorn", "unicorns"),
        ("ufo", "a ufo", "ufos"), ("umbrella", "an umbrella", "umbrellas"), ("hourglass", "an hourglass", "hourglasses"),
        ("wolf", "a wolf", "wolves"), ("fish", "a fish", "fish"), ("butterfly", "a butterfly", "butterflies"),
        ("donkey", "a donkey", "donkeys"), ("bus", "a bus", "buses"), ("glasses", "glasses", "glasses"),
        ("cup of coffee", "a cup of coffee", "cups of coffee"), ("bread", "bread", "bread"), ("sun", "the sun", "suns"),
        ("cat with a crown", "a cat with a crown", "cats with a crown"), ("dress", "a dress", "dresses"),
    ],
)  # fmt: skip
def test_english_articles_and_plurals(noun: str, one: str, many: str):
    assert with_article(noun, noun) == one
    assert plural(noun) == many


@pytest.mark.parametrize(
    ("name", "of", "by", "two"),
    [
        ("кошка:f", "кошки", "кошкой", "две кошки"),
        ("лев:m:льва", "льва", "львом", "два льва"),
        ("корабль:m:корабля:кораблём", "корабля", "кораблём", "два корабля"),
        ("пиратский корабль:m:корабля:кораблём", "пиратского корабля", "пиратским кораблём", "два пиратских корабля"),
        ("божья коровка:f", "божьей коровки", "божьей коровкой", "две божьи коровки"),
        ("новогодняя ёлка:f", "новогодней ёлки", "новогодней ёлкой", "две новогодние ёлки"),
        ("летучая мышь:f", "летучей мыши", "летучей мышью", "две летучие мыши"),
        ("яйцо:n", "яйца", "яйцом", "два яйца"),
        ("солнце:n", "солнца", "солнцем", "два солнца"),
        ("здание:n", "здания", "зданием", "два здания"),
        ("молния:f", "молнии", "молнией", "две молнии"),
        ("мороженое:na", "мороженого", "мороженым", "два мороженых"),
        ("такси:n0", "такси", "такси", "два такси"),
        ("чашка кофе:f", "чашки кофе", "чашкой кофе", "две чашки кофе"),
        ("очки:p:очков", "очков", "очками", "двое очков"),
        ("хоккейная клюшка:f", "хоккейной клюшки", "хоккейной клюшкой", "две хоккейные клюшки"),
        ("Дед_Мороз:m:Деда_Мороза:Дедом_Морозом", "Деда Мороза", "Дедом Морозом", "два Деда Мороза"),
    ],
)
def test_russian_cases_and_counted_forms(name: str, of: str, by: str, two: str):
    parsed = Name.parse(name)
    assert (parsed.genitive(), parsed.instrumental(), parsed.counted(2)) == (of, by, two)


@pytest.mark.parametrize(
    ("adjective", "forms"),
    [
        ("красный", "красный красная красное красные"),
        ("синий", "синий синяя синее синие"),
        ("рыжий", "рыжий рыжая рыжее рыжие"),
        ("маленький", "маленький маленькая маленькое маленькие"),
        ("большой", "большой большая большое большие"),
        ("голубой", "голубой голубая голубое голубые"),
    ],
)
def test_russian_adjectives_agree(adjective: str, forms: str):
    assert [agree(adjective, gender) for gender in "mfnp"] == forms.split()


def test_russian_names_are_russian():
    letters = set("абвгдеёжзийклмнопрстуфхцчшщъыьэюя- ")
    for names in russian_names().values():
        for name in names:
            for form in (name.nominative(), name.genitive(), name.instrumental(), name.counted(3)):
                assert set(form.lower()) <= letters, form

from genpipe.scenes import COLOURS, SETTINGS, concepts, unknown_words, vocabulary
from genpipe.scenes.vocabulary import hints, listing, near, ordinary_words


def test_what_the_world_can_draw_is_known_in_every_form_and_both_languages():
    for prompt in (
        "a pirate ship in space", "Two KITTIES, please!", "пиратский корабль в космосе", "кошка слева от собаки на пляже",
        "три пиратских корабля", "красная машина", "ёлка и елка", "draw me a picture of 3 wolves at night", "",
    ):  # fmt: skip
        assert unknown_words(prompt) == {}, prompt


def test_unknown_words_come_in_order_with_what_is_near():
    unknown = unknown_words("A galleon, a kity and a frobnicator on the galleon")
    assert list(unknown) == ["galleon", "kity", "frobnicator"]
    assert "ship" in unknown["galleon"][0]
    assert "kitty" in unknown["kity"]
    assert unknown["frobnicator"] == ()
    assert unknown_words("машына и берёза") == {"машына": ("машина",), "берёза": ("tree",)}


def test_hints_lead_from_words_that_are_not_known_to_things_that_are():
    things = {*concepts(), *SETTINGS, *COLOURS}
    for word, near_ones in hints().items():
        assert set(near_ones) <= things, (word, near_ones)
        assert word not in vocabulary(), word
        assert near(word)[0] == near_ones[0]


def test_ordinary_words_are_none_that_the_world_knows():
    assert ordinary_words() and not ordinary_words() & (vocabulary() | set(hints()))


def test_near_names_are_looked_up_for_the_first_words_only():
    many = unknown_words(" ".join(f"galleon{'x' * index}" for index in range(20)), most=3)
    assert len(many) == 20 and many["galleon"] and not any(list(many.values())[3:])


def test_the_listing_has_everything_and_can_be_narrowed():
    entries = listing()
    assert set(concepts()) <= set(entries)
    assert {"in space", "red", "left"} <= set(entries)
    assert "кошка" in entries["cat"] and "kitty" in entries["cat"]
    assert set(listing("kitt")) == {"cat"}
    assert "pirate ship" in listing("корабль")
    assert listing("qqq") == {}


def test_a_model_that_learned_a_part_of_the_world_knows_that_part_alone():
    learned = ("ship", "cat")
    assert unknown_words("a red cat on a ship at night, кошка в космосе", learned) == {}
    assert unknown_words("a dog", learned) == {"dog": ()}
    assert unknown_words("a galleon", learned) == {"galleon": ("ship",)}  # a tall ship is nearer, but was not learned
    assert unknown_words("a galleon", ("cat",)) == {"galleon": ()}
    assert set(listing(pool=learned)) & (set(concepts()) - set(COLOURS)) == set(learned)
    assert vocabulary(learned) < vocabulary()

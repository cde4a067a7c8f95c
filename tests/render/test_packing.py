"""Batches agree where they must, are full where they can be, and leave nothing out."""

import random
from itertools import pairwise

import pytest
from PIL import Image

from genpipe.render.journal import Journal
from genpipe.render.packing import Packer, shape_of
from genpipe.render.planning import Planner
from genpipe.render.rows import read_rows
from genpipe.workers.settings import complete
from tests.render.conftest import MODEL


@pytest.fixture
def journal(tmp_path):
    made = Journal(tmp_path / "j.sqlite")
    yield made
    made.close()


def fill(journal, rows) -> None:
    Planner(journal, MODEL, identity={}, settings={}).plan(read_rows(rows))


def batches(packer) -> list:
    made = []
    while (batch := packer.next()) is not None:
        made.append(batch)
    return made


@pytest.mark.filterwarnings("ignore:negative_prompt has no effect")
def test_every_picture_is_in_one_batch_and_batches_agree(journal):
    rng = random.Random(0)
    rows = [
        {
            "prompt": rng.choice("abcdef"),
            "seed": number,
            "width": rng.choice((32, 64)),
            "steps": rng.choice((2, 3)),
            "guidance_scale": rng.choice((1.0, 3.0, 5.0)),
            "negative_prompt": rng.choice(("", "fog")),
        }
        for number in range(500)
    ]
    fill(journal, rows)
    made = batches(Packer(journal, lambda shape, left: 8, window=100))
    numbers = [entry.number for batch in made for entry in batch.entries]
    assert sorted(numbers) == list(range(1, 501))
    for batch in made:
        settings = [journal.settings(entry.settings) for entry in batch.entries]
        assert len({(s["width"], s["steps"], s["guidance_scale"] > 1) for s in settings}) == 1
    # 8 shapes: the fewest batches there can be are 63, and each shape may leave one that is not full.
    assert len(made) <= 63 + 8


def test_prompts_negative_prompts_and_scales_of_guidance_mix(journal):
    rows = [{"prompt": "a"}, {"prompt": "b", "guidance_scale": 9.0}, {"prompt": "c", "negative_prompt": "fog"}]
    fill(journal, rows)
    assert [len(batch.entries) for batch in batches(Packer(journal, lambda shape, left: 8))] == [3]
    fill(journal, [*rows, {"prompt": "d", "guidance_scale": 1.0}])
    # A distilled network takes any scale as an input; another evaluates images without guidance apart.
    for distilled, sizes in ((False, [1, 3]), (True, [4])):
        packer = Packer(journal, lambda shape, left: 8, distilled=distilled)
        assert sorted(len(batch.entries) for batch in batches(packer)) == sizes


@pytest.mark.filterwarnings("ignore:strength has no effect")
def test_images_that_begin_from_an_image_have_batches_of_their_own(journal, tmp_path):
    for name in ("one", "two"):
        Image.new("RGB", (32, 32), "red" if name == "one" else "blue").save(tmp_path / f"{name}.png")
    rows = [{"prompt": "a", "image": str(tmp_path / f"{name}.png"), "strength": 0.5} for name in ("one", "two")]
    fill(journal, [{"prompt": "b", "strength": 0.5}, rows[0], {"prompt": "c", "strength": 0.5}, rows[1]])
    found = sorted(
        sorted(entry.prompt for entry in batch.entries) for batch in batches(Packer(journal, lambda shape, left: 8))
    )
    assert found == [["a", "a"], ["b", "c"]]


def test_equal_prompts_are_neighbours(journal):
    fill(journal, [{"prompt": prompt} for prompt in "abcabcabcabc"])
    (first, second) = batches(Packer(journal, lambda shape, left: 6))
    assert [entry.prompt for entry in [*first.entries, *second.entries]] == list("aaaabbbbcccc")


def test_shapes_change_seldom(journal):
    fill(journal, [{"prompt": "a", "width": 32 * (1 + number % 3)} for number in range(90)])
    shapes = [batch.shape for batch in batches(Packer(journal, lambda shape, left: 4))]
    assert sum(one != other for one, other in pairwise(shapes)) == 2


def test_what_was_given_back_comes_again(journal):
    fill(journal, ["a", "b", "c"])
    packer = Packer(journal, lambda shape, left: 2)
    first = packer.next()
    assert first is not None
    packer.give_back(first)
    assert sorted(entry.prompt for batch in batches(packer) for entry in batch.entries) == ["a", "b", "c"]


def test_the_size_is_asked_anew(journal):
    fill(journal, [str(number) for number in range(12)])
    sizes = iter([1, 2, 4, 8])
    assert [len(batch.entries) for batch in batches(Packer(journal, lambda shape, left: next(sizes)))] == [1, 2, 4, 5]


def test_sizes_sort_as_numbers():
    settings = complete({}, MODEL).to_dict()
    small, large = shape_of({**settings, "height": 512}), shape_of({**settings, "height": 1024})
    assert small < large


def test_what_a_folder_of_an_older_version_does_not_say_is_the_default(journal):
    fill(journal, [{"prompt": "a"}])
    (entry,) = journal.entries()
    settings = journal.settings(entry.settings)
    older = {name: value for name, value in settings.items() if name not in ("control", "guess", "speed", "image")}
    assert shape_of(older) == shape_of(settings)

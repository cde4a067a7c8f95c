from importlib.resources import files
from io import BytesIO

import pytest
from PIL import Image

from genpipe.scenes import SETTINGS, atlas, concepts, names
from genpipe.scenes.english import english_names
from genpipe.scenes.russian import russian_names


def test_the_world_is_as_large_as_promised():
    composites = [c for c in concepts().values() if c.recipes[0].startswith("@")]
    assert len(concepts()) - len(composites) >= 500
    assert len(composites) >= 60
    assert 250 <= len(names(core=True)) <= 320
    assert len(SETTINGS) >= 16


def test_every_concept_belongs_somewhere_and_has_names_in_both_languages():
    for concept in concepts().values():
        assert concept.home in SETTINGS, concept
        assert english_names()[concept.name][0] == concept.name
        assert all(word == word.strip().lower() for word in english_names()[concept.name])
        assert russian_names()[concept.name], concept
    assert list(russian_names()) == list(concepts())


def test_no_name_means_two_things():
    for of in (english_names(), {n: [r.nominative() for r in rs] for n, rs in russian_names().items()}):
        owner: dict[str, str] = {}
        for concept, words in of.items():
            for word in words:
                assert owner.setdefault(word, concept) == concept, word


def test_the_atlas_holds_each_recipe_in_order_and_is_small():
    assert list(atlas.owners()) == [c.name for c in concepts().values() for _ in c.recipes]
    assert len((files("genpipe.scenes") / "atlas.webp").read_bytes()) <= 8_000_000
    sprites = atlas.pyramid(atlas.SPRITE_SIDE)[0]
    assert sprites.shape == (len(atlas.owners()), 4, atlas.SPRITE_SIDE, atlas.SPRITE_SIDE)
    colour, alpha = sprites[:, :3], sprites[:, 3:]
    assert bool((colour <= alpha).all()), "premultiplied"
    assert int(alpha.amax((1, 2, 3)).min()) > 240, "every sprite has something solid"
    rim = alpha.clone()
    rim[:, :, 1:-1, 1:-1] = 0
    assert int(rim.max()) <= 8, "a clear rim, so that edges fade"


def test_an_atlas_with_too_few_sprites_is_refused() -> None:
    file, side = BytesIO(), atlas.SPRITE_SIDE
    Image.new("RGBA", (2 * side, side), (90, 60, 30, 255)).save(file, "WEBP", lossless=True)
    assert atlas.read_sprites(file, 2).shape == (2, 4, side, side)
    with pytest.raises(ValueError, match=r"room for 2, not for the 3 that atlas\.txt names: install genpipe again"):
        atlas.read_sprites(file, 3)

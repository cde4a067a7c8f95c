"""What is made of a prompt is kept, and changes no image."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from genpipe.adapters.texts import Texts
from genpipe.pipeline import Pipeline
from tests.adapters.conftest import encoded_by, family_named
from tests.adapters.test_families import by_hand, levels
from tests.adapters.tiny import Family

pytestmark = pytest.mark.filterwarnings("ignore")  # diffusers' own, of what it will drop one day
Load = Callable[[Family], Pipeline]


def test_a_prompt_is_encoded_once_and_images_stay_those_of_diffusers(family: Family, loaded: Load):
    pipeline, settings = loaded(family), family.settings
    with encoded_by(pipeline) as ran:
        pipeline("a yellow crow", seed=1, progress=False, **settings)
        first = len(ran)
        again = levels(pipeline("a yellow crow", seed=2, progress=False, **settings))
        assert len(ran) == first > 0
        pipeline("a yellow cat", seed=2, progress=False, **settings)
        assert len(ran) > first
    assert np.array_equal(again, by_hand(pipeline, family, "a yellow crow", 2))


def test_a_prompt_is_kept_apart_by_all_that_its_encoding_depends_on(loaded: Load):
    family = family_named("FLUX.1 dev")
    pipeline = loaded(family)
    for more in ({"max_sequence_length": 16}, {"max_sequence_length": 32}, {"true_cfg_scale": 1.0}):
        arguments = {**family.settings["arguments"], **more}
        settings: Any = {**family.settings, "arguments": arguments}
        image = levels(pipeline("a green owl", seed=1, progress=False, **settings))
        assert np.array_equal(
            image, by_hand(pipeline, Family("", None, {**family.by_hand, **more}, {}), "a green owl", 1)
        )


class Encoder:
    """A pipeline of which nothing but the encoding is there."""

    components: dict[str, Any] = {}  # noqa: RUF012 - as diffusers has it

    def __init__(self) -> None:
        self.encoded: list[Any] = []
        self._guidance_scale, self.drawn = 1.0, 0

    @property
    def guided(self) -> bool:
        return self._guidance_scale > 1

    def encode_prompt(self, prompt: str | list[str] | None, embeds: Tensor | None = None) -> tuple[Tensor, None]:
        self.encoded.append(prompt)
        return self._filled(), None

    def _filled(self) -> Tensor:
        return torch.full((2,), 2.0 if self.guided else 1.0)


def encoded(texts: Texts, pipe: Encoder, *given: Any) -> list[float]:
    with texts.kept(pipe):
        found, _ = pipe.encode_prompt(*given)
    numbers = found.tolist()
    found.zero_()
    return numbers


def test_results_are_copies_and_what_is_not_plain_is_never_kept():
    texts, pipe = Texts(most=2), Encoder()
    assert encoded(texts, pipe, "a") == [1.0, 1.0]
    pipe.drawn = 1  # it does not look at that
    assert encoded(texts, pipe, "a") == [1.0, 1.0] and len(pipe.encoded) == 1
    pipe._guidance_scale = 2.0
    assert encoded(texts, pipe, "a") == [2.0, 2.0] and len(pipe.encoded) == 2
    for _ in range(2):
        encoded(texts, pipe, "a", torch.zeros(1))
    assert len(pipe.encoded) == 4
    for prompt, calls in (("b", 5), (["b"], 6), (["b", "c"], 7), (["b", "c"], 7), ("b", 8)):
        encoded(texts, pipe, prompt)
        assert len(pipe.encoded) == calls, prompt
    assert "encode_prompt" not in vars(pipe)

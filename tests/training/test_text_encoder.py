import random
from dataclasses import replace
from pathlib import Path

import torch

from genpipe.models.text_encoder import TextEncoder, TextEncoderConfig
from genpipe.models.tokenizer import train_tokenizer
from genpipe.scenes.captions import caption, corpus
from genpipe.scenes.world import Placed, Scene, sample
from genpipe.training.loop import Budget, choose_accelerator, fit
from genpipe.training.text_encoder import QUESTIONS, Reader, answers, reading_loss


def told(scene: Scene) -> dict[str, str | int | None]:
    return {name: options[i] for (name, options), i in zip(QUESTIONS.items(), answers(scene), strict=True)}


def test_answers_tell_what_the_scene_holds() -> None:
    cat, dog = Placed("cat", 0, 0.3, 0.5, 0.4), Placed("dog", 1, 0.7, 0.5, 0.4)
    look = (0.5,) * 6
    assert told(Scene("pair", "snow", look, (cat, dog), relation="left")) == {
        "first": "cat", "second": "dog", "colour": None, "setting": "snow", "relation": "left", "count": 2, "size": None
    }  # fmt: skip
    red = Scene("colour", "meadow", look, (replace(cat, colour="red"),))
    assert told(red)["colour"] == "red" and told(red)["second"] is None
    assert told(Scene("count", "room", look, (cat,) * 3))["count"] == 3
    assert told(Scene("count", "room", look, (cat,) * 3))["second"] is None
    assert told(Scene("size", "room", look, (cat,), size="small"))["size"] == "small"
    assert told(Scene("place", "sea", look, ())) == {
        "first": None, "second": None, "colour": None, "setting": "sea", "relation": None, "count": 0, "size": None
    }  # fmt: skip


def test_a_small_encoder_learns_to_read_captions_it_never_saw(tmp_path: Path) -> None:
    pool = ("cat", "dog", "car")
    tokenizer = train_tokenizer(corpus(pool), 600, length=24)
    shape = TextEncoderConfig(vocab_size=tokenizer.vocab_size, hidden_size=32, intermediate_size=32, num_hidden_layers=1,
                              num_attention_heads=2, max_position_embeddings=24, eos_token_id=tokenizer.eos_id)  # fmt: skip
    torch.manual_seed(0)
    loss = reading_loss(lambda rng: sample(rng, pool), lambda scene, rng: caption(scene, rng), tokenizer, batch=32)
    reader = fit(Reader(TextEncoder(shape)), loss, directory=tmp_path, budget=Budget(steps=200), peak_rate=5e-3,
                 accelerator=choose_accelerator("cpu", "fp32"), average=0.9)  # fmt: skip
    rng = random.Random("unseen")
    scenes = [sample(rng, pool) for _ in range(100)]
    ids = torch.tensor(tokenizer([caption(scene, rng) for scene in scenes]).ids)
    first = reader(ids)[0].argmax(dim=1).tolist()
    right = sum(i == answers(scene)[0] for i, scene in zip(first, scenes, strict=True))
    assert right >= 90  # of 100; chance is about 33

"""Prompts that are encoded while the batch before is in the networks: never in a way that changes those networks."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from genpipe import Request
from genpipe.inputs import Lora
from genpipe.spec import ModelSpec
from genpipe.workers.messages import Job, Task
from genpipe.workers.renderer import Renderer


@pytest.fixture
def words(tmp_path: Path) -> Lora:
    """A LoRA of the text encoder."""
    generator, module = torch.Generator().manual_seed(0), "lora_te_text_model_encoder_layers_0_mlp_fc1"
    down, up = (torch.randn(shape, generator=generator) for shape in ((2, 32), (64, 2)))
    tensors = {"lora_down.weight": down, "lora_up.weight": up, "alpha": torch.tensor(1.0)}
    save_file({f"{module}.{name}": tensor for name, tensor in tensors.items()}, tmp_path / "words.safetensors")
    return Lora.of(tmp_path / "words.safetensors")


def test_prompts_are_encoded_ahead_once_their_loras_are_in_the_networks_and_none_else_is_asked_for(
    tiny_checkpoint: Path, tmp_path: Path, words: Lora, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = [(), (), (), (words,), (words,), (words,), (), ()]

    def task(number: int) -> Task:
        request = Request(
            f"cat {number}", seed=number, steps=1, guidance_scale=4.0, height=16, width=16, loras=asked[number]
        )
        return Task(number, f"{number:032x}", f"{number}.png", request.to_dict())

    job = Job(str(tmp_path / "ahead"), ModelSpec(model=str(tiny_checkpoint), dtype="fp32"))
    (tmp_path / "ahead").mkdir()
    (tmp_path / "plain").mkdir()
    renderer = Renderer(job, "cpu", beside=True)
    encode, encoded = renderer.pipeline.encode, []
    monkeypatch.setattr(renderer.pipeline, "encode", lambda requests: encoded.append(requests) or encode(requests))
    ahead, waiting = [], []
    for number in range(len(asked) + 1):  # a batch is prepared before the one before it begins
        if number < len(asked):
            encoded.clear()
            waiting.append(renderer.prepare([task(number)]))
            ahead.append(bool(encoded))
        if number:
            assert len(renderer.finish(renderer.begin(waiting.pop(0))).drawn) == 1
    assert ahead == [False, False, True, False, False, True, False, False]
    plain = Renderer(replace(job, out=str(tmp_path / "plain")), "cpu")
    for number in range(len(asked)):
        plain.finish(plain.begin(plain.prepare([task(number)])))
        name = f"{number}.png"
        assert (tmp_path / "ahead" / name).read_bytes() == (tmp_path / "plain" / name).read_bytes()

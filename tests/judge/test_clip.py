from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from genpipe.judge import choose_judge, score
from genpipe.judge.clip import ClipJudge

transformers = pytest.importorskip("transformers")

WORDS = [
    "<|startoftext|>",
    "<|endoftext|>",
    *"abcdefghijklmnopqrstuvwxyz",
    *(f"{letter}</w>" for letter in "abcdefghijklmnopqrstuvwxyz"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny CLIP model of random weights, as transformers saves one."""
    folder = tmp_path_factory.mktemp("clip")
    torch.manual_seed(0)
    small = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "projection_dim": 8,
    }
    config = transformers.CLIPConfig(
        text_config={
            **small,
            "vocab_size": len(WORDS),
            "max_position_embeddings": 12,
            "bos_token_id": 0,
            "eos_token_id": 1,
        },
        vision_config={**small, "image_size": 32, "patch_size": 8},
        projection_dim=8,
    )
    transformers.CLIPModel(config).save_pretrained(folder)
    vocabulary = {word: index for index, word in enumerate(WORDS)}
    tokenizer = transformers.CLIPTokenizer(vocab=vocabulary, merges=[], unk_token="<|endoftext|>", model_max_length=12)
    images = transformers.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    transformers.CLIPProcessor(images, tokenizer).save_pretrained(folder)
    return folder


def shown() -> list[Image.Image]:
    # With this noise one of the two cosines is above zero, where scores are clipped.
    noise = np.random.default_rng(11).integers(0, 256, (40, 48, 3), dtype=np.uint8)
    return [Image.fromarray(noise), Image.linear_gradient("L").convert("RGB")]


def test_the_score_is_clipscore_by_transformers_own_logits(folder: Path) -> None:
    prompts, images = ["a red cat", "ship"], shown()
    judge = ClipJudge.from_pretrained(folder, device="cpu")
    found = judge.scores(images, prompts)
    with torch.inference_mode():
        inputs = judge.processor(text=prompts, images=images, return_tensors="pt", padding=True)
        cosines = judge.model(**inputs).logits_per_image.diagonal() / judge.model.logit_scale.exp()
    assert [one.total for one in found] == pytest.approx((2.5 * cosines).clamp(0, 1).tolist(), abs=1e-5)
    assert [one.prompt for one in found] == prompts and found[0].satisfied is None and not found[0].checks
    assert len({round(one.total, 6) for one in found}) == 2


def test_it_judges_any_prompt_by_the_same_interface(folder: Path) -> None:
    (image, _), prompt = shown(), "justice, mercy and a very long prompt beyond the positions of the model"
    assert 0 <= score(image, prompt, judge=choose_judge(folder, device="cpu")).total <= 1


def test_what_is_not_clip_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is not a CLIP model that can be loaded") as error:
        ClipJudge.from_pretrained(tmp_path)
    assert "\n" not in str(error.value)

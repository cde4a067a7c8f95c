"""The text encoder computes what transformers' `CLIPTextModel` computes."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from genpipe.checkpoints.layout import TEXT_ENCODER
from genpipe.models.text_encoder import TextEncoder, TextEncoderConfig

BASE: dict[str, Any] = {
    "vocab_size": 99,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": 13,
    "hidden_act": "quick_gelu",
    "projection_dim": 24,
    "bos_token_id": 97,
    "eos_token_id": 98,
    "pad_token_id": 98,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "Stable Diffusion 1": {},
    "the wrong end mark of old configs": {"eos_token_id": 2},
    "Stable Diffusion 2": {"hidden_act": "gelu", "num_hidden_layers": 5, "num_attention_heads": 2, "pad_token_id": 0},
    "other epsilon": {"layer_norm_eps": 1e-3},
}
# Padded with the end mark; padded with "!"; full; the end mark at once.
IDS = torch.tensor(
    [
        [97, 5, 6, 7, 98, 98, 98, 98, 98, 98, 98, 98, 98],
        [97, 8, 9, 98, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        [97, *range(10, 21), 98],
        [97, 98, *[98] * 11],
    ]
)


def pair(reference: Any, copy_weights: Callable[..., None], **settings: Any) -> tuple[TextEncoder, Any]:
    torch.manual_seed(0)
    config = CLIPTextConfig(**{**BASE, **settings})
    theirs = reference(config)
    ours = TextEncoder(TextEncoderConfig.from_dict({**config.to_dict(), "architectures": [reference.__name__]}))
    copy_weights(theirs, ours, TEXT_ENCODER)
    return ours, theirs


def close(ours: Tensor, theirs: Tensor) -> bool:
    return ours.shape == theirs.shape and float((ours - theirs).abs().max()) <= 1e-5


@torch.inference_mode()
@pytest.mark.parametrize("name", CONFIGS)
def test_it_computes_what_transformers_computes(
    name: str, copy_weights: Callable[..., None], same_norms: Callable[..., None]
) -> None:
    ours, theirs = pair(CLIPTextModel, copy_weights, **CONFIGS[name])
    same_norms(theirs, ours, TEXT_ENCODER)
    for ids in (IDS, IDS[:2, :5], IDS[:1]):
        encoding, reference = ours(ids), theirs(ids)
        assert close(encoding.context, reference.last_hidden_state)
        assert close(encoding.pooled, reference.pooler_output)
    assert float(ours(IDS).context.std()) > 0.3  # else anything would agree


@torch.inference_mode()
def test_pooled_output_is_projected(copy_weights: Callable[..., None]) -> None:
    ours, theirs = pair(CLIPTextModelWithProjection, copy_weights)
    encoding, reference = ours(IDS), theirs(IDS)
    assert close(encoding.context, reference.last_hidden_state) and close(encoding.pooled, reference.text_embeds)
    assert encoding.pooled.shape == (4, 24)


@torch.inference_mode()
def test_clip_skip_leaves_out_the_last_layers_but_not_the_norm(copy_weights: Callable[..., None]) -> None:
    ours, theirs = pair(CLIPTextModel, copy_weights)
    reference = theirs(IDS, output_hidden_states=True)
    for skip in range(4):
        encoding = ours(IDS, clip_skip=skip)
        assert close(encoding.context, theirs.final_layer_norm(reference.hidden_states[-1 - skip]))
        assert close(encoding.pooled, reference.pooler_output)


@torch.inference_mode()
def test_the_penultimate_layer_comes_raw(copy_weights: Callable[..., None]) -> None:
    """As SDXL reads both of its encoders; `pooled` is of all layers and normalised."""
    ours, theirs = pair(CLIPTextModelWithProjection, copy_weights)
    reference = theirs(IDS, output_hidden_states=True)
    for skip in range(4):
        encoding = ours(IDS, clip_skip=skip, penultimate=True)
        assert close(encoding.context, reference.hidden_states[-(skip + 2)])
        assert close(encoding.pooled, reference.text_embeds)


@torch.inference_mode()
def test_a_token_sees_only_those_before_it(copy_weights: Callable[..., None]) -> None:
    ours, _ = pair(CLIPTextModel, copy_weights)
    changed = IDS.clone()
    changed[:, 6:] = 50
    before, after = ours(IDS).context, ours(changed).context
    assert torch.equal(before[:, :6], after[:, :6]) and not torch.equal(before[:, 6:], after[:, 6:])


def test_config_survives_a_round_trip() -> None:
    for projection in (None, 24):
        config = TextEncoderConfig(hidden_size=32, num_attention_heads=4, hidden_act="gelu", projection_dim=projection)
        assert TextEncoderConfig.from_dict(config.to_dict()) == config


def test_config_reads_the_text_part_of_a_clip_model_and_ignores_an_unused_projection() -> None:
    nested = {"architectures": ["CLIPModel"], "projection_dim": 512, "text_config": {**BASE, "hidden_size": 64}}
    config = TextEncoderConfig.from_dict(nested)
    assert (config.hidden_size, config.vocab_size, config.projection_dim) == (64, 99, None)


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match="hidden_act 'relu' is not supported: use one of quick_gelu, gelu"):
        TextEncoderConfig(hidden_act="relu")
    with pytest.raises(ValueError, match="hidden_size 30 is not a multiple of 4 heads"):
        TextEncoderConfig(hidden_size=30, num_attention_heads=4)
    encoder = TextEncoder(TextEncoderConfig.from_dict(BASE))
    for skip in (-1, 4):
        with pytest.raises(ValueError, match=f"clip_skip {skip} is out of range: this text encoder takes 0 to 3"):
            encoder(IDS, clip_skip=skip)
    with pytest.raises(ValueError, match="14 tokens are more than the 13 positions"):
        encoder(torch.zeros(1, 14, dtype=torch.long))

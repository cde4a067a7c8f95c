"""HunyuanDiT: BERT and T5."""

from importlib import import_module
from typing import Any

from tests.adapters.tiny import LETTERS, Family, seeded, t5_text, t5_tokenizer, vae


def build() -> Any:
    diffusers: Any = import_module("diffusers")
    from transformers import BertConfig, BertModel, BertTokenizer

    letters = LETTERS.replace(" ", "")
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters)]
    bert = BertTokenizer(vocab={piece: index for index, piece in enumerate(pieces)})
    config = BertConfig(
        vocab_size=len(bert), hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=37
    )
    t5 = t5_tokenizer()
    transformer = seeded(
        lambda: diffusers.HunyuanDiT2DModel(
            sample_size=16,
            num_layers=4,
            patch_size=2,
            attention_head_dim=8,
            num_attention_heads=3,
            in_channels=4,
            cross_attention_dim=32,
            cross_attention_dim_t5=32,
            pooled_projection_dim=16,
            hidden_size=24,
            activation_fn="gelu-approximate",
        )
    )
    return diffusers.HunyuanDiTPipeline(
        vae=vae(levels=4),  # the pipeline counts on a factor of 8
        text_encoder=seeded(lambda: BertModel(config)),
        tokenizer=bert,
        transformer=transformer,
        scheduler=diffusers.DDPMScheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
        text_encoder_2=t5_text(t5),
        tokenizer_2=t5,
    )


PLAIN = {"use_resolution_binning": False}
SIZE = {"height": 32, "width": 32}
FAMILY = Family(
    "HunyuanDiT", build, {"num_inference_steps": 2, **PLAIN, **SIZE}, {"steps": 2, "arguments": PLAIN, **SIZE}
)

"""Tiny parts that pipelines of diffusers are built from, always the same; tokenizers know letters alone."""

import string
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch

LETTERS = string.ascii_lowercase + string.digits + " ,.'-:!?"


def clip_tokenizer(length: int = 16) -> Any:
    from transformers import CLIPTokenizer

    pieces = [*LETTERS.replace(" ", ""), *(f"{letter}</w>" for letter in LETTERS.replace(" ", ""))]
    vocab = {piece: index for index, piece in enumerate([*pieces, "<|startoftext|>", "<|endoftext|>"])}
    return CLIPTokenizer(vocab=vocab, merges=[], model_max_length=length)


def clip_text(tokenizer: Any, *, width: int = 32, projected: bool = False, activation: str = "quick_gelu") -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=37,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=tokenizer.model_max_length,
        projection_dim=width,
        hidden_act=activation,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return seeded(lambda: (CLIPTextModelWithProjection if projected else CLIPTextModel)(config))


def clip_vision(width: int = 32) -> Any:
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    config = CLIPVisionConfig(
        hidden_size=32,
        image_size=32,
        intermediate_size=37,
        num_attention_heads=4,
        num_hidden_layers=2,
        patch_size=16,
        projection_dim=width,
    )
    return seeded(lambda: CLIPVisionModelWithProjection(config))


def clip_images() -> Any:
    from transformers import CLIPImageProcessorPil

    return CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})


def t5_tokenizer() -> Any:
    from transformers import T5Tokenizer

    pieces = [
        ("<pad>", 0.0),
        ("</s>", 0.0),
        ("<unk>", 0.0),
        ("▁", -2.0),
        *((one, -3.0) for one in LETTERS if one != " "),
    ]
    return T5Tokenizer(vocab=pieces, extra_ids=0)


def t5_text(tokenizer: Any, *, width: int = 32, kind: str = "T5") -> Any:
    import transformers

    config = getattr(transformers, f"{kind}Config")(
        vocab_size=len(tokenizer), d_model=width, d_kv=8, d_ff=37, num_layers=2, num_heads=4
    )
    return seeded(lambda: getattr(transformers, f"{kind}EncoderModel")(config))


def qwen_tokenizer() -> Any:
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import Qwen2Tokenizer

    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    vocab = {piece: index for index, piece in enumerate([*sorted(ByteLevel.alphabet()), special[0]])}
    return Qwen2Tokenizer(vocab=vocab, merges=[], additional_special_tokens=special[1:])


def gemma_tokenizer() -> Any:
    from transformers import GemmaTokenizer

    pieces = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "▁", *LETTERS.replace(" ", "")]
    return GemmaTokenizer(vocab={piece: index for index, piece in enumerate(pieces)}, merges=[])


def gemma_text(tokenizer: Any, width: int = 32) -> Any:
    from transformers import Gemma2Config, Gemma2Model

    config = Gemma2Config(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=37,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
    )
    return seeded(lambda: Gemma2Model(config))


def vae(channels: int = 4, levels: int = 2, **config: Any) -> Any:
    """An autoencoder of factor 2 ** (levels - 1), whose images have contrast: grey ones would agree with anything."""
    diffusers: Any = import_module("diffusers")

    made = seeded(
        lambda: diffusers.AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * levels,
            up_block_types=("UpDecoderBlock2D",) * levels,
            block_out_channels=(8, *(16,) * (levels - 1)),
            layers_per_block=1,
            latent_channels=channels,
            norm_num_groups=4,
            sample_size=32,
            **config,
        )
    )
    with torch.no_grad():
        made.decoder.conv_out.weight.mul_(2)
    return made


def flow(**config: Any) -> Any:
    diffusers: Any = import_module("diffusers")

    return diffusers.FlowMatchEulerDiscreteScheduler(**config)


def seeded(make: Any) -> Any:
    """A network of random weights that are always the same."""
    torch.manual_seed(0)
    return make().eval()


@dataclass(frozen=True)
class Family:
    """One family of pipelines, tiny.

    Attributes:
        name: for people.
        build: makes the pipeline.
        by_hand: what its `__call__` is given by hand, beside prompt and generator.
        settings: the same as settings of a request.
        steps: how many a call takes, of all stages.
        negative: whether it takes a negative prompt.
        large: whether its images are so large that one test has to do.
    """

    name: str
    build: Any
    by_hand: dict[str, Any]
    settings: dict[str, Any]
    steps: int = 2
    negative: bool = True
    large: bool = False


def prior(tokens: int, width: int = 32) -> Any:
    """What makes an image's embedding of a prompt's, for unCLIP and Kandinsky."""
    diffusers: Any = import_module("diffusers")

    made = seeded(
        lambda: diffusers.PriorTransformer(
            num_attention_heads=2, attention_head_dim=8, embedding_dim=width, num_layers=1, num_embeddings=tokens
        )
    )
    with torch.no_grad():
        made.clip_std.fill_(1.0)
    return made


def simple_attention_unet(**config: Any) -> Any:
    """A U-Net as unCLIP, Kandinsky and DeepFloyd IF have it, of two levels."""
    diffusers: Any = import_module("diffusers")

    return seeded(
        lambda: diffusers.UNet2DConditionModel(
            down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
            up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
            mid_block_type="UNetMidBlock2DSimpleCrossAttn",
            block_out_channels=(8, 16),
            layers_per_block=1,
            norm_num_groups=4,
            attention_head_dim=4,
            resnet_time_scale_shift="scale_shift",
            **config,
        )
    )

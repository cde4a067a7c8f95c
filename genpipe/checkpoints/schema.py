"""What the JSON files of a checkpoint may hold, key by key: checked before anything is built of them.

The tables bound types and sizes, so that no absurd number costs time or memory. Which forms of a network there are is for
its own config to say (`IMPLEMENTED`), and what the parts have to agree in for `check_fit`. A key in no table is refused by
name, since what it changes would be dropped in silence, unless it is known to change no image.
"""

from collections.abc import Collection, Mapping
from typing import Any

from genpipe.checks import FLAG, NULL, Kind, Kinds, check, list_of, map_of, number, one_of, text, whole
from genpipe.messages import quoted
from genpipe.models import controlnet, t2i_adapter, tiny_vae, unet_config
from genpipe.request import MAX_GUIDANCE, MAX_SIDE, MAX_STEPS

_LEVELS = 8  # of a U-Net or an autoencoder
_CHANNELS = whole(1, 2**14)
_SIDE = whole(1, 2**12)
_SIZE = _SIDE | list_of(_SIDE, 2, 2) | NULL
_NAMES = list_of(text(100), 1, _LEVELS)


def _per_level(kind: Kind) -> Kind:
    return kind | list_of(kind, 1, _LEVELS)


def _depths() -> Kind:
    """Transformer blocks: one number, one per level, or one per layer of each level."""
    depth = whole(0, 48)
    return depth | _listed_depths()


def _listed_depths() -> Kind:
    depth = whole(0, 48)
    return list_of(depth | list_of(depth, 1, 16), 1, _LEVELS)


UNET: Kinds = {
    **{key: one_of(*values) for key, values in unet_config.IMPLEMENTED.items()},
    "sample_size": _SIZE,
    "in_channels": whole(1, 256),
    "out_channels": whole(1, 256),
    "block_out_channels": list_of(_CHANNELS, 1, _LEVELS),
    "down_block_types": _NAMES,
    "up_block_types": _NAMES,
    "layers_per_block": _per_level(whole(1, 16)),
    "transformer_layers_per_block": _depths(),
    "reverse_transformer_layers_per_block": _listed_depths() | NULL,
    "attention_head_dim": _per_level(whole(1, 1024)),
    "num_attention_heads": _per_level(whole(1, 1024)) | NULL,
    "only_cross_attention": _per_level(FLAG),
    "cross_attention_dim": _per_level(whole(1, 2**16)),
    "use_linear_projection": FLAG,
    "upcast_attention": FLAG | NULL,
    "norm_num_groups": whole(1, 1024),
    "norm_eps": number(0, 1),
    "downsample_padding": whole(0, 1),
    "flip_sin_to_cos": FLAG,
    "freq_shift": number(0, 1),
    "time_cond_proj_dim": whole(1, 2**14) | NULL,
    "addition_time_embed_dim": whole(2, 2**12) | NULL,
    "projection_class_embeddings_input_dim": whole(1, 2**16) | NULL,
}
_UNET_HARMLESS = {
    "addition_embed_type_num_heads",  # of a form that is not implemented
    "dropout",
    # Of the moving average that some training scripts save.
    *("decay", "inv_gamma", "min_decay", "optimization_step", "power", "update_after_step", "use_ema_warmup"),
}

CONTROLNET: Kinds = {
    **{key: kind for key, kind in UNET.items() if key not in ("up_block_types", "out_channels", "sample_size")},
    **{key: one_of(*values) for key, values in controlnet.IMPLEMENTED.items()},
    "conditioning_embedding_out_channels": list_of(_CHANNELS, 1, _LEVELS) | NULL,
    "global_pool_conditions": FLAG,
}

T2I_ADAPTER: Kinds = {
    "adapter_type": one_of(*t2i_adapter.FORMS),
    "in_channels": one_of(3, 1),
    "channels": list_of(_CHANNELS, 1, _LEVELS),
    "num_res_blocks": whole(1, 16),
    "downscale_factor": whole(1, 64),
}

VAE: Kinds = {
    "act_fn": text(100),
    "in_channels": whole(1, 256),
    "out_channels": whole(1, 256),
    "latent_channels": whole(1, 256),
    "block_out_channels": list_of(_CHANNELS, 1, _LEVELS),
    "down_block_types": _NAMES,
    "up_block_types": _NAMES,
    "layers_per_block": whole(1, 16),
    "norm_num_groups": whole(1, 1024),
    "scaling_factor": number(0, 1e4, above=True) | NULL,
    "shift_factor": number(-1e4, 1e4) | NULL,
    "latents_mean": list_of(number(-1e4, 1e4), 1, 256) | NULL,
    "latents_std": list_of(number(0, 1e4, above=True), 1, 256) | NULL,
    "sample_size": whole(1, 2**15) | list_of(whole(1, 2**15), 2, 2) | NULL,
    "use_quant_conv": FLAG,
    "use_post_quant_conv": FLAG,
    "mid_block_add_attention": FLAG,
    "force_upcast": FLAG | NULL,
}

TINY_VAE: Kinds = {
    **{key: one_of(value) for key, value in tiny_vae.IMPLEMENTED.items()},
    "in_channels": whole(1, 256),
    "out_channels": whole(1, 256),
    "latent_channels": whole(1, 256),
    "encoder_block_out_channels": list_of(_CHANNELS, 1, _LEVELS),
    "decoder_block_out_channels": list_of(_CHANNELS, 1, _LEVELS),
    "num_encoder_blocks": list_of(whole(1, 16), 1, _LEVELS),
    "num_decoder_blocks": list_of(whole(1, 16), 1, _LEVELS),
    "latent_magnitude": one_of(3),
    "latent_shift": one_of(0.5),
    "shift_factor": one_of(0, None),
}
_TINY_VAE_HARMLESS = {"force_upcast", "block_out_channels"}

TEXT_ENCODER: Kinds = {
    "vocab_size": whole(1, 2**20) | NULL,
    "hidden_size": _CHANNELS | NULL,
    "intermediate_size": whole(1, 2**16) | NULL,
    "num_hidden_layers": whole(1, 128) | NULL,
    "num_attention_heads": whole(1, 1024) | NULL,
    "max_position_embeddings": whole(3, 2**14) | NULL,
    "hidden_act": text(100) | NULL,
    "layer_norm_eps": number(0, 1) | NULL,
    "eos_token_id": whole(0, 2**31) | NULL,
    "projection_dim": whole(1, 2**16) | NULL,
    "architectures": list_of(text(100), 0, 16) | NULL,
    "text_config": Kind("an object", lambda value: isinstance(value, dict)) | NULL,
    # Padding is attended to, as pipelines do unless this says otherwise.
    "use_attention_mask": one_of(False, None),
}
# Of training, of generating text, of what is returned, and of the image half of CLIP.
_TEXT_HARMLESS = {
    *("attention_dropout", "dropout", "gradient_checkpointing", "initializer_factor", "initializer_range"),
    *("logit_scale_init_value", "text_config_dict", "vision_config", "vision_config_dict", "bos_token_id"),
    *("dtype", "model_type", "name_or_path", "pad_token_id", "sep_token_id", "torch_dtype", "transformers_version"),
    *("chunk_size_feed_forward", "finetuning_task", "id2label", "label2id", "num_labels", "output_attentions"),
    *("output_hidden_states", "prefix", "problem_type", "pruned_heads", "return_dict", "task_specific_params"),
    *("tf_legacy_loss", "tie_word_embeddings", "tokenizer_class", "torchscript", "use_bfloat16", "use_cache"),
    *("add_cross_attention", "cross_attention_hidden_size", "is_decoder", "is_encoder_decoder"),
    *("tie_encoder_decoder", "decoder_start_token_id", "attn_implementation", "use_return_dict"),
    *("bad_words_ids", "begin_suppress_tokens", "diversity_penalty", "do_sample", "early_stopping"),
    *("encoder_no_repeat_ngram_size", "exponential_decay_length_penalty", "forced_bos_token_id"),
    *("forced_eos_token_id", "length_penalty", "max_length", "min_length", "no_repeat_ngram_size"),
    *("num_beam_groups", "num_beams", "num_return_sequences", "output_scores", "remove_invalid_values"),
    *("repetition_penalty", "return_dict_in_generate", "suppress_tokens", "temperature", "top_k", "top_p", "typical_p"),
}

IMAGE_ENCODER: Kinds = {
    "hidden_size": _CHANNELS | NULL,
    "intermediate_size": whole(1, 2**16) | NULL,
    "num_hidden_layers": whole(1, 128) | NULL,
    "num_attention_heads": whole(1, 1024) | NULL,
    "image_size": whole(1, 2**11) | NULL,
    "patch_size": whole(1, 2**10) | NULL,
    "num_channels": one_of(3, None),
    "hidden_act": text(100) | NULL,
    "layer_norm_eps": number(0, 1) | NULL,
    "projection_dim": whole(1, 2**16) | NULL,
    "architectures": list_of(text(100), 0, 16) | NULL,
}

_PART = list_of(text(200) | NULL, 2, 2)
MODEL_INDEX: Kinds = {
    "_class_name": text(200) | _PART,
    "text_encoder": _PART,
    "text_encoder_2": _PART,
    "tokenizer": _PART,
    "tokenizer_2": _PART,
    "unet": _PART,
    "vae": _PART,
    "scheduler": _PART,
    "force_zeros_for_empty_prompt": FLAG | NULL,
    "requires_aesthetics_score": FLAG | NULL,
}

SHARDS: Kinds = {"weight_map": map_of(text(255), 1)}

DEFAULTS: Kinds = {
    "height": whole(1, MAX_SIDE),
    "width": whole(1, MAX_SIDE),
    "steps": whole(1, MAX_STEPS),
    "guidance_scale": number(0, MAX_GUIDANCE),
    "guidance_rescale": number(0, 1),
    "upscale_strength": number(0, 1),
    "upscale_guidance_scale": number(0, MAX_GUIDANCE),
    "concepts": list_of(text(), 0, 2**16),
    "prompt": one_of("scenes"),
    "details": FLAG,
    "half_size": FLAG,
}

# By the folder: the class of the part, its table, and the keys beside it that change nothing.
_PARTS: dict[str, tuple[str, Kinds, Collection[str]]] = {
    "unet": ("UNet2DConditionModel", UNET, _UNET_HARMLESS),
    "vae": ("AutoencoderKL", VAE, ()),
}


def check_config(name: str, content: Mapping[str, Any]) -> None:
    """Hold the content of a checkpoint's JSON file to the table of its kind; files of other kinds pass.

    Args:
        name: of the file in the checkpoint, such as "unet/config.json".
        content: what it holds.

    Raises:
        ValueError: a value is not allowed, or a key is not known; names the key, its value and what is allowed.
    """
    folder, _, file = name.rpartition("/")
    if name == "model_index.json":
        check(content, MODEL_INDEX)
    elif name == "genpipe.json":
        check(content, DEFAULTS, harmless=())
    elif ".index" in file:
        check(content, SHARDS, required=("weight_map",))
    elif content.get("model_type") == "clip_vision_model":  # in a folder of any name
        check(content, IMAGE_ENCODER, harmless=_TEXT_HARMLESS)
    elif folder.startswith("text_encoder"):
        check(content, TEXT_ENCODER, harmless=_TEXT_HARMLESS)
        check(content.get("text_config") or {}, TEXT_ENCODER, harmless=_TEXT_HARMLESS)
    elif name == f"{folder}/config.json" and (folder in _PARTS or content.get("_class_name") == "AutoencoderKL"):
        kind, kinds, harmless = _PARTS[folder if folder in _PARTS else "vae"]
        named = content.get("_class_name", kind)
        if named != kind:
            raise ValueError(f"genpipe cannot run {quoted(named)} (only {kind})")
        check(content, kinds, harmless=harmless)
    elif content.get("_class_name") == "ControlNetModel":  # in a folder of any name
        check(content, CONTROLNET, harmless=_UNET_HARMLESS)
    elif content.get("_class_name") == "T2IAdapter":
        check(content, T2I_ADAPTER)
    elif content.get("_class_name") == "AutoencoderTiny":
        check(content, TINY_VAE, harmless=_TINY_VAE_HARMLESS)

"""IP-Adapters beside a model, with the image encoder that each was trained with."""

import math
from dataclasses import replace
from pathlib import Path

from genpipe.checkpoints import layout
from genpipe.checkpoints.checkpoint import Checkpoint
from genpipe.checkpoints.errors import CheckpointError
from genpipe.checkpoints.families import FAMILIES
from genpipe.checkpoints.parts import built
from genpipe.checkpoints.recognition import IMAGE_ENCODER, IP_ADAPTER, describe, kind_of
from genpipe.checkpoints.shapes import Shapes, count
from genpipe.checkpoints.source import Folder, read_json
from genpipe.checkpoints.tensors import Safetensors, open_tensors, shapes_of
from genpipe.checkpoints.weights import read_weights, weights_in
from genpipe.models.image_encoder import ImageEncoder, ImageEncoderConfig
from genpipe.models.ip_adapter import HEAD, IPAdapter, IPAdapterConfig, References

TOKENS = 4  # of a plain IP-Adapter, whose tensors do not tell
# What their tensors' names begin with that look like the others and need what genpipe does not have.
_FOREIGN = {
    "image_proj.perceiver_resampler.": "FaceID Plus",
    "image_proj.proj.0.": "of faces (Full Face or FaceID)",
    "image_proj.layers.0.attn.": "of another family of models",
}


def load_references(
    path: str | Path, checkpoint: Checkpoint, *, image_encoder: str | Path | None = None, allow_pickle: bool = False
) -> References:
    """Load an IP-Adapter (base or Plus) for a model, with its image encoder.

    Args:
        path: of its file.
        checkpoint: the model.
        image_encoder: CLIP's, a folder as transformers saves it or a file; None is the folder `image_encoder` beside the
            IP-Adapter.
        allow_pickle: read `.bin` files too: their tensors alone, by torch's reader that runs no code.

    Raises:
        CheckpointError: one is not there, not whole, of another kind, or not for this model or for each other.
    """
    path = Path(path).expanduser().absolute()
    if not path.is_file():
        raise CheckpointError(f"the IP-Adapter {path} does not exist: give a file")
    file = open_tensors(path, allow_pickle=allow_pickle)
    shapes = shapes_of(file)
    if kind_of(shapes) != IP_ADAPTER:
        raise CheckpointError(f"{path} is {describe(kind_of(shapes))}, not an IP-Adapter")
    for prefix, kind in _FOREIGN.items():
        if any(key.startswith(prefix) for key in shapes):
            raise CheckpointError(f"{path} is an IP-Adapter {kind}, which genpipe does not have (only base and Plus)")
    try:
        config = _config(shapes)
    except KeyError as error:
        raise CheckpointError(f"{path} lacks the tensor {error.args[0]}, or is no IP-Adapter") from error
    readers = list(checkpoint.unet.readers())
    widths = tuple(reader.heads * reader.head_channels for reader in readers)
    if (config.context_channels, config.widths) != (checkpoint.unet.config.context_channels, widths):
        made_for = next((each.title for each in FAMILIES if each.context_channels == config.context_channels), "")
        raise CheckpointError(
            f"{path} is an IP-Adapter for {made_for or 'another model'} ({len(config.widths)} attentions, to vectors of "
            f"{config.context_channels}), and {checkpoint.source} is {checkpoint.family.title} ({len(widths)}, of "
            f"{checkpoint.unet.config.context_channels})"
        )
    adapter = built(str(path), lambda: IPAdapter(config))
    read_weights(adapter, layout.ip_adapter(len(widths)), [file], device="cpu", dtype=None)
    encoder = load_image_encoder(
        path.parent / "image_encoder" if image_encoder is None else image_encoder, allow_pickle=allow_pickle
    )
    gives = encoder.config.projection_dim if config.resampler is None else encoder.config.hidden_size
    if gives != config.image_channels:
        raise CheckpointError(
            f"{path} takes vectors of {config.image_channels} where its image encoder gives {gives}: give the one that it "
            "was trained with, image_encoder= (--image-encoder)"
        )
    return References(adapter, encoder)


def load_image_encoder(path: str | Path, *, allow_pickle: bool = False) -> ImageEncoder:
    """Load CLIP's image encoder: a folder as transformers saves it, or a file.

    Raises:
        CheckpointError: it is not there, not whole, or something else.
    """
    path = Path(path).expanduser().absolute()
    if path.is_dir():
        source, names = Folder(path.parent), replace(layout.IMAGE_ENCODER, folder=path.name)
        config = read_json(source, f"{path.name}/config.json", ImageEncoderConfig.from_dict)
        files = [Safetensors(each) for each in weights_in(source, names)]
    elif path.is_file():
        names, files = layout.IMAGE_ENCODER, [open_tensors(path, allow_pickle=allow_pickle)]
        shapes = shapes_of(files[0])
        if kind_of(shapes) != IMAGE_ENCODER:
            raise CheckpointError(f"{path} is {describe(kind_of(shapes))}, not an image encoder")
        try:
            config = _image_config(shapes)
        except KeyError as error:
            raise CheckpointError(f"{path} lacks the tensor {error.args[0]}, or is no image encoder") from error
    else:
        raise CheckpointError(
            f"the image encoder {path} does not exist: give a folder or a file with image_encoder= (--image-encoder)"
        )
    encoder = built(str(path), lambda: ImageEncoder(config))
    read_weights(encoder, names, files, device="cpu", dtype=None)
    return encoder


def _config(shapes: Shapes) -> IPAdapterConfig:
    keys = sorted((int(key.split(".")[1]), shape) for key, shape in shapes.items() if key.endswith(".to_k_ip.weight"))
    widths = tuple(shape[0] for _, shape in keys)
    if "image_proj.latents" not in shapes:
        width, channels = shapes["image_proj.proj.weight"]
        return IPAdapterConfig(channels, width // TOKENS, TOKENS, widths)
    _, tokens, inner = shapes["image_proj.latents"]
    heads = shapes["image_proj.layers.0.0.to_q.weight"][0] // HEAD
    return IPAdapterConfig(
        image_channels=shapes["image_proj.proj_in.weight"][1],
        context_channels=shapes["image_proj.proj_out.weight"][0],
        tokens=tokens,
        widths=widths,
        resampler=(inner, count(shapes, "image_proj.layers."), heads),
    )


def _image_config(shapes: Shapes) -> ImageEncoderConfig:
    """The config of CLIP's image encoders in files, which come without one."""
    width, _, patch, _ = shapes["vision_model.embeddings.patch_embedding.weight"]
    positions = shapes["vision_model.embeddings.position_embedding.weight"][0]
    return ImageEncoderConfig(
        hidden_size=width,
        intermediate_size=shapes["vision_model.encoder.layers.0.mlp.fc1.weight"][0],
        num_hidden_layers=count(shapes, "vision_model.encoder.layers."),
        # Those of L, H and bigG have 16 heads each; only OpenAI's own, L, has the quick activation.
        num_attention_heads=16 if width % 16 == 0 else max(1, width // HEAD),
        image_size=patch * math.isqrt(positions - 1),
        patch_size=patch,
        hidden_act="quick_gelu" if width <= 1024 else "gelu",
        projection_dim=shapes["visual_projection.weight"][0],
    )

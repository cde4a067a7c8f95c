"""Loading a checkpoint from wherever it is: a folder, a single file, the hub; completed by parts from elsewhere."""

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from genpipe.checkpoints import layout, library
from genpipe.checkpoints.checkpoint import Checkpoint
from genpipe.checkpoints.controls import load_control
from genpipe.checkpoints.diffusers_layout import folder_parts, text_encoder_in, vae_in
from genpipe.checkpoints.errors import CheckpointError
from genpipe.checkpoints.families import TEXT_ENCODERS, Family, TextForm, tokenizer_of
from genpipe.checkpoints.hub import open_source
from genpipe.checkpoints.library import located
from genpipe.checkpoints.parts import Part, TextPart, assemble
from genpipe.checkpoints.recognition import describe, kind_of
from genpipe.checkpoints.references import load_references
from genpipe.checkpoints.single_file import file_parts, texts_in, vae_part
from genpipe.checkpoints.source import Folder, Inner, Source
from genpipe.checkpoints.tensors import PICKLES, QUANTISED, open_tensors, shapes_of
from genpipe.models.vae import VAEConfig

PathLike = str | Path
_FILES = (".safetensors", QUANTISED, *PICKLES)


def load_checkpoint(
    path_or_id: PathLike,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    revision: str | None = None,
    variant: str | None = None,
    file: str | None = None,
    vae: PathLike | None = None,
    text_encoder: PathLike | Sequence[PathLike] | None = None,
    allow_pickle: bool = False,
    model_dir: PathLike | None = None,
    unet_dtype: torch.dtype | None = None,
    controls: Sequence[PathLike] = (),
    ip_adapter: PathLike | None = None,
    image_encoder: PathLike | None = None,
    source: Source | None = None,
) -> Checkpoint:
    """Load a Stable Diffusion 1.x, 2.x or XL checkpoint; of the hub's files, only those needed are fetched.

    Args:
        path_or_id: a single file (`.safetensors`, `.gguf`), a folder in the diffusers layout, the name of one in `model_dir`, or a
            hub id "owner/name" (cached; HF_HUB_OFFLINE is obeyed).
        device: where the weights are to be.
        dtype: their type; None keeps each file's own.
        revision: branch, tag or commit on the hub.
        variant: "fp16" reads the files of that name of a folder; a network that has none is read from its plain file.
        file: the one that the model is in, of a repository or a folder that holds several.
        vae: an autoencoder in place of the checkpoint's, or where it has none: a file (its own, or a checkpoint's), an
            autoencoder's folder or hub id, or a checkpoint's.
        text_encoder: text encoders likewise; for Stable Diffusion XL one checkpoint that holds both, or two.
        allow_pickle: read `.ckpt` files too: their tensors alone, by torch's reader that runs no code.
        model_dir: where models are found by their names (see `library`); None is what GENPIPE_MODELS says.
        unet_dtype: keep the weights of the denoiser's layers in this type (fp8 as `torch.float8_e4m3fn`, int8 or bf16),
            and widen each layer as it runs: see `genpipe.models.stored`.
        controls: control networks beside it, each a file, a folder or a hub id.
        ip_adapter, image_encoder: an IP-Adapter beside it, and CLIP's image encoder for it (see `references`).
        source: where `path_or_id` is, where that has been opened already.

    Raises:
        CheckpointError: the checkpoint is not there, not whole, or not one that genpipe can run.
    """
    path_or_id = located(path_or_id, model_dir)
    path = expanded(path_or_id)
    if path.is_file():
        _refuse(str(path), revision=revision, variant=variant, file=file)
        parts = file_parts(path, allow_pickle=allow_pickle)
    else:
        source = open_source(path_or_id, revision, file=file) if source is None else source
        if source.single is None:
            parts = folder_parts(source, variant=variant)
        else:
            _refuse(source.single, variant=variant)
            parts = replace(file_parts(single_path(source), allow_pickle=allow_pickle), source=str(source))
    if vae is not None:
        vae = located(vae, model_dir, library.VAE)
        parts = replace(parts, vae=find_vae(vae, parts.family, allow_pickle=allow_pickle))
    if text_encoder is not None:
        given = [text_encoder] if isinstance(text_encoder, str | Path) else text_encoder
        given = [located(each, model_dir, library.TEXT_ENCODER) for each in given]
        parts = replace(parts, texts=find_texts(given, parts.family, allow_pickle=allow_pickle))
    checkpoint = assemble(parts, device=device, dtype=dtype, store=unet_dtype)
    given = [located(each, model_dir, library.CONTROL) for each in controls]
    found = [load_control(each, checkpoint, variant=variant, allow_pickle=allow_pickle) for each in given]
    checkpoint = replace(checkpoint, controls=tuple(found))
    if ip_adapter is None:
        return checkpoint
    ip_adapter = located(ip_adapter, model_dir, library.IP_ADAPTER)
    if image_encoder is not None:
        image_encoder = located(image_encoder, model_dir, library.IMAGE_ENCODER)
    references = load_references(ip_adapter, checkpoint, image_encoder=image_encoder, allow_pickle=allow_pickle)
    return replace(checkpoint, references=references)


def find_vae(path: PathLike, family: Family, *, allow_pickle: bool = False) -> Part[VAEConfig]:
    """The autoencoder in a file, in an autoencoder's folder or in a checkpoint's.

    Args:
        path: of the file or folder, or a hub id.
        family: whose latents it is to decode, as a file alone does not tell their scale.

    Raises:
        CheckpointError: it is not there, or no autoencoder that genpipe can run.
    """
    file = expanded(path)
    if (file / "config.json").is_file():
        return vae_in(Folder(file.absolute().parent), file.absolute().name)
    if not file.is_file():
        source = open_source(path, indexes=("model_index.json", "config.json"))
        if source.single is None:
            alone = source.find("config.json", optional=True) is not None
            return vae_in(Inner(source, layout.VAE.folder) if alone else source, layout.VAE.folder)
        file = single_path(source)
    held, size = open_tensors(file, allow_pickle=allow_pickle), 8 * family.sample_size
    try:
        return vae_part(held, family, size=size, allow_pickle=allow_pickle)
    except KeyError as error:
        raise CheckpointError(f"{file} lacks the tensor {error.args[0]}, or is no VAE") from error


def find_texts(paths: Sequence[PathLike], family: Family, *, allow_pickle: bool = False) -> tuple[TextPart, ...]:
    """The text encoders of a family in files or folders: one per path, or all of them in one checkpoint.

    Args:
        paths: in any order; the narrower encoder is the first of Stable Diffusion XL.
        family: that they are for.

    Raises:
        CheckpointError: they are not there, not text encoders, or not as many as the family has.
    """
    found: list[tuple[int, Callable[[TextForm], TextPart]]] = []  # its width, and what it is in the place of a form
    for path in paths:
        file, folders = expanded(path), None
        if (file / "config.json").is_file():
            source, folders = Folder(file.absolute().parent), [file.absolute().name]
        elif not file.is_file():
            source = open_source(path)
            if source.single is not None:
                file = single_path(source)
            else:
                folders = [name for name in TEXT_ENCODERS if source.find(f"{name}/config.json") is not None]
        if folders is None:
            tensors = open_tensors(file, allow_pickle=allow_pickle)
            held = texts_in(tensors, allow_pickle=allow_pickle)
            if not held:
                raise CheckpointError(f"{file} is {describe(kind_of(shapes_of(tensors)))}, and holds no text encoder")
            found += [(text.width, text.part) for text in held]
            continue
        for name in folders:
            text = text_encoder_in(source, name, tokenizer_of(name))
            found.append((text.config.hidden_size, partial(_in_place, text)))
    if len(found) != len(family.texts):
        raise CheckpointError(
            f"{family.title} has {len(family.texts)} text encoder(s) and {', '.join(map(str, paths))} "
            f"hold(s) {len(found)}: give one checkpoint that holds all, or one path for each"
        )
    found.sort(key=lambda each: each[0])
    try:
        return tuple(make(form) for (_, make), form in zip(found, family.texts, strict=True))
    except KeyError as error:
        raise CheckpointError(f"{', '.join(map(str, paths))}: the tensor {error.args[0]} is missing") from error


def expanded(path: PathLike) -> Path:
    """Give the path of a file or a folder, which may be a hub id; one that ends as files do has to be there."""
    expanded = Path(os.path.expanduser(str(path)))
    if expanded.suffix.lower() in _FILES and not expanded.exists():
        raise CheckpointError(f"the file {str(path)!r} does not exist")
    return expanded


def _refuse(path: str, **options: str | None) -> None:
    """Raise CheckpointError if one of the options is given, none of which goes with a file."""
    for name, value in options.items():
        if value is not None:
            raise CheckpointError(f"{name} {value!r} goes with a hub id or a folder, not with the file {path}")


def single_path(source: Source) -> Path:
    """The path of the single file that a source is."""
    assert source.single is not None
    path = source.find(source.single)
    if path is None:
        raise CheckpointError(source.lacks(source.single))
    return path


def _in_place(text: TextPart, form: TextForm) -> TextPart:
    names = replace(text.stored.names, folder=form.folder)
    return replace(text, stored=replace(text.stored, names=names))

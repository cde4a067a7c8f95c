"""Loading a pipeline of diffusers from a folder or a repository: safetensors alone, and no code of its own unless trusted."""

import json
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from genpipe.adapters.classes import find_class, missing_of, pip_line, refuse_others
from genpipe.adapters.fetching import fetched
from genpipe.adapters.parts import load_strays, load_text_encoders
from genpipe.adapters.placing import check_placing, place, warn_of_memory
from genpipe.adapters.single import SingleFile
from genpipe.adapters.storing import denoisers_in, quantisation
from genpipe.adapters.whole import check_whole
from genpipe.checkpoints.errors import CheckpointError
from genpipe.checkpoints.foreign import INDEX, Foreign
from genpipe.checkpoints.hub import Repository
from genpipe.checkpoints.source import Folder, Source
from genpipe.checks import read_object
from genpipe.hardware import choose_dtype
from genpipe.messages import listed, one_line
from genpipe.spec import ModelSpec

_PICKLES = (".bin", ".ckpt", ".pt", ".pth")


def usual_dtype(name: str | None, device: torch.device) -> torch.dtype:
    """Choose the dtype of a pipeline: the named one, or the best for the device, bf16 and never fp16 on its own.

    The text encoders and transformers of today's families overflow fp16.
    """
    dtype = choose_dtype(name, device)
    return torch.float32 if name is None and dtype == torch.float16 else dtype


def load_pipeline(
    source: Source,
    wanted: Foreign,
    spec: ModelSpec,
    *,
    device: torch.device,
    dtype: torch.dtype,
    file: Path | None = None,
    beside: Sequence[Path] = (),
) -> Any:
    """Load a pipeline, its networks in their place.

    Args:
        source: where its files are; of a repository those that diffusers wants are fetched.
        wanted: what its index says.
        spec: variant, trust_remote_code, allow_pickle, offload and weights count.
        file: of weights that are read in place of the pipeline's own.
        beside: folders of networks that are to be loaded, too.

    Raises:
        CheckpointError: it is none of text to images, not whole, or wants a package that is not installed.
        ValueError: it cannot be placed so on this device.
    """
    check_placing(spec, device, dtype)
    with _quiet():
        return _load(source, wanted, spec, device, dtype, file, beside)


def _load(
    source: Source,
    wanted: Foreign,
    spec: ModelSpec,
    device: torch.device,
    dtype: torch.dtype,
    file: Path | None,
    beside: Sequence[Path],
) -> Any:
    kind = find_class(wanted, str(source), trusted=spec.trust_remote_code)
    allowed = spec.allow_pickle
    single = None if file is None else SingleFile(file, wanted.parts, base=str(source), allow_pickle=allowed)
    if single is not None and single.packed and spec.weights is not None:
        raise ValueError(f"weights {spec.weights!r} is not for a .gguf, which keeps its own: leave it out")
    own = {name: part for name, part in wanted.parts.items() if single is None or name not in single.replaced}
    if not allowed and (pickles := _pickles_alone(source, own)):
        raise CheckpointError(
            f"{source} has its {listed(pickles)} in pickle files alone, which can run code: "
            "if you trust them, give allow_pickle (--allow-pickle)"
        )
    reachable = isinstance(source, Repository) and source.reachable
    replaced = () if single is None else single.replaced
    found = fetched(source, wanted, spec, without=replaced) if isinstance(source, Repository) else source
    assert isinstance(found, Folder)
    warn_of_memory(found.root, own, spec, device=device, dtype=dtype, single=single, beside=beside)
    read = {} if single is None else single.load(found.root, dtype, quantisation(spec, dtype))
    with _told(str(source)):
        how = {"torch_dtype": dtype, "use_safetensors": None if allowed else True, "local_files_only": True}
        strays = {} if kind is None else load_strays(found.root, kind, own, spec, how)
        given = {**strays, **load_text_encoders(found.root, own, spec, how), **read}
        with _without(found.root, strays) if strays else nullcontext(found.root) as folder:
            pipe = _loaded(folder, spec, dtype, reachable, given, denoisers_in(own))
    if kind is None:
        refuse_others(type(pipe), str(source))
    check_whole(pipe.components, str(source))
    pipe.set_progress_bar_config(disable=True)
    return place(pipe, spec, device=device, dtype=dtype)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep what the libraries say of themselves while they load off stderr: bars, and what they will drop one day."""
    from diffusers.utils import logging as ours
    from transformers.utils import logging as theirs

    before = ours.get_verbosity(), theirs.get_verbosity()
    for each in (ours, theirs):
        each.disable_progress_bar()
        each.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        for each, verbosity in zip((ours, theirs), before, strict=True):
            each.set_verbosity(verbosity)


def _loaded(
    folder: Path,
    spec: ModelSpec,
    dtype: torch.dtype,
    reachable: bool,
    parts: Mapping[str, Any],
    denoisers: Sequence[str],
) -> Any:
    """Load a folder by diffusers; where the hub is reachable, a prior that its page names is fetched from there."""
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline

    return DiffusionPipeline.from_pretrained(
        folder,
        torch_dtype=dtype,
        variant=spec.variant,
        use_safetensors=None if spec.allow_pickle else True,
        trust_remote_code=spec.trust_remote_code,
        load_connected_pipeline=True,  # two stages where it is one of them
        local_files_only=not reachable,
        **_quantised(denoisers, spec, dtype),
        **parts,
    )


@contextmanager
def _told(shown: str) -> Iterator[None]:
    """Raise what keeps diffusers from loading a model as one line, with the command that installs what is missing."""
    try:
        yield
    except (OSError, ValueError, ImportError, RuntimeError, AttributeError, KeyError, TypeError) as error:
        if missing := missing_of(error):
            raise CheckpointError(f"{shown} needs {listed(missing)}: {pip_line(missing)}") from error
        raise CheckpointError(f"{shown} cannot be loaded: {one_line(str(error), 300)}") from error


def _quantised(denoisers: Sequence[str], spec: ModelSpec, dtype: torch.dtype) -> dict[str, Any]:
    """How diffusers is to quantise the denoisers as it reads them, as an argument."""
    how = quantisation(spec, dtype)
    if how is None or not denoisers:
        return {}
    from diffusers.quantizers.pipe_quant_config import PipelineQuantizationConfig

    mapping: dict[str, Any] = dict.fromkeys(denoisers, how)
    return {"quantization_config": PipelineQuantizationConfig(quant_mapping=mapping)}


@contextmanager
def _without(folder: Path, parts: Iterable[str]) -> Iterator[Path]:
    """A folder of links to another's files, whose index lacks some parts."""
    with TemporaryDirectory() as name:
        for path in folder.iterdir():
            if path.name != INDEX:
                (Path(name) / path.name).symlink_to(path.absolute())
        index = read_object(folder / INDEX)
        kept = {part: value for part, value in index.items() if part not in parts}
        (Path(name) / INDEX).write_text(json.dumps(kept), encoding="utf-8")
        yield Path(name)


def _pickles_alone(source: Source, parts: Iterable[str]) -> list[str]:
    """The parts whose weights are in pickle files alone."""
    found = []
    for part in parts:
        names = source.listing(part)
        safe = any(name.endswith((".safetensors", ".gguf")) for name in names)
        if not safe and any(name.endswith(_PICKLES) for name in names):
            found.append(part)
    return found

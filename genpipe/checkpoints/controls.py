"""Control networks beside a model: ControlNets and T2I-Adapters, from folders in the diffusers layout and single files."""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from genpipe.checkpoints import layout, ldm_layout
from genpipe.checkpoints.checkpoint import Checkpoint
from genpipe.checkpoints.errors import CheckpointError
from genpipe.checkpoints.families import FAMILIES
from genpipe.checkpoints.hub import open_source
from genpipe.checkpoints.parts import built
from genpipe.checkpoints.recognition import CONTROLNET, T2I_ADAPTER, describe, kind_of
from genpipe.checkpoints.shapes import Shapes, controlnet_config, count, part
from genpipe.checkpoints.source import Folder, Inner, Source, read_json
from genpipe.checkpoints.tensors import PICKLES, Safetensors, TensorFile, open_tensors, shapes_of
from genpipe.checkpoints.weights import Network, read_weights, weights_in
from genpipe.models.control import ControlNetwork
from genpipe.models.controlnet import ControlNet, ControlNetConfig
from genpipe.models.t2i_adapter import T2IAdapter, T2IAdapterConfig

# Of ControlNets that look like the others and need what genpipe does not have.
_FOREIGN = ("task_embedding", "control_add_embedding", "difference")


def load_control(
    path: str | Path, checkpoint: Checkpoint, *, variant: str | None = None, allow_pickle: bool = False
) -> ControlNetwork:
    """Load a ControlNet or a T2I-Adapter for a model.

    Args:
        path: a folder with `config.json` and safetensors, as diffusers saves it, a single file, or a hub id.
        checkpoint: the model.
        variant: "fp16" reads the files of that name of a folder, where it has them.
        allow_pickle: read `.pth` and `.ckpt` files too: their tensors alone, by torch's reader that runs no code.

    Raises:
        CheckpointError: it is not there, not whole, neither of the two, or one for another family of models.
    """
    local = Path(path).expanduser().absolute()
    if local.is_dir() and not (local / "config.json").is_file():
        raise CheckpointError(
            f"{local} holds no config.json: give the folder of a ControlNet or T2I-Adapter, as diffusers saves it, or a file"
        )
    if local.is_dir():
        return _of_folder(Folder(local.parent), local.name, checkpoint, variant)
    if not local.is_file() and local.suffix in (".safetensors", *PICKLES):
        raise CheckpointError(f"the control model {local} does not exist: give a file or a folder")
    if not local.is_file():
        source = open_source(path, indexes=("config.json",))
        if source.single is None:
            return _of_folder(Inner(source, "control"), "control", checkpoint, variant)
        local = source.find(source.single) or local
    return _of_file(local, checkpoint, allow_pickle)


def _of_file(path: Path, checkpoint: Checkpoint, allow_pickle: bool) -> ControlNetwork:
    file = open_tensors(path, allow_pickle=allow_pickle)
    shapes = shapes_of(file)
    kind = kind_of(shapes)
    try:
        if kind == CONTROLNET:
            return _controlnet_of_file(file, shapes, checkpoint)
        if kind == T2I_ADAPTER:
            return _adapter_of_file(file, shapes, checkpoint)
    except KeyError as error:
        raise CheckpointError(f"{path} lacks the tensor {error.args[0]}, or is no {kind}") from error
    raise CheckpointError(f"{path} is {describe(kind)}, not a ControlNet and not a T2I-Adapter")


def _of_folder(source: Source, folder: str, checkpoint: Checkpoint, variant: str | None) -> ControlNetwork:
    origin = f"{source}/{folder}"

    def read(names: layout.Layout, build: Callable[[], Network]) -> Network:
        files = weights_in(source, replace(names, folder=folder), variant)
        return _read(origin, build, names, *map(Safetensors, files))

    config = read_json(source, f"{folder}/config.json", _config)
    if isinstance(config, ControlNetConfig):
        _check_controlnet(origin, config, checkpoint)
        return read(layout.CONTROLNET, lambda: ControlNet(config))
    _check_adapter(origin, config, checkpoint)
    return read(layout.T2I_ADAPTER, lambda: T2IAdapter(config))


def _config(content: Mapping[str, Any]) -> ControlNetConfig | T2IAdapterConfig:
    named = content.get("_class_name")
    if named == "ControlNetModel":
        return ControlNetConfig.from_dict(content)
    if named == "T2IAdapter":
        return T2IAdapterConfig.from_dict(content)
    raise ValueError(f"it is that of a {named}, not of a ControlNetModel or a T2IAdapter")


def _controlnet_of_file(file: TensorFile, shapes: Shapes, checkpoint: Checkpoint) -> ControlNet:
    prefix = ldm_layout.CONTROL_PREFIX if any(key.startswith(ldm_layout.CONTROL_PREFIX) for key in shapes) else ""
    within = part(shapes, prefix)
    if foreign := [key for key in within if key.startswith(_FOREIGN)]:
        raise CheckpointError(
            f"{file.path} is a ControlNet of a form that genpipe does not have (it holds {min(foreign)})"
        )
    config = controlnet_config(within, checkpoint.unet.config)
    _check_controlnet(file.path, config, checkpoint)
    compvis = "input_blocks.0.0.weight" in within
    names = ldm_layout.controlnet(config, prefix) if compvis else replace(layout.CONTROLNET, prefix=prefix)
    return _read(file.path, lambda: ControlNet(config), names, file)


def _adapter_of_file(file: TensorFile, shapes: Shapes, checkpoint: Checkpoint) -> T2IAdapter:
    prefix = "adapter." if any(key.startswith("adapter.") for key in shapes) else ""
    within = part(shapes, prefix)
    config = _adapter_config(within, checkpoint)
    _check_adapter(file.path, config, checkpoint)
    diffusers = any(".resnets." in key for key in within)
    names = replace(layout.T2I_ADAPTER, prefix=prefix) if diffusers else ldm_layout.t2i_adapter(config, prefix)
    return _read(file.path, lambda: T2IAdapter(config), names, file)


def _adapter_config(shapes: Shapes, checkpoint: Checkpoint) -> T2IAdapterConfig:
    """The config of a T2I-Adapter by the names of its authors, or by those of diffusers."""
    blocks = count(shapes, "body.")
    light = "body.0.out_conv.weight" in shapes
    nested = any(key.startswith(("body.0.resnets.", "body.0.body.")) for key in shapes)
    shown = shapes["body.0.in_conv.weight" if light else "conv_in.weight"][1]
    factor = math.isqrt(shown // 3)
    grey = 3 * factor**2 != shown
    factor = math.isqrt(shown) if grey else factor
    if light:
        residuals = count(shapes, "body.0.body.") or count(shapes, "body.0.resnets.")
        channels = [shapes[f"body.{level}.out_conv.weight"][0] for level in range(blocks - 1)]
    elif nested:
        residuals = count(shapes, "body.0.resnets.")
        channels = [shapes[f"body.{level}.resnets.0.block1.weight"][0] for level in range(blocks)]
    else:
        # The blocks of a level are not told apart: the published ones have two each.
        residuals = 2
        channels = [shapes[f"body.{block}.block1.weight"][0] for block in range(0, blocks, residuals)]
    xl = factor > checkpoint.vae.config.factor
    form = "light_adapter" if light else "full_adapter_xl" if xl else "full_adapter"
    return T2IAdapterConfig(1 if grey else 3, tuple(channels), residuals, factor, form)


def _read(origin: str | Path, build: Callable[[], Network], names: layout.Layout, *files: TensorFile) -> Network:
    network = built(str(origin), build)
    read_weights(network, names, files, device="cpu", dtype=None)
    return network


def _check_controlnet(origin: str | Path, config: ControlNetConfig, checkpoint: Checkpoint) -> None:
    """Refuse a ControlNet that was not made for such a model."""
    unet = checkpoint.unet.config
    pairs = {
        "vectors of the prompt": (config.context_channels, unet.context_channels),
        "levels": (config.channels, unet.channels),
        "layers": (config.layers, unet.layers),
        "pooled text and sizes": (config.added_channels or 0, unet.added_channels or 0),
        "latents": (config.in_channels, unet.out_channels),
        "pixels per latent": (2 ** (len(config.image_channels) - 1), checkpoint.vae.config.factor),
        "middle": (config.middle is not None, unet.middle is not None),
    }
    for what, (own, models) in pairs.items():
        if own != models:
            made_for = next((each.title for each in FAMILIES if each.context_channels == config.context_channels), "")
            raise CheckpointError(
                f"{origin} is a ControlNet for {made_for or 'another model'}, and {checkpoint.source} is "
                f"{checkpoint.family.title} ({what}: {own}, not {models})"
            )


def _check_adapter(origin: str | Path, config: T2IAdapterConfig, checkpoint: Checkpoint) -> None:
    """Refuse a T2I-Adapter whose maps are not of the widths and sizes of the model's levels."""
    begins = math.log2(config.factor / checkpoint.vae.config.factor)
    own = [(width, begins + halvings) for width, halvings in config.maps]
    wanted = [(width, float(halvings)) for width, halvings in checkpoint.unet.places]
    if own != wanted[: len(own)]:
        shown = ["/".join(f"{width} at 1:{2**halvings:g}" for width, halvings in each) for each in (own, wanted)]
        raise CheckpointError(
            f"{origin} is a T2I-Adapter for another model than {checkpoint.source}, which is {checkpoint.family.title} "
            f"(its maps: {shown[0]}, not {shown[1]})"
        )

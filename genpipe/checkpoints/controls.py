"""ControlNets beside a model: from folders in the diffusers layout, and from single files by either naming."""

from dataclasses import replace
from pathlib import Path

from genpipe.checkpoints import layout, ldm_layout
from genpipe.checkpoints.checkpoint import Checkpoint
from genpipe.checkpoints.errors import CheckpointError
from genpipe.checkpoints.families import FAMILIES
from genpipe.checkpoints.parts import built
from genpipe.checkpoints.recognition import CONTROLNET, describe, kind_of
from genpipe.checkpoints.shapes import controlnet_config, part
from genpipe.checkpoints.source import Folder, read_json
from genpipe.checkpoints.tensors import Safetensors, open_tensors, shapes_of
from genpipe.checkpoints.weights import read_weights, weights_in
from genpipe.models.controlnet import ControlNet, ControlNetConfig


def load_control(
    path: str | Path, checkpoint: Checkpoint, *, variant: str | None = None, allow_pickle: bool = False
) -> ControlNet:
    """Load a ControlNet for a model.

    Args:
        path: a folder with `config.json` and safetensors, as diffusers saves it, or a single file.
        checkpoint: the model.
        variant: "fp16" reads the files of that name of a folder, where it has them.
        allow_pickle: read `.pth` and `.ckpt` files too: their tensors alone, by torch's reader that runs no code.

    Raises:
        CheckpointError: it is not there, not whole, no ControlNet, or one for another family of models.
    """
    path = Path(path).expanduser().absolute()
    if path.is_dir():
        source, names = Folder(path.parent), replace(layout.CONTROLNET, folder=path.name)
        config = read_json(source, f"{path.name}/config.json", _config)
        files = [Safetensors(file) for file in weights_in(source, names, variant)]
    elif path.is_file():
        files = [open_tensors(path, allow_pickle=allow_pickle)]
        shapes = shapes_of(files[0])
        if kind_of(shapes) != CONTROLNET:
            raise CheckpointError(f"{path} is {describe(kind_of(shapes))}, not a ControlNet")
        prefix = ldm_layout.CONTROL_PREFIX if any(key.startswith(ldm_layout.CONTROL_PREFIX) for key in shapes) else ""
        within = part(shapes, prefix)
        foreign = {key for key in within if key.startswith(("task_embedding", "control_add_embedding", "difference"))}
        if foreign:
            raise CheckpointError(
                f"{path} is a ControlNet of a form that genpipe does not have (it holds {min(foreign)})"
            )
        try:
            config = controlnet_config(within, checkpoint.unet.config)
        except KeyError as error:
            raise CheckpointError(f"{path} lacks the tensor {error.args[0]}, or is no ControlNet") from error
        compvis = "input_blocks.0.0.weight" in within
        names = ldm_layout.controlnet(config, prefix) if compvis else replace(layout.CONTROLNET, prefix=prefix)
    else:
        raise CheckpointError(f"the ControlNet {path} does not exist: give a file or a folder")
    _check_fit(path, config, checkpoint)
    network = built(str(path), lambda: ControlNet(config))
    read_weights(network, names, files, device="cpu", dtype=None)
    return network


def _config(content: dict[str, object]) -> ControlNetConfig:
    if (named := content.get("_class_name")) != "ControlNetModel":
        raise ValueError(f"it is that of a {named}, not of a ControlNetModel")
    return ControlNetConfig.from_dict(content)


def _check_fit(path: Path, config: ControlNetConfig, checkpoint: Checkpoint) -> None:
    """Refuse a ControlNet that was not made for such a model."""
    unet = checkpoint.unet.config
    pairs = {
        "vectors of the prompt": (config.context_channels, unet.context_channels),
        "levels": (config.channels, unet.channels),
        "layers": (config.layers, unet.layers),
        "pooled text and sizes": (config.added_channels or 0, unet.added_channels or 0),
        "latents": (config.in_channels, unet.out_channels),
        "pixels per latent": (2 ** (len(config.image_channels) - 1), checkpoint.vae.config.factor),
    }
    for what, (own, models) in pairs.items():
        if own != models:
            made_for = next((each.title for each in FAMILIES if each.context_channels == config.context_channels), "")
            raise CheckpointError(
                f"{path} is a ControlNet for {made_for or 'another model'}, and {checkpoint.source} is "
                f"{checkpoint.family.title} ({what}: {own}, not {models})"
            )
    if (config.middle is None) != (unet.middle is None):
        raise CheckpointError(
            f"{path} is a ControlNet for another model than {checkpoint.source}: it has a middle block"
        )

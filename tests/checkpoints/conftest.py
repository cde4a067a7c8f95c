"""A copy of the tiny checkpoint that a test may rewrite as other programs and older years would have written it."""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from torch import Tensor

from genpipe.checkpoints import Checkpoint
from genpipe.checkpoints.single_file_saving import save_single_file
from tests.checkpoints.tiny_families import NAMES, tiny

STEMS = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model"}


class Edited:
    """A checkpoint's folder, and ways to spoil or to age it."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def weights(self, part: str) -> Path:
        return self.root / part / f"{STEMS[part]}.safetensors"

    def edit_weights(self, part: str, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
        save_file(change(load_file(self.weights(part))), self.weights(part))

    def edit_json(self, name: str, **changes: Any) -> None:
        """Set keys of a JSON file; None takes a key out."""
        content = {**json.loads((self.root / name).read_text()), **changes}
        self.write_json(name, {key: value for key, value in content.items() if value is not None})

    def write_json(self, name: str, content: Mapping[str, Any]) -> None:
        (self.root / name).write_text(json.dumps(content))

    def shard(self, part: str, *, variant: str = "") -> None:
        """Split a network's weights into two files and an index, as `save_pretrained` does with large ones."""
        state, stem, suffix = load_file(self.weights(part)), STEMS[part], variant and f".{variant}"
        keys = sorted(state)
        shards = {f"{stem}{suffix}-0000{k + 1}-of-00002.safetensors": keys[k::2] for k in range(2)}
        for name, held in shards.items():
            save_file({key: state[key] for key in held}, self.root / part / name)
        weight_map = {key: name for name, held in shards.items() for key in held}
        self.write_json(f"{part}/{stem}.safetensors.index{suffix}.json", {"metadata": {}, "weight_map": weight_map})
        self.weights(part).unlink()


@pytest.fixture
def edited_copy(tmp_path: Path) -> Callable[[Path], Edited]:
    """A copy of any checkpoint's folder."""

    def copy(folder: Path) -> Edited:
        shutil.copytree(folder, tmp_path / "edited")
        return Edited(tmp_path / "edited")

    return copy


@pytest.fixture
def edited(edited_copy: Callable[[Path], Edited], tiny_checkpoint: Path) -> Edited:
    return edited_copy(tiny_checkpoint)


@pytest.fixture(scope="session")
def tensors() -> Callable[[Checkpoint], dict[str, Tensor]]:
    """All weights of a checkpoint by name."""

    def all_tensors(checkpoint: Checkpoint) -> dict[str, Tensor]:
        return {f"{p}.{k}": t for p, network in checkpoint.networks.items() for k, t in network.state_dict().items()}

    return all_tensors


@pytest.fixture(scope="session")
def singles(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The tiny single file of a family, made once."""
    made: dict[str, Path] = {}

    def path(name: str) -> Path:
        if name not in made:
            made[name] = tmp_path_factory.mktemp("single") / f"{name}.safetensors"
            save_single_file(made[name], tiny(NAMES[name]))
        return made[name]

    return path

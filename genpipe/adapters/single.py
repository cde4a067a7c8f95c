"""Single files of models that diffusers draws: their denoiser, and of autoencoder and text encoders what they hold; the rest is
a base's.
"""

import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from genpipe.adapters.sizes import is_decoder
from genpipe.checkpoints.errors import CheckpointError
from genpipe.checkpoints.tensors import QUANTISED, TensorFile, is_companion, open_tensors, scales
from genpipe.messages import listed, one_line

_DENOISER = "model.diffusion_model."
_DECODERS = ("first_stage_model.", "vae.")
# Where text encoders lie in files that hold all -> what their classes of transformers begin with, in the order of a base's parts.
_TEXTS = {
    "text_encoders.clip_l.": "CLIPTextModel",
    "text_encoders.clip_g.": "CLIPTextModel",
    "text_encoders.t5xxl.": "T5EncoderModel",
}
_INNER = "transformer."
_UNPROJECTED = "text_encoders.clip_l."  # its summary of a prompt is taken as it is
_PROJECTION = "text_projection.weight"


class SingleFile:
    """A file of weights, and whose place they take among the parts of a base.

    Args:
        path: a `.safetensors` or a `.gguf`, or a pickle where that is allowed.
        parts: (library, class) of each part of the base, by its folder.
        base: what messages call the base.
        allow_pickle: read tensors from a pickle, by torch's reader that runs no code.

    Attributes:
        replaced: the folders of the parts that it is read in place of.
        packed: whether its weights stay in memory as they are in the file.

    Raises:
        CheckpointError: it cannot be read, or nothing of the base can be read from single files.
    """

    def __init__(
        self, path: Path, parts: Mapping[str, tuple[str, str]], *, base: str, allow_pickle: bool = False
    ) -> None:
        self.path, self._base = path, base
        self._file: TensorFile = open_tensors(path, allow_pickle=allow_pickle)
        self.packed = path.suffix.lower() == QUANTISED
        readable = {part: kind for part, (_, name) in parts.items() if (kind := _readable(name)) is not None}
        denoiser = next((part for part in readable if not is_decoder(part)), None)
        if denoiser is None:
            raise CheckpointError(f"diffusers reads no single files in place of what {base} has: {listed(parts)}")
        decoder = next((part for part in readable if is_decoder(part)), None)
        whole = any(key.startswith(_DENOISER) for key in self._file.entries)
        self._prefixes: dict[str, tuple[str, ...]] = {denoiser: (_DENOISER,) if whole else ("",)}
        if decoder is not None and whole and any(key.startswith(_DECODERS) for key in self._file.entries):
            self._prefixes[decoder] = _DECODERS
        self._kinds = {part: readable[part] for part in self._prefixes}
        self._texts = self._texts_in(parts) if whole else {}
        self._prefixes |= {part: (prefix,) for part, (prefix, _) in self._texts.items()}
        self.replaced = tuple(self._prefixes)
        known = tuple(prefix for prefixes in self._prefixes.values() for prefix in prefixes)
        if unread := [key for key in self._file.entries if not key.startswith(known)]:
            names = list(dict.fromkeys(_place(key) for key in unread))
            warnings.warn(f"{path}: its {listed(names)} is not read: the parts of {base} are used there", stacklevel=2)

    def memory(self, each: float, stored: float) -> list[float]:
        """Say how many bytes each of its parts takes in memory, at so many per number; `stored` those of the denoiser."""
        if self.packed:
            return [self.path.stat().st_size]
        denoiser, *_ = self._prefixes
        return [
            (stored if part == denoiser else each)
            * sum(math.prod(entry.shape) for key, entry in self._file.entries.items() if key.startswith(prefixes))
            for part, prefixes in self._prefixes.items()
        ]

    def load(self, folder: Path, dtype: torch.dtype, quantisation: Any = None) -> dict[str, Any]:
        """Build the parts by a base's configs, in a dtype; weights of a `.gguf` stay as they are and are widened as they run.

        Args:
            folder: of the base.
            quantisation: how diffusers is to quantise the denoiser as it reads it.

        Raises:
            CheckpointError: the file's tensors are not those of the base's part.
        """
        networks = {
            part: self._loaded(part, kind, folder, dtype, None if is_decoder(part) else quantisation)
            for part, kind in self._kinds.items()
        }
        return networks | {
            part: self._text_encoder(part, kind, prefix, folder, dtype) for part, (prefix, kind) in self._texts.items()
        }

    def _texts_in(self, parts: Mapping[str, tuple[str, str]]) -> dict[str, tuple[str, Any]]:
        """Where the text encoders lie that it holds, and their classes of transformers, by the parts of the base."""
        import transformers

        waiting = {part: name for part, (library, name) in sorted(parts.items()) if library == "transformers"}
        found = {}
        for prefix, name in _TEXTS.items():
            part = next((part for part, kind in waiting.items() if kind.startswith(name)), None)
            if part is None:
                continue
            kind = getattr(transformers, waiting.pop(part))
            if any(key.startswith(f"{prefix}{_INNER}") for key in self._file.entries):
                found[part] = prefix, kind
        return found

    def _text_encoder(self, part: str, kind: Any, prefix: str, folder: Path, dtype: torch.dtype) -> Any:
        """Build a text encoder, whose tensors have the names of transformers behind a prefix."""
        config, place = kind.config_class.from_pretrained(folder / part), f"{prefix}{_INNER}"
        given = {key.removeprefix(place): tensor for key, tensor in self._tensors((place,), dtype).items()}
        if prefix == _UNPROJECTED:
            given.pop(_PROJECTION, None)
            if kind.__name__.endswith("WithProjection"):  # diffusers, too, has the identity there
                given[_PROJECTION] = torch.eye(config.hidden_size)
        try:
            network, told = kind.from_pretrained(
                None, config=config, state_dict=given, torch_dtype=dtype, output_loading_info=True
            )
        except (KeyError, ValueError, RuntimeError, AttributeError, TypeError) as error:
            raise self._misfit(part, kind, one_line(str(error), 200)) from error
        if missing := sorted(told["missing_keys"]):
            raise self._misfit(part, kind, f"it lacks {listed(missing)}")
        if unread := sorted(told["unexpected_keys"]):
            warnings.warn(f"{self.path}: {listed(unread)} of its {part} is not read", stacklevel=2)
        return network.eval()

    def _loaded(self, part: str, kind: Any, folder: Path, dtype: torch.dtype, quantisation: Any) -> Any:
        more: dict[str, Any] = {
            "config": str(folder),
            "subfolder": part,
            "torch_dtype": dtype,
            "local_files_only": True,
        }
        given: Any = self._tensors(self._prefixes[part], dtype)
        if self.packed:
            from diffusers.quantizers.quantization_config import GGUFQuantizationConfig

            given, quantisation = str(self.path), GGUFQuantizationConfig(compute_dtype=dtype)
        if quantisation is not None:
            more["quantization_config"] = quantisation
        try:
            return kind.from_single_file(given, **more)
        except NotImplementedError as error:  # what was not in the file has no numbers
            raise self._misfit(part, kind, "it lacks tensors") from error
        except (KeyError, ValueError, IndexError, RuntimeError, AttributeError, TypeError) as error:
            raise self._misfit(part, kind, one_line(str(error), 200)) from error

    def _misfit(self, part: str, kind: type, why: str) -> CheckpointError:
        return CheckpointError(
            f"{self.path} does not fit the {part} of {self._base}, a {kind.__name__}: {why}: give the base that it was made for"
        )

    def _tensors(self, prefixes: tuple[str, ...], dtype: torch.dtype) -> dict[str, Tensor]:
        """The tensors of a part; those in fp8 with a scale, times that."""
        if self.packed:
            return {}
        factors, found = scales(self._file), {}
        for key in self._file.entries:
            if key.startswith(prefixes) and not is_companion(self._file, key):
                tensor = self._file.tensor(key)
                factor = factors.get(key)
                name = key.removeprefix(_DENOISER)  # not all of diffusers' readers know it
                found[name] = tensor if factor is None else tensor.to(dtype) * self._file.tensor(factor).to(dtype)
        return found


def _place(key: str) -> str:
    """What a message calls the part of a file that a tensor is in."""
    first, _, rest = key.partition(".")
    return f"{first}.{rest.partition('.')[0]}" if first == "text_encoders" else first


def _readable(name: str) -> Any:
    """The class of diffusers of this name; None where there is none, or where it is not read from single files."""
    import diffusers

    kind = getattr(diffusers, name, None)
    return kind if hasattr(kind, "from_single_file") else None

"""What draws with a pipeline of diffusers; genpipe does all around it."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from genpipe.adapters.adapted import Adapted
from genpipe.adapters.controls import CONFIG, fetched_control, load_control
from genpipe.adapters.loading import load_pipeline, usual_dtype
from genpipe.adapters.preview import Preview
from genpipe.adapters.sizes import channels_of, decoder_of, scale
from genpipe.checkpoints import library, load_tiny_vae
from genpipe.checkpoints.errors import CheckpointError
from genpipe.checkpoints.foreign import Foreign, foreign
from genpipe.checkpoints.hub import open_source
from genpipe.checkpoints.library import located
from genpipe.checkpoints.loading import expanded, single_path
from genpipe.checkpoints.source import Source, read_json
from genpipe.fields import defaults_of
from genpipe.fit import Traits
from genpipe.hardware import choose_device
from genpipe.images import Picture
from genpipe.messages import listed
from genpipe.metadata import annotate
from genpipe.models.tiny_vae import TinyVAE
from genpipe.pipeline.control import control_image
from genpipe.pipeline.denoising import is_guided
from genpipe.pipeline.loaded import name_of, recorded_options
from genpipe.pipeline.networks import prepare_process
from genpipe.pipeline.progress import Progress
from genpipe.pipeline.run import Run
from genpipe.request import Request
from genpipe.spec import ModelSpec

DEFAULTS = "genpipe.json"
# The options that apply to a pipeline of diffusers.
TAKEN = (
    "model",
    "model_dir",
    "base",
    "file",
    "revision",
    "variant",
    "device",
    "dtype",
    "allow_pickle",
    "trust_remote_code",
    "lora_dir",
    "tiny_vae",
    "control_model",
    "offload",
    "weights",
    "compile",
)


class WrappedDrawer:
    """A pipeline of diffusers; for what its methods do see `Pipeline`.

    Args:
        adapted: the loaded pipeline.
        spec: what it was loaded by.
        dtype: of its networks.
        usual: how the model likes to be run, where that is not what its class does: its folder's `genpipe.json`.
        tiny_vae: makes previews.
    """

    def __init__(
        self,
        adapted: Adapted,
        *,
        spec: ModelSpec,
        dtype: torch.dtype,
        usual: Mapping[str, Any] | None = None,
        tiny_vae: TinyVAE | None = None,
    ) -> None:
        self.adapted, self.spec, self.dtype = adapted, spec, dtype
        self._usual = dict(usual or {})
        self.name, self.device = adapted.name, adapted.device
        self.text_seconds = 0.0  # diffusers encodes and denoises in one call
        self._recorded = recorded_options(spec)
        self.preview = Preview(adapted.pipe, tiny_vae)

    @classmethod
    def load(cls, spec: ModelSpec, source: Source, wanted: Foreign, *, file: Path | None = None) -> "WrappedDrawer":
        """Load the pipeline of a spec.

        Args:
            spec: what is loaded.
            source, wanted: where it is, and what its index says.
            file: of weights that are read in place of the pipeline's own.

        Raises:
            CheckpointError: it is not whole, or draws no images from text.
            ValueError: an option is not for a pipeline of diffusers.
        """
        standing = defaults_of(ModelSpec)
        if idle := [name for name, value in spec.to_dict().items() if name not in TAKEN and value != standing[name]]:
            raise ValueError(f"{wanted.name} is drawn by diffusers, which takes no {listed(idle)}: leave it out")
        device = choose_device(spec.device)
        dtype = usual_dtype(spec.dtype, device)
        prepare_process(spec, device, dtype)
        usual = read_json(source, DEFAULTS, dict) if source.find(DEFAULTS, optional=True) is not None else None
        paths = [located(each, spec.model_dir, library.CONTROL) for each in spec.control_model]
        beside = [fetched_control(open_source(path, indexes=(CONFIG,)), spec) for path in paths]
        roots = [each.root for each in beside]
        pipe = load_pipeline(source, wanted, spec, device=device, dtype=dtype, file=file, beside=roots)
        controls = [load_control(each, spec, device=device, dtype=dtype) for each in beside]
        name = name_of(str(source if file is None else file))
        adapted = Adapted(pipe, device=device, name=name, controls=controls, read_control=control_image)
        return cls(adapted, spec=spec, dtype=dtype, usual=usual, tiny_vae=_tiny_vae(spec, pipe, device))

    @classmethod
    def over_base(cls, spec: ModelSpec, source: Source | None) -> "WrappedDrawer":
        """Load a single file with the other parts of its base; for errors see `load`.

        Args:
            spec: what is loaded.
            source: where its model is, None for a file.
        """
        if spec.base is None or spec.model is None or (source is not None and source.single is None):
            raise ValueError("base is for a model in a single file, which this one is not: leave it out")
        base = open_source(located(spec.base, spec.model_dir))
        wanted = foreign(base)
        if wanted is None:
            raise CheckpointError(f"{base} is drawn by genpipe's own networks, whose files need no base: leave it out")
        file = expanded(located(spec.model, spec.model_dir)) if source is None else single_path(source)
        return cls.load(spec, base, wanted, file=file)

    @property
    def traits(self) -> Traits:
        """Which requests it draws."""
        return self.adapted.traits

    @property
    def made_by(self) -> dict[str, Any]:
        """What metadata says of the model."""
        return {"model": self.name, "dtype": str(self.dtype).removeprefix("torch."), **self._recorded}

    def defaults(self, sampler: str | None = None) -> dict[str, Any]:
        """What its `genpipe.json` says, or else what its `__call__` does where it is told nothing."""
        usual = self.adapted.defaults()
        return usual | {name: value for name, value in self._usual.items() if name in usual}

    def stream(self, requests: Sequence[Request]) -> Iterator[Progress]:
        """Draw a batch; the last step's latents are the finished images, uint8 (B, 3, H, W)."""
        is_guided(requests, distilled=True)  # they agree in what they must
        size = (requests[0].height, requests[0].width)
        for step, steps, latents in self.adapted.draw(requests):
            self.preview.size = size
            yield Progress(step, steps, latents, lambda latents=latents: self.preview(latents))

    def begin(self, request: Request) -> Run | None:
        """None: `stream` alone draws."""

    def decode(self, latents: Tensor, requests: Sequence[Request]) -> list[Picture]:
        """Give the finished images with what made them."""
        made_by = self.made_by
        images = [Picture.of_levels(pixels.movedim(0, -1).contiguous().numpy()) for pixels in latents]
        for image, request in zip(images, requests, strict=True):
            annotate(image, request, made_by)
        return images


def _tiny_vae(spec: ModelSpec, pipe: Any, device: torch.device) -> TinyVAE | None:
    """Load the tiny autoencoder of a spec, for the latents of a pipeline."""
    if spec.tiny_vae is None:
        return None
    channels = channels_of(decoder) if (decoder := decoder_of(pipe)) is not None else None
    if channels is None:
        raise ValueError("tiny_vae is not for this model, which has no autoencoder of images: leave it out")
    tiny = load_tiny_vae(spec.tiny_vae, latent_channels=channels, factor=scale(pipe))
    return tiny.to(device=device, dtype=torch.float32).eval()


def opened(spec: ModelSpec) -> Source | None:
    """Open the folder or the repository of a spec; None where its model is a file, or the embedded one.

    Raises:
        CheckpointError: it is not there.
    """
    if spec.model is None:
        return None
    path_or_id = located(spec.model, spec.model_dir)
    return None if expanded(path_or_id).is_file() else open_source(path_or_id, spec.revision, file=spec.file)


def foreign_in(source: Source | None) -> Foreign | None:
    """What an opened model asks diffusers for; None where genpipe's own networks draw it."""
    return None if source is None or source.single is not None else foreign(source)

"""What draws with genpipe's own networks: prompts are encoded, latents denoised and decoded."""

from collections.abc import Callable, Iterator, Sequence
from threading import Lock
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from genpipe.checkpoints import Checkpoint, load_checkpoint, load_tiny_vae
from genpipe.checkpoints.source import Source
from genpipe.fit import Traits
from genpipe.hardware import choose_device, choose_dtype
from genpipe.images import Picture, to_pil
from genpipe.inputs import Lora
from genpipe.metadata import annotate
from genpipe.models.conditioning import Conditioning
from genpipe.models.tiny_vae import TinyVAE
from genpipe.pipeline.conditions import written
from genpipe.pipeline.decoding import choose_tile, decode, decode_joined
from genpipe.pipeline.denoising import is_guided
from genpipe.pipeline.groups import side_by_side
from genpipe.pipeline.loaded import Loaded, check_refiner, checkpoint_of, name_of, recorded_options, usual_settings
from genpipe.pipeline.networks import prepare_process, shown_beside, stored_dtype, traits_of
from genpipe.pipeline.originals import Originals
from genpipe.pipeline.plan import Plan, make_plan
from genpipe.pipeline.preview import LatentPreview
from genpipe.pipeline.progress import Progress
from genpipe.pipeline.run import Run
from genpipe.pipeline.stages import begin, walk
from genpipe.pipeline.upscaling import upscaled_size
from genpipe.request import Request
from genpipe.sampling.sampler import Sampler
from genpipe.sampling.samplers import make_sampler
from genpipe.sampling.speed import SPEEDS
from genpipe.spec import ModelSpec


class OwnDrawer:
    """A checkpoint on genpipe's own networks; for what its methods do see `Pipeline`.

    Args:
        checkpoint: its networks with their weights; used as they are until they are prepared.
        device, dtype: where and in what they run.
        spec: what it was loaded by.
        tiny_vae: makes previews, and decodes drafts.
        refiner: draws the last part of the schedule.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        device: torch.device,
        dtype: torch.dtype,
        spec: ModelSpec | None = None,
        tiny_vae: TinyVAE | None = None,
        refiner: Checkpoint | None = None,
    ) -> None:
        shown_beside(checkpoint)  # or it cannot be drawn
        self.device, self.dtype, self.tiny_vae = device, dtype, tiny_vae
        self.spec = ModelSpec() if spec is None else spec
        self._recorded = recorded_options(self.spec)  # as its files lie now
        self.name = name_of(checkpoint.source)
        self._switching = Lock()
        self._samplers: dict[str | None, Sampler] = {}  # they keep nothing of a run
        self._use(Loaded(checkpoint, self.spec, device=device, dtype=dtype, name=self.name))
        self.refiner = None
        if refiner is not None:
            check_refiner(checkpoint, refiner)
            self.refiner = Loaded(refiner, self.spec, device=device, dtype=dtype, name=name_of(refiner.source))
        self.preview: Callable[[Tensor], list[Picture]] = (
            LatentPreview(lambda: self.networks.in_memory(self.vae))
            if tiny_vae is None
            else lambda latents: to_pil(tiny_vae.decode(latents))
        )

    def _use(self, loaded: Loaded) -> None:
        self._loaded, self.checkpoint = loaded, loaded.checkpoint
        self.networks, self.prompt_encoder = loaded.networks, loaded.prompt_encoder
        self.text_encoders, self.tokenizers = loaded.checkpoint.text_encoders, loaded.checkpoint.tokenizers
        self.unet, self.vae = loaded.checkpoint.unet, loaded.checkpoint.vae

    def _with(self, loras: tuple[Lora, ...]) -> Loaded:
        """The model with these LoRAs; it stays so until others are asked for."""
        with self._switching:
            if loras != self._loaded.loras:
                self._use(self._loaded.with_loras(loras))
            return self._loaded

    @classmethod
    def load(cls, spec: ModelSpec, source: Source | None = None) -> "OwnDrawer":
        """Load the checkpoint of a spec and make its networks ready; for errors see `Pipeline.from_pretrained`.

        Args:
            spec: what is loaded.
            source: where the model is, where that has been opened already.
        """
        if spec.offload is not None:
            raise ValueError("offload is for models that diffusers draws, and genpipe draws this one: see low_memory")
        device = choose_device(spec.device)
        dtype = choose_dtype(spec.dtype, device)
        unet_dtype = stored_dtype(spec.weights, dtype, int8=spec.int8)
        prepare_process(spec, device, dtype)
        checkpoint = checkpoint_of(spec, unet_dtype=unet_dtype, source=source)
        tiny, refiner, config = None, None, checkpoint.vae.config
        if spec.tiny_vae is not None:
            tiny = load_tiny_vae(spec.tiny_vae, latent_channels=config.latent_channels, factor=config.factor)
        if spec.refiner is not None:
            refiner = load_checkpoint(
                spec.refiner,
                variant=spec.variant,
                model_dir=spec.model_dir,
                allow_pickle=spec.allow_pickle,
                unet_dtype=unet_dtype,
            )
        drawer = cls(checkpoint, device=device, dtype=dtype, spec=spec, tiny_vae=tiny, refiner=refiner)
        for loaded in filter(None, (drawer, drawer.refiner)):
            loaded.networks.prepare_all()
        if tiny is not None:
            drawer.networks.prepare(tiny)
        return drawer

    @property
    def text_seconds(self) -> float:
        """What the text encoders have taken so far."""
        return self.prompt_encoder.seconds

    @property
    def traits(self) -> Traits:
        """What the networks can draw."""
        return traits_of(self.checkpoint, refines=self.refiner is not None)

    @property
    def made_by(self) -> dict[str, Any]:
        """What metadata says of the model."""
        return {"model": self.name, "dtype": str(self.dtype).removeprefix("torch."), **self._recorded}

    def defaults(self, sampler: str | None = None) -> dict[str, Any]:
        """What applies where a caller says nothing: the checkpoint's `genpipe.json`, else what its family wants."""
        return usual_settings(self.checkpoint, self.sampler(sampler).name)

    def sampler(self, name: str | None = None) -> Sampler:
        """The named sampler on this checkpoint's noise schedule, its own for None."""
        if not isinstance(name, str | None):
            return make_sampler(name, self.checkpoint.scheduler_config)  # which says what is wrong with it
        if name not in self._samplers:
            self._samplers[name] = make_sampler(name, self.checkpoint.scheduler_config)
        return self._samplers[name]

    @torch.inference_mode()
    def stream(self, requests: Sequence[Request]) -> Iterator[Progress]:
        """Denoise a batch. Where the last latents are not finite, the steps come again: see `pipeline.denoising.denoise`."""
        plan = self._plan(requests)
        if len(groups := plan.stages[0][0].groups(requests, plan.total)) > 1:
            yield from side_by_side(groups, requests, self.stream, self.preview)
            return
        for step, latents in walk(plan, requests):
            yield Progress(step, plan.steps, latents, lambda latents=latents: self.preview(latents))

    @torch.inference_mode()
    def begin(self, request: Request) -> Run:
        """Begin an image that is drawn together with others."""
        return begin(self._plan([request]), request)

    def _plan(self, requests: Sequence[Request]) -> Plan:
        is_guided(
            requests, distilled=self.traits.distilled
        )  # they agree in what they must, or an error says in what not
        first = requests[0]
        return make_plan(requests, self.sampler(first.sampler), self._with(first.loras), self.refiner)

    @torch.inference_mode()
    def encode(self, requests: Sequence[Request]) -> Conditioning:
        """Give what a batch tells the denoiser."""
        is_guided(requests, distilled=self.traits.distilled)
        return self._with(requests[0].loras).encode(requests)

    @torch.inference_mode()
    def decode(self, latents: Tensor, requests: Sequence[Request]) -> list[Picture]:
        """Decode finished latents (B, C, h, w) to images that carry what made them."""
        made_by, joins = self.made_by, requests[0].tile
        size = upscaled_size(requests[0], self.vae.config.factor)
        config = self._loaded.vae_config(*size)
        if self.tiny_vae is not None and all(SPEEDS[request.speed].tiny for request in requests):
            tiny = self.tiny_vae.decode
            pixels = (decode_joined(tiny, latents) if joins else tiny(latents)).float()
            pixels = F.avg_pool2d(pixels, 2) if config.halved else pixels
        else:
            tile = choose_tile(self.spec.vae_tiling, config, latents, self.networks.vae_dtype.itemsize)
            if tile is not None:
                made_by["vae_tiling"] = "on"
            with self._loaded.vae(*size, tile=joins) as vae:
                pixels = decode(vae, latents, tile, model=self.name, joins=joins)
        own = self.sampler().name if any(request.sampler is None for request in requests) else None
        images = to_pil(pixels)
        originals = Originals.of(requests, config.factor)
        if originals is not None and originals.masks is not None:
            parts = zip(originals.each, images, requests, strict=True)
            images = [original.restored(image, request.mask_blur) for original, image, request in parts]
        for image, request in zip(images, requests, strict=True):
            annotate(image, request, made_by, sampler=own, prompts=written(request, self.checkpoint))
        return images

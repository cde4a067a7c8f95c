"""The pipeline: encode the prompt, denoise latents, decode them to an image."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, Literal, Unpack, overload

import torch
from torch import Tensor

from genpipe.checkpoints import Checkpoint, load_checkpoint, load_tiny_vae
from genpipe.fields import refuse_unknown
from genpipe.fit import Traits
from genpipe.hardware import choose_device, choose_dtype, one_thread
from genpipe.images import Picture, to_pil
from genpipe.inputs import Lora
from genpipe.metadata import annotate
from genpipe.models.conditioning import Conditioning
from genpipe.models.tiny_vae import TinyVAE
from genpipe.pipeline.decoding import choose_tile, decode, decode_joined
from genpipe.pipeline.denoising import is_guided
from genpipe.pipeline.draw_options import DrawOptions
from genpipe.pipeline.drawing import BATCH, draw
from genpipe.pipeline.groups import side_by_side
from genpipe.pipeline.loaded import Loaded, check_refiner, checkpoint_of, name_of, recorded_options, usual_settings
from genpipe.pipeline.networks import prepare_process, shown_beside, stored_dtype, traits_of
from genpipe.pipeline.originals import Originals
from genpipe.pipeline.plan import Plan, make_plan
from genpipe.pipeline.preview import LatentPreview
from genpipe.pipeline.progress import Progress
from genpipe.pipeline.requests import make_requests
from genpipe.pipeline.run import Run
from genpipe.pipeline.stages import walk
from genpipe.prompts.reading import chosen
from genpipe.request import Request, check_best_of
from genpipe.sampling.sampler import Sampler
from genpipe.sampling.samplers import make_sampler
from genpipe.sampling.speed import SPEEDS
from genpipe.seeds import seeds_for
from genpipe.settings import Settings
from genpipe.spec import ModelOptions, ModelSpec

if TYPE_CHECKING:
    from genpipe.judge import Scorer


class Pipeline:
    """A checkpoint ready to draw.

    `Pipeline.from_pretrained(...)` makes one; calling it draws; `stream` gives every step of a batch of requests.

    Args:
        checkpoint: its networks with their weights; used as they are until they are prepared.
        device, dtype: where and in what they run.
        spec: what it was loaded by.
        tiny_vae: makes previews, and decodes drafts.
        refiner: draws the last part of the schedule.

    Attributes:
        preview: gives latents (B, C, h, w) as rough images, see `Progress`.
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
    def from_pretrained(
        cls, path_or_id: str | Path | ModelSpec | None = None, **options: Unpack[ModelOptions]
    ) -> "Pipeline":
        """Load a checkpoint.

        Args:
            path_or_id: a `.safetensors` file, a folder in the diffusers layout, or a hub id such as "owner/name"; None is
                the embedded model. Or a whole `ModelSpec`, and no options beside it.
            options: the other attributes of `ModelSpec`: device, dtype, revision, variant, tiny_vae, low_memory, int8, ….

        Raises:
            CheckpointError: the checkpoint is not there, not whole or not one that genpipe can run.
            ValueError: an option is unknown or of the wrong type, device or dtype are not available here, or int8 cannot
                run on it or pays for no layer.
        """
        if isinstance(path_or_id, ModelSpec):
            refuse_unknown(ModelSpec, [f"{name} beside a ModelSpec" for name in options], "a model")
            spec = path_or_id
        else:
            spec = ModelSpec.from_dict({"model": path_or_id, **options})
        device = choose_device(spec.device)
        dtype = choose_dtype(spec.dtype, device)
        unet_dtype = stored_dtype(spec.weights, dtype, int8=spec.int8)
        prepare_process(spec, device, dtype)
        checkpoint = checkpoint_of(spec, unet_dtype=unet_dtype)
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
        pipeline = cls(checkpoint, device=device, dtype=dtype, spec=spec, tiny_vae=tiny, refiner=refiner)
        for loaded in filter(None, (pipeline, pipeline.refiner)):
            loaded.networks.prepare_all()
        if tiny is not None:
            pipeline.networks.prepare(tiny)
        return pipeline

    @property
    def distilled(self) -> bool:
        """Whether the network takes the scale of guidance as an input, and is never led away from a prompt."""
        return self.unet.config.guidance_channels is not None

    @property
    def traits(self) -> Traits:
        """What the model can draw."""
        return traits_of(self.checkpoint, refines=self.refiner is not None)

    @property
    def made_by(self) -> dict[str, Any]:
        """What the images' metadata says of how the model was loaded: the fields of `ModelSpec` that they depend on."""
        return {"model": self.name, "dtype": str(self.dtype).removeprefix("torch."), **self._recorded}

    @overload
    def __call__(
        self, prompt: str, *, n: Literal[1] = 1, seeds: None = None, **options: Unpack[DrawOptions]
    ) -> Picture: ...
    @overload
    def __call__(
        self, prompt: Sequence[str], *, n: int = 1, seeds: Sequence[int] | None = None, **options: Unpack[DrawOptions]
    ) -> list[Picture]: ...
    @overload
    def __call__(
        self, prompt: str, *, n: int = 1, seeds: Sequence[int] | None = None, **options: Unpack[DrawOptions]
    ) -> Picture | list[Picture]: ...
    def __call__(
        self,
        prompt: str | Sequence[str],
        *,
        n: int = 1,
        seeds: Sequence[int] | None = None,
        seed: int | None = None,
        deterministic: bool = False,
        best_of: int = 1,
        judge: "str | Path | Scorer | None" = None,
        progress: bool = True,
        callback: Callable[[Progress], None] | None = None,
        **settings: Unpack[Settings],
    ) -> Picture | list[Picture]:
        """Draw.

        Args:
            prompt: one prompt, or a list.
            n: images per prompt.
            seeds: one for each image, in the place of `seed`.
            seed: of the first image; image k takes seed + k mod 2⁶⁴. None draws one and prints it on stderr.
            deterministic: bitwise the same image in any batch, at some cost: one image at a time, on one thread.
            best_of: draw so many for each image, with seeds from its own on, and keep the one that shows the prompt
                best. `image.info` holds the scores of all of them.
            judge: who says so, see `genpipe.judge.score`; None is the embedded judge, for the embedded model.
            progress: show how far it is on stderr: a bar on a terminal, now and then a line elsewhere.
            callback: called with the `Progress` of every step.
            settings: the other attributes of `Request`; what is None or left out is the checkpoint's default: steps 30
                (LCM: 4), guidance_scale 7.5 (LCM: 1, or 8.5 where the network takes it as an input), height and width
                what the model was trained on.

        Returns:
            A PIL image for one prompt, n = 1 and no list of seeds; else a list, in the order of prompts, then of n.
            `image.info` holds the seed and all else that made it, as "genpipe" (JSON) and "parameters" (A1111's text).

        Raises:
            ValueError: an argument is unknown or out of its range.
            NonFiniteError: the networks gave no finite image, in fp32 either.
        """
        check_best_of(best_of)
        if best_of > 1 and settings.get("vary"):
            raise ValueError("best_of chooses between seeds, and vary keeps to one: leave one out")
        given = seeds
        if seeds is not None and best_of > 1:
            seeds = [each for first in seeds for each in seeds_for(first, best_of)]
        count = n * best_of if best_of > 1 and isinstance(n, int) else n
        requests = self.requests(prompt, n=count, seed=seed, seeds=seeds, **settings)
        if best_of > 1:
            from genpipe.pipeline.best_of import best, choose_scorer

            scorer = choose_scorer(judge, embedded=self.name == "embedded", device=self.device)
        with one_thread(deterministic):
            images = draw(
                requests,
                self.stream,
                self.decode,
                batch=1 if deterministic else BATCH,
                progress=progress,
                callback=callback,
            )
        if best_of > 1:
            images = best(images, requests, best_of, scorer)
        return images[0] if isinstance(prompt, str) and n == 1 and given is None else images

    def requests(
        self,
        prompt: str | Sequence[str],
        *,
        n: int = 1,
        seed: int | None = None,
        seeds: Sequence[int] | None = None,
        **settings: Unpack[Settings],
    ) -> list[Request]:
        """Give the validated requests that `__call__` draws, defaults filled in; see there for arguments and errors.

        A setting that has no effect with this model is warned of.
        """
        return make_requests(
            prompt,
            settings,
            self.traits,
            defaults=self.defaults(settings.get("sampler")),
            lora_dir=self.spec.lora_dir,
            n=n,
            seed=seed,
            seeds=seeds,
            stacklevel=4,
        )

    def defaults(self, sampler: str | None = None) -> dict[str, Any]:
        """What applies where a caller says nothing: the checkpoint's `genpipe.json`, else what such checkpoints want."""
        return usual_settings(self.checkpoint, self.sampler(sampler).name)

    def sampler(self, name: str | None = None) -> Sampler:
        """The named sampler on this checkpoint's noise schedule, its own for None."""
        return make_sampler(name, self.checkpoint.scheduler_config)

    @torch.inference_mode()
    def stream(self, requests: Sequence[Request]) -> Iterator[Progress]:
        """Denoise a batch of requests, step by step: a generator, so a caller may look, stop or let go of it at any step.

        The requests must agree in `Request.batch_key`; prompts, seeds and the scales of guidance may differ. `decode` makes
        images of the last step's latents. Where those are not finite, the steps come again from the first: see
        `genpipe.pipeline.denoising.denoise`.

        Raises:
            ValueError: there are no requests, or they do not agree.
            NonFiniteError: the latents are not finite in fp32 either.
        """
        plan = self._plan(requests)
        if len(groups := plan.stages[0][0].groups(requests, plan.total)) > 1:
            yield from side_by_side(groups, requests, self.stream, self.preview)
            return
        for step, latents in walk(plan, requests):
            yield Progress(step, plan.steps, latents, lambda latents=latents: self.preview(latents))

    @torch.inference_mode()
    def begin(self, request: Request) -> Run | None:
        """Begin one image that is drawn step by step together with others, each at a step of its own.

        Returns:
            Its run, for `genpipe.pipeline.run.Together`; None where `stream` alone can draw it: at a speed that leaves
            evaluations out, with a refiner or control images, or enlarged.

        Raises:
            ValueError: it cannot be drawn as it is.
        """
        plan = self._plan([request])
        several = len(plan.stages) != 1 or plan.enlarged is not None
        if several or request.speed != "exact" or request.control or request.reference:
            return None
        model, schedule = plan.stages[0]
        return model.begin(request, plan.sampler, schedule, plan.start)

    def _plan(self, requests: Sequence[Request]) -> Plan:
        is_guided(requests, distilled=self.distilled)  # they agree in what they must, or an error says in what not
        first = requests[0]
        return make_plan(requests, self.sampler(first.sampler), self._with(first.loras), self.refiner)

    @torch.inference_mode()
    def encode(self, requests: Sequence[Request]) -> Conditioning:
        """Give what a batch of requests tells the denoiser: a row per prompt, where it is guided the negative ones first."""
        is_guided(requests, distilled=self.distilled)
        return self._with(requests[0].loras).encode(requests)

    @torch.inference_mode()
    def decode(self, latents: Tensor, requests: Sequence[Request]) -> list[Picture]:
        """Decode finished latents (B, C, h, w) to images that carry what made them."""
        made_by, joins = self.made_by, requests[0].tile
        if self.tiny_vae is not None and all(SPEEDS[request.speed].tiny for request in requests):
            tiny = self.tiny_vae.decode
            pixels = (decode_joined(tiny, latents) if joins else tiny(latents)).float()
        else:
            tile = choose_tile(self.spec.vae_tiling, self.vae.config, latents, self.networks.vae_dtype.itemsize)
            if tile is not None:
                made_by["vae_tiling"] = "on"
            with self._loaded.vae(tile=joins) as vae:
                pixels = decode(vae, latents, tile, model=self.name, joins=joins)
        own = self.sampler().name if any(request.sampler is None for request in requests) else None
        images = to_pil(pixels)
        originals = Originals.of(requests, self.vae.config.factor)
        if originals is not None and originals.masks is not None:
            parts = zip(originals.each, images, requests, strict=True)
            images = [original.restored(image, request.mask_blur) for original, image, request in parts]
        for image, request in zip(images, requests, strict=True):
            prompts = chosen(request.prompt, request.negative_prompt, seed=request.seed, syntax=request.prompt_syntax)
            annotate(image, request, made_by, sampler=own, prompts=prompts)
        return images

"""A checkpoint in memory with what draws from it, for one set of LoRAs."""

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from genpipe.checkpoints import Checkpoint, load_checkpoint
from genpipe.checkpoints.embeddings import load_embeddings
from genpipe.checkpoints.library import NAMED, located
from genpipe.checkpoints.lora import load_lora
from genpipe.checkpoints.source import Source
from genpipe.embedded import EMBEDDED
from genpipe.inputs import Lora
from genpipe.models.circular import circular
from genpipe.models.conditioning import Conditioning
from genpipe.models.control import Controlled
from genpipe.models.denoiser import MakeDenoiser, TiledDenoiser, UNetDenoiser
from genpipe.models.unet import UNet
from genpipe.models.vae import VAE, VAEConfig
from genpipe.pipeline.conditions import Conditions, alike, condition, conditions
from genpipe.pipeline.control import controlled_by, shown
from genpipe.pipeline.denoising import denoise, is_guided
from genpipe.pipeline.networks import Networks, shown_beside
from genpipe.pipeline.references import refer
from genpipe.pipeline.run import Run
from genpipe.pipeline.start import Start
from genpipe.prompts.embeddings import with_embeddings
from genpipe.prompts.encoder import PromptEncoder, TextPart
from genpipe.request import Request
from genpipe.sampling.sampler import Sampler
from genpipe.sampling.schedule import Schedule
from genpipe.sampling.speed import SPEEDS
from genpipe.spec import FILES, ModelSpec


class Loaded:
    """A checkpoint's networks in memory, and the encoder of prompts. Never changes: another set of LoRAs makes another.

    Args:
        checkpoint: used as it is until its networks are prepared.
        spec: what it was loaded by.
        device, dtype: where and in what the networks run.
        name: what errors call the model.
        loras: that its weights have.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        spec: ModelSpec,
        *,
        device: torch.device,
        dtype: torch.dtype,
        name: str,
        loras: tuple[Lora, ...] = (),
    ) -> None:
        self.checkpoint, self.spec, self.loras = checkpoint, spec, loras
        self.device, self.dtype, self.name = device, dtype, name
        self._last: Callable[[], UNetDenoiser | None] = lambda: None
        for network in (*checkpoint.networks.values(), *checkpoint.controls, *checkpoint.reference_networks):
            network.eval().requires_grad_(False)
        if checkpoint.defaults.get("prompt") == "scenes":
            from genpipe.scenes.normalise import plain_words

            normalise = partial(plain_words, pool=checkpoint.concepts)
            for tokenizer in checkpoint.tokenizers:
                tokenizer.normalise = normalise
        self.networks = Networks(
            checkpoint,
            device=device,
            dtype=dtype,
            low_memory=spec.low_memory,
            int8=spec.int8,
            compiled=spec.compile,
            fp8=spec.fp8,
        )
        parts = [
            TextPart(tokenizer, partial(self.networks.in_memory, encoder))
            for tokenizer, encoder in zip(checkpoint.tokenizers, checkpoint.text_encoders, strict=True)
        ]
        if spec.embeddings is not None:
            parts = with_embeddings(
                parts,
                load_embeddings([spec.embeddings], checkpoint, allow_pickle=spec.allow_pickle),
                vocab_sizes=[encoder.config.vocab_size for encoder in checkpoint.text_encoders],
                device=device,
            )
        self.prompt_encoder = PromptEncoder(
            parts, pooled=checkpoint.family.added_numbers > 0, device=device, model=name
        )

    @contextmanager
    def vae(self, height: int, width: int, *, tile: bool = False) -> Iterator[VAE]:
        """Lend the autoencoder of images of a size in pixels; with `tile`, of images without edges."""
        with self.networks.in_memory(self.checkpoint.vae) as vae:
            vae = vae.halved() if self.vae_config(height, width).halved else vae
            yield circular(vae) if tile else vae

    def vae_config(self, height: int, width: int) -> VAEConfig:
        """Give the shape of the autoencoder of images of a size in pixels.

        Where the checkpoint can draw half the size that it was trained on, it is the halved one's for images nearer to that.
        """
        config, unet = self.checkpoint.vae.config, self.checkpoint.unet.config
        usual = unet.sample_shape[0] * unet.sample_shape[1] * config.factor**2
        halves = self.checkpoint.defaults.get("half_size", False) and 2 * height * width <= usual
        return replace(config, halved=True) if halves else config

    @cached_property
    def _circular_unet(self) -> UNet:
        return circular(self.checkpoint.unet)

    def _unet(self, request: Request) -> UNet:
        return self._circular_unet if request.tile else self.checkpoint.unet

    def encode(self, requests: Sequence[Request]) -> Conditioning:
        """Give what a batch of requests tells the denoiser: a row per prompt, where it is guided the negative ones first."""
        return condition(
            self.prompt_encoder,
            requests,
            self.checkpoint,
            guided=self._guided(requests),
            edits=self._guided(requests) and shown_beside(self.checkpoint) == "image",
            device=self.device,
        )

    def groups(self, requests: Sequence[Request], steps: int) -> list[list[int]]:
        """Say which requests of a batch go through the denoiser together; see `genpipe.pipeline.conditions.alike`."""
        return alike(self.prompt_encoder, requests, self.checkpoint, guided=self._guided(requests), steps=steps)

    def _guided(self, requests: Sequence[Request]) -> bool:
        return is_guided(requests, distilled=self.checkpoint.unet.config.guidance_channels is not None)

    def denoise(
        self,
        requests: Sequence[Request],
        sampler: Sampler,
        schedule: Schedule,
        start: Start,
        before: int,
        total: int,
        tile: int | None = None,
    ) -> Iterator[Tensor]:
        """Yield the latents (B, C, h, w) fp32 of a batch after each step of a schedule; see `pipeline.denoising`.

        Args:
            requests: one of the batch's `groups`.
            before: steps that were taken before this schedule.
            total: steps of the whole image, by which prompts change; beyond them they stay as they are in the end.
            tile: side in latent pixels of the squares that the denoiser is evaluated on; None evaluates it on the whole.
        """
        network, make, guidance = self._parts(requests, schedule, before, total, tile)
        return denoise(
            network,
            make,
            guidance,
            requests,
            sampler=sampler,
            schedule=schedule,
            start=start,
            shape=self._shape(requests[0]),
            model=self.name,
        )

    def begin(
        self,
        request: Request,
        sampler: Sampler,
        schedule: Schedule,
        start: Start,
        before: int,
        total: int,
        tile: int | None = None,
    ) -> Run:
        """Begin a schedule of an image that is drawn together with others at other steps; see `denoise`."""
        network, make, guidance = self._parts([request], schedule, before, total, tile)
        return Run(
            network,
            make,
            guidance,
            request,
            sampler=sampler,
            schedule=schedule,
            start=start,
            shape=self._shape(request),
            before=before,
        )

    def _parts(
        self, requests: Sequence[Request], schedule: Schedule, before: int, total: int, tile: int | None
    ) -> tuple[Any, MakeDenoiser[Any], Conditions]:
        """The network, what makes its denoiser, and what guides the batch."""
        first = requests[0]
        guidance = self._conditions(requests, schedule, before, total)
        if self.checkpoint.references is not None and first.reference is not None:
            guidance = refer(guidance, self.checkpoint.references, requests, self._guided(requests), self.device)
        # Deep features that are kept are those of one prompt.
        refresh = SPEEDS[first.speed].refresh if len(guidance.conditionings) == 1 and tile is None else 1
        unet, controls = self._unet(first), self.checkpoint.controls
        references = self.checkpoint.references
        adapter = None if references is None else references.adapter
        make = partial(self._denoiser, refresh=refresh, evaluate=self.networks.evaluate, references=adapter)
        if controls and first.control:
            # A second pass is shown them from its own beginning to its own end.
            over = (before, total) if before < total else (0, len(schedule.steps) - 1)
            images = shown(controls, requests, schedule, before=over[0], total=over[1], device=self.device)
            return Controlled(unet, controls), controlled_by(images, make, guess=first.guess), guidance
        return unet, make if tile is None else partial(TiledDenoiser, make, tile=tile), guidance

    def _denoiser(
        self, unet: UNet, timesteps: Sequence[float], conditioning: Conditioning, **options: Any
    ) -> UNetDenoiser:
        """Make a denoiser, with what the last one has computed of the same while that lives: for a batch that images join."""
        made = UNetDenoiser(unet, timesteps, conditioning, like=self._last(), **options)
        self._last = weakref.ref(made)
        return made

    def _conditions(self, requests: Sequence[Request], schedule: Schedule, before: int, total: int) -> Conditions:
        return conditions(
            self.prompt_encoder,
            requests,
            self.checkpoint,
            guided=self._guided(requests),
            total=total,
            steps=range(before + 1, before + len(schedule.steps)),
            device=self.device,
        )

    def _shape(self, request: Request) -> tuple[int, int, int]:
        config = self.vae_config(request.height, request.width)
        return config.latent_channels, request.height // config.factor, request.width // config.factor

    def with_loras(self, loras: Sequence[Lora]) -> "Loaded":
        """Give the model with these LoRAs and no others; only networks that they change are read and prepared again.

        Raises:
            CheckpointError: a file is no LoRA, is of another family, or holds what fits nothing in the model.
        """
        allow = self.spec.allow_pickle
        patches = [
            load_lora(one.path, self.checkpoint, one.strength, text_strength=one.text_strength, allow_pickle=allow)
            for one in loras
        ]
        checkpoint = self.checkpoint.with_patches(patches, self.networks.prepare_kept, reuse=self.device.type == "cpu")
        return Loaded(checkpoint, self.spec, device=self.device, dtype=self.dtype, name=self.name, loras=tuple(loras))


def checkpoint_of(
    spec: ModelSpec, *, unet_dtype: torch.dtype | None = None, source: Source | None = None
) -> Checkpoint:
    """Load the checkpoint that a spec names, with what it gives in place of the checkpoint's own parts and beside them.

    Args:
        unet_dtype: what the denoiser's weights are kept in; None is their file's.
        source: where the model is, where that has been opened already.

    Raises:
        CheckpointError: it is not there, not whole or not one that genpipe can run.
    """
    return load_checkpoint(
        EMBEDDED if spec.model is None else spec.model,
        revision=spec.revision,
        file=spec.file,
        variant=spec.variant,
        model_dir=spec.model_dir,
        vae=spec.vae,
        text_encoder=None if spec.text_encoder is None else spec.text_encoder.split(","),
        allow_pickle=spec.allow_pickle,
        unet_dtype=unet_dtype,
        controls=spec.control_model,
        ip_adapter=spec.ip_adapter,
        image_encoder=spec.image_encoder,
        source=source,
    )


def check_refiner(base: Checkpoint, refiner: Checkpoint) -> None:
    """Raise ValueError unless a checkpoint can draw the last part of another's schedule."""
    if refiner.family.added_numbers != 5:
        raise ValueError(f"{refiner.source} is {refiner.family.title}, not the refiner of Stable Diffusion XL")
    if base.family.added_numbers != 6:
        raise ValueError(f"a refiner goes with Stable Diffusion XL, and {base.source} is {base.family.title}")


def name_of(source: str) -> str:
    """Say what images' metadata calls a model: its full path or id, "embedded" for the one that ships."""
    if source == str(EMBEDDED):
        return "embedded"
    return str(Path(source).resolve()) if Path(source).exists() else source


def recorded_options(spec: ModelSpec) -> dict[str, Any]:
    """Give the options that images depend on for their metadata: files by their full paths."""

    def resolved(name: str, value: Any) -> Any:
        if isinstance(value, tuple):
            return [resolved(name, each) for each in value]
        if name == "text_encoder" and "," in value:
            return ",".join(resolved(name, each) for each in value.split(","))
        found = Path(located(value, spec.model_dir, NAMED[name]) if name in NAMED else value)
        return str(found.resolve()) if found.exists() else value

    return {name: resolved(name, value) if name in FILES else value for name, value in spec.drawn_by().items()}


def usual_settings(checkpoint: Checkpoint, sampler: str) -> dict[str, Any]:
    """Give what applies where a caller says nothing: the checkpoint's `genpipe.json`, else what its family wants."""
    lcm, distilled, family = sampler == "lcm", checkpoint.unet.config.guidance_channels is not None, checkpoint.family
    height, width = (side * checkpoint.vae.config.factor for side in checkpoint.unet.config.sample_shape)
    usual = {
        "height": height,
        "width": width,
        "steps": 4 if lcm else family.steps,
        # 8.5 is the default of diffusers' LatentConsistencyModelPipeline, which such networks come with.
        "guidance_scale": (8.5 if distilled else 1.0) if lcm else family.guidance_scale,
        "guidance_rescale": 0.0,
    }
    own = {key: value for key, value in checkpoint.defaults.items() if key.startswith("upscale_")}
    return {key: checkpoint.defaults.get(key, value) for key, value in usual.items()} | own

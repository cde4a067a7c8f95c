"""The pipeline: encode the prompt, denoise latents, decode them to a picture."""

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from tqdm import tqdm

from genpipe.checkpoints import Checkpoint, load_checkpoint, load_tiny_vae
from genpipe.embedded import EMBEDDED
from genpipe.hardware import (
    choose_device,
    choose_dtype,
    instruction_set,
    keep_freed_memory,
    one_thread,
    use_huge_pages,
)
from genpipe.images import Picture, to_pil
from genpipe.metadata import annotate
from genpipe.models.conditioning import Conditioning
from genpipe.models.cpu.forms import PLAIN, forms_for
from genpipe.models.cpu.quantised import QuantisedLayer, can_quantise
from genpipe.models.denoiser import UNetDenoiser
from genpipe.models.finite import NonFiniteError, float32_copy
from genpipe.models.prepare import Network, prepare
from genpipe.models.tiny_vae import TinyVAE
from genpipe.models.unet import UNet
from genpipe.pipeline.denoising import denoise, is_guided
from genpipe.pipeline.preview import LatentPreview
from genpipe.prompts.encoder import PromptEncoder
from genpipe.request import Request, check_best_of, check_size, expand, seeds_for
from genpipe.sampling.sampler import Sampler
from genpipe.sampling.samplers import make_sampler
from genpipe.sampling.speed import SPEEDS
from genpipe.scenes.normalise import plain_words

if TYPE_CHECKING:
    from genpipe.judge import Scorer

# Pictures that go through the networks together; more requests are taken in turn, so memory stays flat.
BATCH = 8
# Latents more than twice this many latent pixels high or wide are decoded in tiles of it, so memory stays flat.
TILE = 64


@dataclass(frozen=True)
class Progress:
    """One finished step of a batch.

    Attributes:
        step, steps: how many steps are done, and how many there are: the solver's, or for a diffusers scheduler the
            network's evaluations.
        latents: (B, C, h, w) fp32, still noisy until the last step.
        preview: the batch as rough pictures, cheap enough for every step: one pixel a latent pixel, by a linear map, or at
            full size where the pipeline has a tiny autoencoder.
    """

    step: int
    steps: int
    latents: Tensor
    preview: Callable[[], list[Picture]]


class Pipeline:
    """A checkpoint ready to draw.

    `Pipeline.from_pretrained(...)` makes one; calling it draws; `stream` gives every step of a batch of requests.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        device: torch.device,
        dtype: torch.dtype,
        tiny_vae: TinyVAE | None = None,
        low_memory: bool = False,
        int8: bool = False,
    ) -> None:
        self.checkpoint = checkpoint
        _check_drawable(checkpoint)
        self.text_encoders = tuple(each.eval().requires_grad_(False) for each in checkpoint.text_encoders)
        self.unet = checkpoint.unet.eval().requires_grad_(False)
        self.vae = checkpoint.vae.eval().requires_grad_(False)
        self.tokenizers = checkpoint.tokenizers
        if checkpoint.defaults.get("prompt") == "scenes":
            normalise = partial(plain_words, pool=tuple(checkpoint.defaults.get("concepts", ())) or None)
            for tokenizer in self.tokenizers:
                tokenizer.normalise = normalise
        self.device = device
        self.dtype = dtype
        self.tiny_vae = tiny_vae
        self._low_memory, self._int8 = low_memory, int8
        self._forms = forms_for(instruction_set(), dtype) if device.type == "cpu" else PLAIN
        self._preview = (
            LatentPreview(lambda: self._in_memory(self.vae))
            if tiny_vae is None
            else lambda latents: to_pil(tiny_vae.decode(latents))
        )
        self.prompt_encoder = PromptEncoder(
            self.tokenizers[0], lambda: self._in_memory(self.text_encoders[0]), device=device, model=self.name
        )

    @classmethod
    def from_pretrained(
        cls,
        path_or_id: str | Path | None = None,
        *,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        revision: str | None = None,
        variant: str | None = None,
        tiny_vae: str | Path | None = None,
        low_memory: bool = False,
        int8: bool = False,
    ) -> "Pipeline":
        """Load a checkpoint.

        Args:
            path_or_id: a folder in the diffusers layout, or a hub id such as "owner/name"; None is the embedded model.
            device: "cuda", "cuda:1", "mps" or "cpu"; None takes the best there is.
            dtype: "fp32", "bf16", "fp16" or a torch dtype; None takes what is fast on the device.
            revision: branch, tag or commit on the hub.
            variant: "fp16" reads the files of that name.
            tiny_vae: folder of a tiny autoencoder (TAESD) for these latents, which then makes previews and drafts.
            low_memory: hold the text encoder and the autoencoder in memory only while they run, reading them from their
                files for every batch; pictures are the same.
            int8: multiply the wide layers of the denoiser in int8 (on a CPU, in bf16): faster, and not quite the same
                pictures.

        Raises:
            CheckpointError: the checkpoint is not there, not whole or not one that genpipe can run.
            ValueError: device or dtype is not one, or not here, or int8 cannot run on it or pays for no layer.
        """
        use_huge_pages()
        chosen = choose_device(device)
        chosen_dtype = choose_dtype(dtype, chosen)
        if int8:
            _check_int8(chosen, chosen_dtype)
        if chosen.type == "cpu" and not low_memory:
            keep_freed_memory()  # from the first conversion on
        checkpoint = load_checkpoint(
            EMBEDDED if path_or_id is None else path_or_id,
            revision=revision,
            variant=variant,
        )
        tiny = None
        if tiny_vae is not None:
            config = checkpoint.vae.config
            tiny = load_tiny_vae(tiny_vae, latent_channels=config.latent_channels, factor=config.factor)
        pipeline = cls(checkpoint, device=chosen, dtype=chosen_dtype, tiny_vae=tiny, low_memory=low_memory, int8=int8)
        kept = (checkpoint.unet, tiny, *(() if low_memory else (*checkpoint.text_encoders, checkpoint.vae)))
        for network in kept:
            if network is not None:
                pipeline._prepare(network)
        if int8 and not any(isinstance(module, QuantisedLayer) for module in checkpoint.unet.modules()):
            raise ValueError(
                "int8 would save nothing, the layers of this model are too narrow: leave it out (--no-int8)"
            )
        return pipeline

    def _prepare(self, network: Network) -> Network:
        forms = replace(self._forms, int8=self._int8 and isinstance(network, UNet))
        return prepare(network, device=self.device, dtype=self.dtype, forms=forms)

    @contextmanager
    def _in_memory(self, network: Network) -> Iterator[Network]:
        """The text encoder or the autoencoder, ready to run; of low memory only for as long as this lasts."""
        yield self._prepare(self.checkpoint.read_again(network)) if self._low_memory else network

    @property
    def name(self) -> str:
        """What the pictures' metadata says of the model: its full path or id, "embedded" for the one that ships."""
        source = self.checkpoint.source
        if source == str(EMBEDDED):
            return "embedded"
        return str(Path(source).resolve()) if Path(source).is_dir() else source

    def __call__(
        self,
        prompt: str | Sequence[str],
        *,
        negative_prompt: str = "",
        n: int = 1,
        seed: int | None = None,
        seeds: Sequence[int] | None = None,
        steps: int | None = None,
        guidance_scale: float | None = None,
        guidance_rescale: float | None = None,
        height: int | None = None,
        width: int | None = None,
        sampler: str | None = None,
        clip_skip: int = 0,
        speed: str = "exact",
        deterministic: bool = False,
        best_of: int = 1,
        judge: "str | Path | Scorer | None" = None,
        progress: bool = True,
        callback: Callable[[Progress], None] | None = None,
    ) -> Any:
        """Draw.

        Args:
            prompt: one prompt, or a list.
            negative_prompt: what guidance leads away from.
            n: pictures a prompt.
            seed: of the first picture; picture k takes seed + k mod 2⁶⁴. None draws one and prints it on stderr.
            seeds: one for each picture, instead of `seed`.
            steps: solver steps; None takes the checkpoint's default, 30 where it has none (LCM: 4).
            guidance_scale: weight of the prompt (classifier-free guidance); 1 or less turns it off. None takes the
                checkpoint's default, 7.5 where it has none (LCM: 1).
            guidance_rescale: 0 … 1, against over-exposure at high scales (arXiv 2305.08891).
            height, width: in pixels, multiples of the autoencoder's factor; None takes what the model was trained on.
            sampler: "dpmpp_2m", "euler_a", "DPM++ 2M Karras", a diffusers class name, …; None is the checkpoint's own.
            clip_skip: last layers of the text encoder to leave out.
            speed: "exact", or "balanced" and "draft": guidance at the middle noise levels only, deep features kept for a
                step or three. On the embedded model 1.75 and 2.6 times as fast, at 35 and 31 dB from the exact picture.
            deterministic: bitwise the same picture in any batch, at some cost: one picture at a time, on one thread.
            best_of: draw so many for each picture, with seeds from its own on, and keep the one that shows the prompt
                best. `image.info` holds the scores of all of them.
            judge: who says so, see `genpipe.judge.choose_judge`; None is the embedded judge, for the embedded model.
            progress: show a bar on stderr.
            callback: called with the `Progress` of every step.

        Returns:
            A PIL image for one prompt, n = 1 and no list of seeds; else a list, in the order of prompts, then of n.
            `image.info` holds the seed and all else that made it, as "genpipe" (JSON) and "parameters" (A1111's text).

        Raises:
            ValueError: an argument is out of its range.
            NonFiniteError: the networks gave no finite picture, in fp32 either.
        """
        check_best_of(best_of)
        if seeds is not None and best_of > 1:
            seeds = [each for first in seeds for each in seeds_for(first, best_of)]
        requests = self.requests(
            prompt,
            n=n * best_of if best_of > 1 and isinstance(n, int) else n,
            seed=seed,
            seeds=seeds,
            negative_prompt=negative_prompt,
            steps=steps,
            guidance_scale=guidance_scale,
            guidance_rescale=guidance_rescale,
            height=height,
            width=width,
            sampler=sampler,
            clip_skip=clip_skip,
            speed=speed,
        )
        if best_of > 1:
            from genpipe.pipeline.best_of import best, choose_scorer

            scorer = choose_scorer(judge, embedded=self.name == "embedded")
        size = 1 if deterministic else BATCH
        images: list[Picture] = []
        with one_thread(deterministic):
            batches = math.ceil(len(requests) / size)
            with tqdm(
                total=batches * requests[0].steps, unit="step", disable=not progress, leave=False, dynamic_ncols=True
            ) as bar:
                for start in range(0, len(requests), size):
                    batch = requests[start : start + size]
                    latents: Tensor | None = None
                    for state in self.stream(batch):
                        bar.total = batches * state.steps
                        latents = state.latents
                        bar.update()
                        if callback is not None:
                            callback(state)
                    assert latents is not None
                    images += self.decode(latents, batch)
        if best_of > 1:
            images = best(images, requests, best_of, scorer)
        single = isinstance(prompt, str) and n == 1 and seeds is None
        return images[0] if single else images

    def requests(
        self,
        prompt: str | Sequence[str],
        *,
        n: int = 1,
        seed: int | None = None,
        seeds: Sequence[int] | None = None,
        **settings: Any,
    ) -> list[Request]:
        """The validated requests that `__call__` draws, defaults filled in; see there for arguments and errors."""
        pictures = expand(prompt, n=n, seed=seed, seeds=seeds)
        defaults = self.defaults(settings.get("sampler"))
        settings |= {key: value for key, value in defaults.items() if settings.get(key) is None}
        check_size(settings["height"], settings["width"], self.vae.config.factor)
        requests = [Request(prompt=text, seed=own, **settings) for text, own in pictures]
        layers = min(len(each.layers) for each in self.text_encoders)
        if requests[0].clip_skip >= layers:
            raise ValueError(f"clip_skip {requests[0].clip_skip} is out of range: 0 to {layers - 1} for this model")
        if seed is None and seeds is None:
            print(f"seed {requests[0].seed}", file=sys.stderr)
        return requests

    def defaults(self, sampler: str | None = None) -> dict[str, Any]:
        """What applies where a caller says nothing: the checkpoint's `genpipe.json`, else what such checkpoints want."""
        lcm = self.sampler(sampler).name == "lcm"
        size = self.unet.config.sample_size * self.vae.config.factor
        usual = {
            "height": size,
            "width": size,
            "steps": 4 if lcm else 30,
            "guidance_scale": 1.0 if lcm else 7.5,
            "guidance_rescale": 0.0,
        }
        return {key: self.checkpoint.defaults.get(key, value) for key, value in usual.items()}

    def sampler(self, name: str | None = None) -> Sampler:
        """The named sampler on this checkpoint's noise schedule, its own for None."""
        return make_sampler(name, self.checkpoint.scheduler_config)

    @torch.inference_mode()
    def stream(self, requests: Sequence[Request]) -> Iterator[Progress]:
        """Denoise a batch of requests, step by step: a generator, so a caller may look, stop or let go of it at any step.

        The requests must agree in size, steps, sampler, guidance_rescale, clip_skip, speed and in whether they are guided;
        prompts, seeds and the scales of guidance may differ. `decode` makes pictures of the last step's latents. Where those are not finite, the steps come again from the first: see
        `genpipe.pipeline.denoising.denoise`.

        Raises:
            ValueError: there are no requests, or they do not agree.
            NonFiniteError: the latents are not finite in fp32 either.
        """
        distilled = self.unet.config.guidance_channels is not None
        guided, first = is_guided(requests, distilled=distilled), requests[0]
        sampler = self.sampler(first.sampler)
        schedule = sampler.schedule(first.steps)
        negative = [request.negative_prompt for request in requests] if guided else []
        texts = [*negative, *(request.prompt for request in requests)]
        conditioning = self.encode(texts, clip_skip=first.clip_skip)  # 2B rows, or B
        if distilled:
            scales = torch.tensor([request.guidance_scale for request in requests], device=self.device)
            conditioning = replace(conditioning, guidance_scale=scales.float())
        factor, channels = self.vae.config.factor, self.vae.config.latent_channels
        shape = (channels, first.height // factor, first.width // factor)
        make = partial(UNetDenoiser, refresh=SPEEDS[first.speed].refresh)
        steps = denoise(
            self.unet,
            make,
            conditioning,
            requests,
            sampler=sampler,
            schedule=schedule,
            shape=shape,
            model=self.name,
        )
        count = len(schedule.steps) - 1
        for index, latents in enumerate(steps):
            step = index % count + 1  # a second attempt begins again
            yield Progress(step, count, latents, lambda latents=latents: self._preview(latents))

    @torch.inference_mode()
    def encode(self, prompts: Sequence[str], *, clip_skip: int = 0) -> Conditioning:
        """What prompts tell the denoiser, a row each; see `genpipe.prompts.encoder`."""
        return self.prompt_encoder(prompts, clip_skip=clip_skip)

    @torch.inference_mode()
    def decode(self, latents: Tensor, requests: Sequence[Request]) -> list[Picture]:
        """Finished latents (B, C, h, w) to pictures that carry what made them."""
        if self.tiny_vae is not None and all(SPEEDS[request.speed].tiny for request in requests):
            pixels = self.tiny_vae.decode(latents).float()
        else:
            pixels = self._decode(latents)
        images, own = to_pil(pixels), self.sampler().name
        for image, request in zip(images, requests, strict=True):
            annotate(image, request, self.name, sampler=own, dtype=self.dtype, int8=self._int8)
        return images

    def _decode(self, latents: Tensor) -> Tensor:
        tile = TILE if max(latents.shape[-2:]) > 2 * TILE else None
        with self._in_memory(self.vae) as vae:
            pixels = vae.decode(latents, tile=tile).float()
            if not pixels.isfinite().all():
                pixels = float32_copy(vae).decode(latents, tile=tile)
            if not pixels.isfinite().all():
                raise NonFiniteError.of("decoder", self.vae, self.name)
        return pixels


def _check_drawable(checkpoint: Checkpoint) -> None:
    """Check that the U-Net takes noisy latents and one text, nothing else."""
    unet, latents = checkpoint.unet.config, checkpoint.vae.config.latent_channels
    if (unet.in_channels, unet.out_channels) != (latents, latents):
        raise ValueError(
            f"{checkpoint.source}: its U-Net takes {unet.in_channels} channels and gives {unet.out_channels} where the VAE "
            f"has {latents}: inpainting, depth and other image-conditioned checkpoints cannot be drawn yet"
        )
    if unet.added_channels is not None:
        raise ValueError(f"{checkpoint.source}: {checkpoint.family.title} cannot be drawn yet")


def _check_int8(device: torch.device, dtype: torch.dtype) -> None:
    if device.type != "cpu":
        raise ValueError(f"int8 runs on a CPU alone, not on {device}: use --device cpu, or leave int8 out (--no-int8)")
    if instruction_set() == "other" or not can_quantise():
        raise ValueError(
            "int8 needs a CPU with AVX512-BF16 or AMX, and a torch with oneDNN's int8 operators: "
            "leave int8 out here (--no-int8)"
        )
    if dtype != torch.bfloat16:
        name = str(dtype).removeprefix("torch.")
        raise ValueError(f"int8 goes with bf16 alone, not with {name}: use --dtype bf16, or leave int8 out (--no-int8)")


_warm: dict[tuple[Any, ...], Pipeline] = {}


def generate(
    prompt: str | Sequence[str],
    *,
    model: str | Path | None = None,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    revision: str | None = None,
    variant: str | None = None,
    tiny_vae: str | Path | None = None,
    low_memory: bool = False,
    int8: bool = False,
    **settings: Any,
) -> Any:
    """Draw a prompt: `generate("pirate ship").save("ship.png")`.

    The pipeline of the last call is kept, so that the next with the same model starts at once.

    Args:
        prompt: one prompt, or a list.
        model, device, dtype, revision, variant, tiny_vae, low_memory, int8: as in `Pipeline.from_pretrained`; by
            default the embedded model.
        settings: everything that `Pipeline.__call__` takes: n, seed, steps, guidance_scale, height, width, sampler, ….

    Returns:
        A PIL image, or a list of them for a list of prompts, n > 1 or a list of seeds.
    """
    given = (model, device, dtype, revision, variant, tiny_vae, low_memory, int8)
    key = tuple(None if part is None else str(part) for part in given)
    pipeline = _warm.get(key)
    if pipeline is None:
        _warm.clear()  # before the next is loaded, so that two are never in memory
        pipeline = Pipeline.from_pretrained(
            model,
            device=device,
            dtype=dtype,
            revision=revision,
            variant=variant,
            tiny_vae=tiny_vae,
            low_memory=low_memory,
            int8=int8,
        )
        _warm[key] = pipeline
    return pipeline(prompt, **settings)

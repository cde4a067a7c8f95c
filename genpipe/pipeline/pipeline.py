"""The pipeline: encode the prompt, denoise latents, decode them to an image."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Unpack, overload

import torch
from torch import Tensor

from genpipe.checkpoints import Checkpoint
from genpipe.fields import refuse_unknown
from genpipe.fit import Traits
from genpipe.hardware import one_thread
from genpipe.images import Picture
from genpipe.models.conditioning import Conditioning
from genpipe.models.text_encoder import TextEncoder
from genpipe.models.tokenizer import Tokenizer
from genpipe.models.unet import UNet
from genpipe.models.vae import VAE
from genpipe.pipeline.draw_options import DrawOptions
from genpipe.pipeline.drawer import Drawer
from genpipe.pipeline.drawing import BATCH, draw
from genpipe.pipeline.networks import Networks
from genpipe.pipeline.own import OwnDrawer
from genpipe.pipeline.progress import Progress
from genpipe.pipeline.requests import make_requests
from genpipe.pipeline.run import Run
from genpipe.pipeline.wrapped import WrappedDrawer, foreign_in, opened
from genpipe.prompts.encoder import PromptEncoder
from genpipe.request import Request, check_best_of
from genpipe.sampling.sampler import Sampler
from genpipe.seeds import seeds_for
from genpipe.settings import Settings
from genpipe.spec import ModelOptions, ModelSpec

if TYPE_CHECKING:
    from genpipe.judge import Scorer


class Pipeline:
    """A model ready to draw.

    `Pipeline.from_pretrained(...)` makes one; calling it draws; `stream` gives every step of a batch of requests.

    Args:
        drawer: the loaded model.
    """

    def __init__(self, drawer: Drawer) -> None:
        self.drawer = drawer

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
        source = opened(spec)
        if spec.base is not None:
            return cls(WrappedDrawer.over_base(spec, source))
        wanted = foreign_in(source)
        if source is None or wanted is None:
            return cls(OwnDrawer.load(spec, source))
        return cls(WrappedDrawer.load(spec, source, wanted))

    @property
    def name(self) -> str:
        """What metadata and errors call the model."""
        return self.drawer.name

    @name.setter
    def name(self, name: str) -> None:
        self.drawer.name = name

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        return self.drawer.device

    @property
    def dtype(self) -> torch.dtype:
        """In what it runs."""
        return self.drawer.dtype

    @property
    def spec(self) -> ModelSpec:
        """What it was loaded by."""
        return self.drawer.spec

    @property
    def traits(self) -> Traits:
        """What it can draw."""
        return self.drawer.traits

    @property
    def text_seconds(self) -> float:
        """What its text encoders have taken so far, in seconds."""
        return self.drawer.text_seconds

    @property
    def made_by(self) -> dict[str, Any]:
        """What the images' metadata says of how the model was loaded: the fields of `ModelSpec` that they depend on."""
        return self.drawer.made_by

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
        """What applies where a caller says nothing, and draws with this sampler (None: the model's own)."""
        return self.drawer.defaults(sampler)

    def stream(self, requests: Sequence[Request]) -> Iterator[Progress]:
        """Denoise a batch of requests, step by step: a generator, so a caller may look, stop or let go of it at any step.

        The requests must agree in `Request.batch_key`; prompts, seeds and the scales of guidance may differ. `decode` makes
        images of the last step's latents. Where 16 bits overflow, the steps come again from the first.

        Raises:
            ValueError: there are no requests, or they do not agree.
            NonFiniteError: the latents are not finite in fp32 either.
        """
        return self.drawer.stream(requests)

    def begin(self, request: Request) -> Run | None:
        """Begin one image that is drawn step by step together with others, each at a step of its own.

        Returns:
            Its run, for `genpipe.pipeline.run.Together`; None where `stream` alone can draw it.

        Raises:
            ValueError: it cannot be drawn as it is.
        """
        return self.drawer.begin(request)

    def decode(self, latents: Tensor, requests: Sequence[Request]) -> list[Picture]:
        """Decode finished latents (B, C, h, w) to images that carry what made them."""
        return self.drawer.decode(latents, requests)

    def preview(self, latents: Tensor) -> list[Picture]:
        """Give latents (B, C, h, w) as rough images, see `Progress`."""
        return self.drawer.preview(latents)

    def encode(self, requests: Sequence[Request]) -> Conditioning:
        """Give what a batch of requests tells the denoiser: a row per prompt, where it is guided the negative ones first."""
        return self.own.encode(requests)

    def sampler(self, name: str | None = None) -> Sampler:
        """The named sampler on the checkpoint's noise schedule, its own for None."""
        return self.own.sampler(name)

    @property
    def is_wrapped(self) -> bool:
        """Whether diffusers draws: text and latents are its own affair, and it draws one batch at a time."""
        return isinstance(self.drawer, WrappedDrawer)

    @property
    def own(self) -> OwnDrawer:
        """The checkpoint on genpipe's own networks.

        Raises:
            ValueError: diffusers draws.
        """
        if not isinstance(self.drawer, OwnDrawer):
            raise ValueError(f"{self.name} is drawn by diffusers: it has none of genpipe's own networks")
        return self.drawer

    @property
    def checkpoint(self) -> Checkpoint:
        """The parts of the checkpoint that genpipe's own networks run."""
        return self.own.checkpoint

    @property
    def unet(self) -> UNet:
        """The denoiser of `checkpoint`."""
        return self.own.unet

    @property
    def vae(self) -> VAE:
        """The autoencoder of `checkpoint`."""
        return self.own.vae

    @property
    def text_encoders(self) -> tuple[TextEncoder, ...]:
        """Those of `checkpoint`."""
        return self.own.text_encoders

    @property
    def tokenizers(self) -> tuple[Tokenizer, ...]:
        """Those of `checkpoint`, one per text encoder."""
        return self.own.tokenizers

    @property
    def networks(self) -> Networks:
        """How the networks of `checkpoint` run."""
        return self.own.networks

    @property
    def prompt_encoder(self) -> PromptEncoder:
        """What makes vectors of prompts."""
        return self.own.prompt_encoder

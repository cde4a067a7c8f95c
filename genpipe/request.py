"""What determines one image: prompt, seed, size and settings, checked once, on construction.

Imports no torch, so that a command line can refuse a bad value before anything heavy loads.
"""

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from typing import Any

from genpipe.fields import (
    Choice,
    Flag,
    Number,
    Pair,
    Sides,
    Text,
    Whole,
    check_fields,
    defaults_of,
    refuse_unknown,
    setting,
    settings_of,
)
from genpipe.inputs import (
    MAX_SCALE,
    Argument,
    ArgumentList,
    Control,
    ControlList,
    ImageInput,
    InputImage,
    Lora,
    LoraList,
)
from genpipe.sampling.names import canonical_name
from genpipe.sampling.speed import SPEEDS

MAX_SEED = 2**64 - 1
MAX_PICTURES = 100_000  # of one call
MAX_STEPS = 1000
MAX_GUIDANCE = 1000.0
MAX_BEST_OF = 100
# Pixels per side; past this, attention and the decoder need more memory than machines have.
MAX_SIDE = 8192
COUNT = Whole(1, MAX_PICTURES, "it is the number of images")
BEST_OF = Whole(1, MAX_BEST_OF, "4 to 16 are usual")
# Headings of a command's help.
IMAGE, SAMPLING, FROM_IMAGE = "image", "sampling (default: what suits the model)", "from an image"
REFINER_START = 0.8  # where there is a refiner and the request does not say
MAX_UPSCALE = 4.0
UPSCALE_STRENGTH = 0.4  # where an image is enlarged and the strength is not given
IMAGE_GUIDANCE = 1.5  # diffusers' default for InstructPix2Pix
STRENGTH = 0.8  # where an image is given and the strength is not


@dataclass(frozen=True)
class _SamplerName(Text):
    """The name of a sampler, in any of its spellings; stored by the canonical one."""

    def check(self, name: str, value: Any) -> str:
        return canonical_name(value)


_SIZE = Pair(1, MAX_SIDE, "write it as WxH, as in 1024x1024")


@dataclass(frozen=True, slots=True)
class Request:
    """Everything that determines one image, given the model.

    Two equal requests to one model draw the same image, whatever batch or process each is in. The fields are the one list
    of settings: commands, manifests, files, and what a batch must agree in are derived from them. Numbers of numpy and
    whole numbers for floats are accepted and stored as plain Python's; samplers are stored by their canonical name.

    Attributes:
        prompt: what to draw; may be empty.
        seed: of the image's noise, 0 … 2⁶⁴ - 1.
        steps: solver steps, 1 … 1000.
        guidance_scale: weight of the prompt, 0 … 1000; 1 or less turns guidance off.
        height, width: in pixels, 1 … 8192 (`check_size` knows what a given autoencoder can do).
        negative_prompt: what guidance leads away from.
        prompt_syntax: "a1111" reads the signs of both as A1111's web UI does (see `genpipe.prompts`), "plain" as words,
            to which the seed adds nothing either (see `genpipe.scenes.details`).
        guidance_rescale: 0 … 1 (arXiv 2305.08891, section 3.4).
        sampler: canonical name, or None for the checkpoint's own.
        clip_skip: last layers of the text encoder to leave out, 0 or more.
        speed: "exact", or "balanced" and "draft", which evaluate less (`sampling.speed`; of models that diffusers draws
            `adapters.skipping`, where their pipeline can).
        original_size, target_size: height and width that SDXL is told the training image had, and this one is to have;
            None is the image's own size.
        crop: how far from top and left SDXL is told that the training image was cropped; None is (0, 0).

        refiner_start: 0 … 1, the share of the schedule after which a refiner draws; None is 0.8 where there is one.
        image: what to begin from: a file, or a PIL image. It is scaled to height and width.
        strength: share of the schedule that changes it, above 0 … 1; None is 0.8 where there is an image.
        mask: white where the image is to change; None is where the image is transparent, or all of it.
        vary: 0 … 1, how far the noise is turned from the seed's to that of `vary_seed` (`variation` says which that is).
        vary_seed: None is the seed after the image's own.
        upscale: 1 … 4, how many times larger than height and width the image is in the end, by a second pass over it.
        upscale_strength: share of the schedule of the second pass; None is 0.4.
        upscale_guidance_scale: guidance_scale of the second pass, 0 for no prompt at all; None is that of the first.
        upscale_by: "pixels" enlarges the image and encodes it anew, "latents" enlarges what it is decoded from.
        tile: whether what leaves the image on one side comes in on the other, so that its copies join.
        loras: changes of the model's weights, each a file, "FILE:STRENGTH", or "FILE:T:STRENGTH" with T for the text
            encoders.
        control: images for the control models, one for each, in their order: a file, "FILE:SCALE:START:END", a PIL image,
            or a `Control`. All of a batch have as many, which act over the same parts of the schedule.
        reference: an image that the IP-Adapter shows the denoiser beside the prompt: a file, or a PIL image.
        ip_scale: how much it counts, 0 … 10.
        guess: let control models see no negative prompt, and add less the finer the layer (ControlNet's guess mode).
        only_masked: pixels around the masked part, which is then drawn alone, at height and width, and put back scaled.
        outpaint: pixels by which the image is widened to the left, top, right and bottom; what was there stays.
        image_guidance_scale: weight of the image for models that edit by instruction (InstructPix2Pix); None is 1.5.
        depth: a map of depth, white is near, for models that are shown one.
        mask_blur: over how many pixels, inside of the mask, the change fades in.
        arguments: of models that diffusers draws, further arguments of their pipeline's `__call__`: names and values.

    Raises:
        ValueError: a value is of the wrong type or out of its range; one line that says how to put it right.
    """

    prompt: str = setting(Text(), "what to draw, in quotes", flags=("-p", "--prompt"), group=IMAGE)
    _: KW_ONLY
    seed: int = setting(Whole(0, MAX_SEED, "leave it out for a random one"),
        "0 to 2^64-1: the same seed draws the same image; image k takes N + k (default: drawn and shown)",
        flags=("-s", "--seed"), group=IMAGE)  # fmt: skip
    steps: int = setting(Whole(1, MAX_STEPS, "20 to 50 are usual"), "solver steps, 1 to 1000",
        flags=("--steps", "--ddim-steps"), group=SAMPLING, shared=True)  # fmt: skip
    guidance_scale: float = setting(Number(MAX_GUIDANCE, "5 to 10 are usual"),
        "how closely to follow the prompt; 1 turns guidance off",
        flags=("--guidance-scale", "--scale", "--cfg-scale"), group=SAMPLING)  # fmt: skip
    height: int = setting(Whole(1, MAX_SIDE, "give it in pixels", metavar="PX"), "the height alone",
        flags=("-H", "--height", "--H"), group=IMAGE, shared=True)  # fmt: skip
    width: int = setting(Whole(1, MAX_SIDE, "give it in pixels", metavar="PX"), "the width alone",
        flags=("-W", "--width", "--W"), group=IMAGE, shared=True)  # fmt: skip
    negative_prompt: str = setting(
        Text(), "what to keep out of it", default="", flags=("-N", "--negative-prompt", "--neg", "--no"), group=IMAGE)  # fmt: skip
    prompt_syntax: str = setting(Choice(("a1111", "plain")),
        "a1111 (default): (word:1.3), [word], [a:b:0.5], [a|b], {a|b}, BREAK and AND mean something; plain: nothing does",
        default="a1111", group=IMAGE, shared=True)  # fmt: skip
    guidance_rescale: float = setting(Number(1.0, "0 turns it off"),
        "0 to 1, against over-exposure at high scales", default=0.0, group=SAMPLING, shared=True)  # fmt: skip
    sampler: str | None = setting(_SamplerName("NAME"),
        "ddim, euler_a, dpmpp_2m_karras, ...; the names of diffusers and A1111 work too", default=None,
        flags=("--sampler", "--sampling-method"), group=SAMPLING, shared=True)  # fmt: skip
    clip_skip: int = setting(Whole(0, 99, "0 uses every layer"), "last layers of the text encoder to leave out",
        default=0, group=SAMPLING, shared=True)  # fmt: skip
    speed: str = setting(Choice(tuple(SPEEDS)),
        "exact (default), or balanced and draft: faster, and not quite the same image", default="exact",
        group=SAMPLING, shared=True)  # fmt: skip

    original_size: tuple[int, int] | None = setting(
        _SIZE, "SDXL: size that the training image is said to have had", default=None, group=SAMPLING)  # fmt: skip
    crop: tuple[int, int] | None = setting(
        Pair(0, MAX_SIDE, "write it as LEFTxTOP, as in 0x0", metavar="LEFTxTOP"),
        "SDXL: where the training image is said to have been cropped", default=None, group=SAMPLING)  # fmt: skip
    target_size: tuple[int, int] | None = setting(
        _SIZE, "SDXL: size that the image is said to be meant for", default=None, group=SAMPLING)  # fmt: skip

    refiner_start: float | None = setting(Number(1.0, "0.8 is usual"),
        "0 to 1: where in the schedule --refiner takes over (default: 0.8)", default=None, group=SAMPLING,
        shared=True)  # fmt: skip
    image: InputImage | None = setting(
        ImageInput(), "begin from this image and change it (img2img)", default=None, group=FROM_IMAGE)  # fmt: skip
    strength: float | None = setting(Number(1.0, "0.8 is usual, 0.3 changes little"),
        f"0 to 1: how much of the schedule changes the image (default: {STRENGTH:g})", default=None,
        group=FROM_IMAGE, shared=True)  # fmt: skip
    mask: InputImage | None = setting(ImageInput(),
        "white where the image is to change, black where it stays (default: where the image is transparent)",
        default=None, group=FROM_IMAGE)  # fmt: skip
    mask_blur: int = setting(Whole(0, 256, "4 is usual"),
        "how far in, in pixels, the change fades into what stays (default: 4)", default=4, group=FROM_IMAGE)  # fmt: skip

    only_masked: int | None = setting(Whole(0, 1024, "32 is usual", metavar="PX"),
        "draw the masked part alone, at the whole size, with so many pixels around it to look at",
        default=None, group=FROM_IMAGE)  # fmt: skip
    outpaint: tuple[int, int, int, int] | None = setting(Sides(MAX_SIDE, "as in left=128,right=128"),
        "widen the image by so many pixels on these sides, as in left=128,right=128",
        default=None, group=FROM_IMAGE, shared=True)  # fmt: skip
    image_guidance_scale: float | None = setting(Number(MAX_GUIDANCE, "1.2 to 2 are usual"),
        f"InstructPix2Pix: how closely to follow the image (default: {IMAGE_GUIDANCE:g})",
        default=None, group=FROM_IMAGE, shared=True)  # fmt: skip
    depth: InputImage | None = setting(ImageInput(),
        "models that are shown depth: a map of it, white is near", default=None, group=FROM_IMAGE)  # fmt: skip
    control: tuple[Control, ...] = setting(ControlList(),
        "what --control-model is shown, X times as strongly as it was trained (FILE:X:START:END: over a part of the schedule); "
        "FILE:canny, :edges, :lines or :tile takes these from it first; may be repeated",
        default=(), group=FROM_IMAGE)  # fmt: skip
    guess: bool = setting(Flag(),
        "follow the control images more than the prompts, which may then be empty (default: no)",
        default=False, group=FROM_IMAGE, shared=True)  # fmt: skip

    reference: InputImage | None = setting(ImageInput(),
        "an image whose subject or style --ip-adapter brings in beside the prompt", default=None,
        group=FROM_IMAGE)  # fmt: skip
    ip_scale: float = setting(Number(MAX_SCALE, "0.5 to 1 are usual"),
        "how much the reference counts (default: 0.6)", default=0.6, group=FROM_IMAGE)  # fmt: skip

    vary: float = setting(Number(1.0, "0.1 changes little, 0.5 much"),
        "0 to 1: how far to go from the seed's image toward that of another; -n draws several such variations",
        default=0.0, group=IMAGE, shared=True)  # fmt: skip
    vary_seed: int | None = setting(Whole(0, MAX_SEED, "leave it out for the next seed"),
        "which other seed --vary goes toward; variation k takes N + k (default: the seed after the image's)",
        default=None, group=IMAGE)  # fmt: skip
    upscale: float = setting(Number(MAX_UPSCALE, "2 is usual", low=1.0),
        "draw, enlarge so many times, and draw details in a second pass (hires fix)", default=1.0, group=IMAGE,
        shared=True)  # fmt: skip
    upscale_strength: float | None = setting(Number(1.0, "0.3 to 0.6 are usual"),
        f"0 to 1: how much of the schedule the second pass takes (default: {UPSCALE_STRENGTH:g})", default=None,
        group=IMAGE, shared=True)  # fmt: skip
    upscale_guidance_scale: float | None = setting(Number(MAX_GUIDANCE, "leave it out for that of the first pass"),
        "how closely the second pass follows the prompt, 0 for not at all (default: as the first)",
        default=None, group=IMAGE, shared=True)  # fmt: skip
    upscale_by: str = setting(Choice(("pixels", "latents")),
        "what is enlarged: pixels (default), or latents, which need a strength above 0.5", default="pixels",
        group=IMAGE, shared=True)  # fmt: skip
    tile: bool = setting(Flag(),
        "an image without edges, whose copies join (size: multiples of 64 for Stable Diffusion)", default=False,
        group=IMAGE, shared=True)  # fmt: skip

    loras: tuple[Lora, ...] = setting(LoraList(),
        "change the model by a LoRA or its kin, 1 times as strongly as it was trained or X times (FILE:T:X changes the "
        "text encoders T times); may be repeated",
        default=(), flags=("--loras", "--lora"), group=SAMPLING, shared=True)  # fmt: skip
    arguments: tuple[Argument, ...] = setting(ArgumentList(),
        "models that diffusers draws: another argument of their pipeline, as in true_cfg_scale=4; may be repeated",
        default=(), flags=("--arguments", "--argument"), group=SAMPLING, shared=True)  # fmt: skip

    def __post_init__(self) -> None:
        check_fields(self)
        if self.image is None and self.mask is not None:
            raise ValueError("mask says where an image is to change: give the image, too")
        if self.upscale_strength == 0:
            raise ValueError("upscale_strength must be above 0, not 0: nothing would be drawn; 0.4 is usual")
        if self.strength == 0:
            raise ValueError("strength must be above 0, not 0: the image would stay as it is; 0.3 changes little")

    @property
    def variation(self) -> tuple[int, float] | None:
        """The seed that the noise is turned to, and how far; None for none."""
        if not self.vary:
            return None
        return (self.seed + 1) % (MAX_SEED + 1) if self.vary_seed is None else self.vary_seed, self.vary

    def batch_key(self, *, distilled: bool = False) -> tuple[Any, ...]:
        """Give what images that are drawn together must agree in.

        Args:
            distilled: whether the network takes the scale of guidance as an input, and never a second, unprompted half.
        """
        return (*(getattr(self, name) for name in SHARED), self.inputs_key, distilled or self.guidance_scale > 1)

    @property
    def inputs_key(self) -> tuple[Any, ...]:
        """What of their images a batch must agree in: which there are, and when those to control with act."""
        given = tuple(each is not None for each in (self.image, self.mask, self.depth, self.reference))
        return *given, *((one.start, one.end) for one in self.control)

    def to_dict(self) -> dict[str, Any]:
        """Give the attributes by name, ready for JSON."""
        values = {name: getattr(self, name) for name in settings_of(Request)}
        return {name: _plain(value) for name, value in values.items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Request":
        """Make the request that `to_dict` gave.

        Raises:
            ValueError: a key is missing or unknown, or a value is out of its range.
        """
        refuse_unknown(cls, values, "a request")
        required = [name for name in settings_of(cls) if name not in defaults_of(cls)]
        if missing := [name for name in required if name not in values]:
            raise ValueError(f"the request lacks {', '.join(missing)}: it needs at least {', '.join(required)}")
        return cls(**values)

    @classmethod
    def check_settings(cls, settings: Mapping[str, Any]) -> "Request":
        """Check settings before the model, which knows the defaults of what they lack, is there.

        Returns:
            A request of these settings, with stand-ins for what has to be given.

        Raises:
            ValueError: a key is unknown, or a value is out of its range.
        """
        return cls.from_dict({**_STAND_INS, **settings})


def _plain(value: Any) -> Any:
    if isinstance(value, InputImage | Lora | Control):
        return value.to_dict()
    several = isinstance(value, tuple) and value and isinstance(value[0], Lora | Control | tuple)
    return [list(one) if isinstance(one, tuple) else _plain(one) for one in value] if several else value


_STAND_INS = {"prompt": "", "seed": 0, "steps": 1, "guidance_scale": 1.0, "height": 8, "width": 8}
# What all images of a batch must agree in, besides whether they are guided.
SHARED = tuple(name for name, described in settings_of(Request).items() if described.shared)
# All but what tells the images of one call apart.
SETTINGS = tuple(name for name in settings_of(Request) if name not in ("prompt", "seed"))


def check_size(height: int, width: int, factor: int) -> None:
    """Raise ValueError, with the nearest sizes that work, unless height and width are multiples of `factor`.

    `factor` is how many pixels per side one latent pixel stands for (8 in Stable Diffusion).
    """
    for name, value in (("height", height), ("width", width)):
        value = Whole(1, MAX_SIDE, f"a multiple of {factor}").check(name, value)
        if value % factor:
            below = value // factor * factor
            near = [side for side in (below, below + factor) if factor <= side <= MAX_SIDE]
            raise ValueError(
                f"{name} must be a multiple of {factor} for this model, not {value}: "
                f"the nearest is {' or '.join(map(str, near))}"
            )


def check_best_of(best_of: int) -> None:
    """Raise ValueError unless `best_of` is a number of images to choose one from, 1 … MAX_BEST_OF."""
    BEST_OF.check("best_of", best_of)

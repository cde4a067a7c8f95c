"""The families of checkpoints that genpipe runs: one row each, and how a checkpoint's family is recognised.

A new family is a row here and, at most, a network of its own.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from genpipe.checkpoints import ldm_layout
from genpipe.models.text_encoder import TextEncoderConfig
from genpipe.models.unet_config import UNetConfig

# The classes of the parts that our networks stand for, by their name in the diffusers layout.
PARTS: dict[str, tuple[str, ...]] = {
    "text_encoder": ("CLIPTextModel", "CLIPTextModelWithProjection"),
    "text_encoder_2": ("CLIPTextModelWithProjection", "CLIPTextModel"),
    "tokenizer": ("CLIPTokenizer", "CLIPTokenizerFast"),
    "tokenizer_2": ("CLIPTokenizer", "CLIPTokenizerFast"),
    "unet": ("UNet2DConditionModel",),
    "vae": ("AutoencoderKL",),
    "scheduler": (),  # the sampler's to judge
}
TEXT_ENCODERS = ("text_encoder", "text_encoder_2")
# Parts that pipelines carry beside the networks and that an image does not depend on, or that stand only for an input.
BESIDE = ("safety_checker", "feature_extractor", "image_encoder", "watermark", "depth_estimator")


_BETAS: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
    "clip_sample": False,
    "set_alpha_to_one": False,
}
_PNDM = {"_class_name": "PNDMScheduler", **_BETAS, "skip_prk_steps": True}
_EULER = {"_class_name": "EulerDiscreteScheduler", **_BETAS, "timestep_spacing": "leading"}


@dataclass(frozen=True)
class TextForm:
    """One of a family's text encoders, as single files hold it.

    Attributes:
        folder: its name in the diffusers layout.
        prefixes: what its tensors' names begin with; the first is how it is written.
        open_clip: whether they go on as OpenCLIP calls them, or else as transformers does.
        projected: whether the pooled text is projected.
        activation: of its feed-forward layers.
        pad: the token that fills prompts up.
    """

    folder: str
    prefixes: tuple[str, ...]
    open_clip: bool
    projected: bool = False
    activation: str = "gelu"
    pad: str = "<|endoftext|>"


@dataclass(frozen=True)
class Family:
    """One row of the table.

    Attributes:
        name: "sd1", as messages and metadata give it.
        title: what people call it.
        pipeline: the diffusers class that `model_index.json` names when such a checkpoint is saved.
        texts: the text encoders, in the order in which their vectors are joined.
        context_channels: width of the vectors that the published U-Net attends to.
        added_numbers: how many numbers (sizes, crops, score) are embedded beside the pooled text; 0 for none.
        heads: attention heads on every level of the U-Net; None for one per 64 channels.
        scaling_factor: of the latents, which single files do not tell.
        sample_size: height and width that the published model was trained at, in latent pixels.
        scheduler_config: of the published model, which single files do not hold.
        steps, guidance_scale: what is drawn with where neither the checkpoint nor the caller says.
    """

    name: str
    title: str
    pipeline: str
    texts: tuple[TextForm, ...]
    context_channels: int
    added_numbers: int = 0
    heads: int | None = None
    scaling_factor: float = 0.18215
    sample_size: int = 64
    scheduler_config: Mapping[str, Any] = field(default_factory=lambda: _PNDM, hash=False)
    steps: int = 30
    guidance_scale: float = 7.5

    @property
    def text_encoders(self) -> tuple[str, ...]:
        """The text encoders' folders in the diffusers layout, in the order in which their vectors are joined."""
        return tuple(text.folder for text in self.texts)

    @property
    def tokenizers(self) -> tuple[str, ...]:
        """The tokenizers' folders, one per text encoder."""
        return tuple(tokenizer_of(name) for name in self.text_encoders)


_CLIP_L = TextForm("text_encoder", (ldm_layout.SD1_TEXT,), open_clip=False, activation="quick_gelu")
_CLIP_G = TextForm("text_encoder_2", (ldm_layout.SECOND_TEXT,), open_clip=True, projected=True, pad="!")

SD1 = Family("sd1", "Stable Diffusion 1.x", "StableDiffusionPipeline", (_CLIP_L,), 768, heads=8)
SD2 = Family(
    "sd2",
    "Stable Diffusion 2.x",
    "StableDiffusionPipeline",
    (TextForm("text_encoder", (ldm_layout.SD2_TEXT, ldm_layout.ONLY_TEXT), open_clip=True, pad="!"),),
    1024,
)
SDXL = Family(
    "sdxl",
    "Stable Diffusion XL",
    "StableDiffusionXLPipeline",
    (replace(_CLIP_L, prefixes=(ldm_layout.FIRST_TEXT,)), _CLIP_G),
    2048,
    added_numbers=6,
    scaling_factor=0.13025,
    sample_size=128,
    scheduler_config=_EULER,
    guidance_scale=5.0,
)
SDXL_REFINER = Family(
    "sdxl-refiner",
    "Stable Diffusion XL refiner",
    "StableDiffusionXLImg2ImgPipeline",
    (replace(_CLIP_G, prefixes=(ldm_layout.ONLY_TEXT,)),),
    1280,
    added_numbers=5,
    scaling_factor=0.13025,
    sample_size=128,
    scheduler_config=_EULER,
    guidance_scale=5.0,
)
FAMILIES = (SD1, SD2, SDXL, SDXL_REFINER)


def named(family: Family, folders: Sequence[str]) -> Family:
    """The family, with its text encoders called as a folder calls them: a refiner's only one may be called the first."""
    texts = (replace(text, folder=folder) for text, folder in zip(family.texts, folders, strict=True))
    return replace(family, texts=tuple(texts))


def tokenizer_of(text_encoder: str) -> str:
    """The folder of a text encoder's tokenizer: "tokenizer_2" for "text_encoder_2"."""
    return text_encoder.replace("text_encoder", "tokenizer")


def text_encoders_in(index: Mapping[str, Any]) -> tuple[str, ...]:
    """The text encoders of a diffusers folder, in joining order, once its `model_index.json` holds parts that we have.

    Whoever's parts are ours is run, whatever the pipeline is called.

    Args:
        index: `model_index.json`: {part: [library, class]}, [None, None] for a part that is left out.

    Raises:
        ValueError: a part is missing, of another class, or not one of ours; names the pipeline and the part.
    """
    given = {
        part: value[1]
        for part, value in index.items()
        if isinstance(value, list | tuple) and len(value) == 2 and value[1] is not None
    }
    pipeline = index.get("_class_name", "it")
    encoders = tuple(part for part in TEXT_ENCODERS if part in given)
    needed = [*(encoders or TEXT_ENCODERS[:1]), *(tokenizer_of(part) for part in encoders), "unet", "vae", "scheduler"]
    foreign = [f"{part} ({kind})" for part, kind in given.items() if part not in PARTS and part not in BESIDE]
    if foreign:
        raise ValueError(
            f"genpipe cannot run {pipeline}: of its parts it lacks {', '.join(foreign)} "
            "(it has those of Stable Diffusion 1.x, 2.x and XL)"
        )
    for part in needed:
        if part not in given:
            raise ValueError(f"the checkpoint lacks a {part}")
        if PARTS[part] and given[part] not in PARTS[part]:
            raise ValueError(f"its {part} is {given[part]}, which genpipe cannot run (only {' or '.join(PARTS[part])})")
    return encoders


def family_of(unet: UNetConfig, texts: Sequence[TextEncoderConfig]) -> Family:
    """The family that networks of these shapes belong to; they may be smaller or larger than the published ones.

    Raises:
        ValueError: the shapes do not fit each other, or no family; says which.
    """
    width = sum(text.hidden_size for text in texts)
    if unet.context_channels != width:
        encoders = "text encoder gives" if len(texts) == 1 else f"{len(texts)} text encoders together give"
        raise ValueError(f"its U-Net attends to vectors of {unet.context_channels} where the {encoders} {width}")
    added = unet.added_channels is not None
    if not added and len(texts) == 1:
        return SD2 if unet.context_channels == SD2.context_channels else SD1
    if not added:
        raise ValueError(f"its U-Net takes no pooled text, so that {len(texts)} text encoders do not fit it")
    pooled, numbers = texts[-1].projection_dim, SDXL.added_numbers if len(texts) == 2 else SDXL_REFINER.added_numbers
    if pooled is None:
        raise ValueError("its U-Net takes pooled text, which its last text encoder does not project")
    expected = pooled + numbers * (unet.added_time_channels or 0)
    if unet.added_channels != expected:
        raise ValueError(
            f"its U-Net takes {unet.added_channels} numbers of pooled text and sizes, where {expected} are given "
            f"({pooled} of text, and {numbers} sizes of {unet.added_time_channels} each)"
        )
    return SDXL if len(texts) == 2 else SDXL_REFINER

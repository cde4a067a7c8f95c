"""The families of checkpoints that genpipe runs: one row each, and how a checkpoint's family is recognised.

A new family is a row here and, at most, a network of its own.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

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


@dataclass(frozen=True)
class Family:
    """One row of the table.

    Attributes:
        name: "sd1", as messages and metadata give it.
        title: what people call it.
        pipeline: the diffusers class that `model_index.json` names when such a checkpoint is saved.
        text_encoders: the text encoders' folders in the diffusers layout, in the order in which their vectors are joined.
        context_channels: width of the vectors that the U-Net attends to.
        added_numbers: how many numbers (sizes, crops, score) are embedded beside the pooled text; 0 for none.
        sample_size: height and width that the published model was trained at, in latent pixels.
        steps, guidance_scale: what is drawn with where neither the checkpoint nor the caller says.
    """

    name: str
    title: str
    pipeline: str
    text_encoders: tuple[str, ...]
    context_channels: int
    added_numbers: int = 0
    sample_size: int = 64
    steps: int = 30
    guidance_scale: float = 7.5

    @property
    def tokenizers(self) -> tuple[str, ...]:
        """The tokenizers' folders, one per text encoder."""
        return tuple(tokenizer_of(name) for name in self.text_encoders)


SD1 = Family("sd1", "Stable Diffusion 1.x", "StableDiffusionPipeline", ("text_encoder",), 768)
SD2 = Family("sd2", "Stable Diffusion 2.x", "StableDiffusionPipeline", ("text_encoder",), 1024)
SDXL = Family(
    "sdxl",
    "Stable Diffusion XL",
    "StableDiffusionXLPipeline",
    TEXT_ENCODERS,
    2048,
    added_numbers=6,
    sample_size=128,
    guidance_scale=5.0,
)
SDXL_REFINER = Family(
    "sdxl-refiner",
    "Stable Diffusion XL refiner",
    "StableDiffusionXLImg2ImgPipeline",
    ("text_encoder_2",),
    1280,
    added_numbers=5,
    sample_size=128,
    guidance_scale=5.0,
)
FAMILIES = (SD1, SD2, SDXL, SDXL_REFINER)


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

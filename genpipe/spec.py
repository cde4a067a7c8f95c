"""What determines a loaded model: its files, and the form in which it runs. Imports no torch."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from genpipe.fields import Choice, Flag, Text, check_fields, defaults_of, refuse_unknown, setting, settings_of

if TYPE_CHECKING:
    import torch

DTYPES = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}
# What the denoiser's weights may be kept in, and torch's name of it.
WEIGHTS = {"fp8": "float8_e4m3fn", "int8": "int8", "bf16": "bfloat16"}
NF4 = "nf4"  # of models that diffusers draws alone


# Fields of `ModelSpec` that name files or folders beside the model's own.
FILES = (
    "base",
    "vae",
    "text_encoder",
    "tiny_vae",
    "refiner",
    "control_model",
    "ip_adapter",
    "image_encoder",
    "embeddings",
)


@dataclass(frozen=True)
class _Named(Text):
    """Text, or what has a text: a path, a torch device."""

    def check(self, name: str, value: Any) -> str:
        known = isinstance(value, Path) or type(value).__module__ == "torch"
        return super().check(name, str(value) if known else value)


@dataclass(frozen=True)
class _Several(_Named):
    """Several of them, as a tuple; one alone stands for a list of one, and in a text commas part them."""

    def check(self, name: str, value: Any) -> tuple[str, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        given = value if isinstance(value, tuple | list) else [value]
        return tuple(super(_Several, self).check(name, one) for one in given)

    def read(self, name: str, text: str) -> tuple[str, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return tuple(part.strip() for part in text.split(",") if part.strip())

    def write(self, value: Any) -> str:
        return ",".join(value)


@dataclass(frozen=True)
class _Dtype(Choice):
    """A dtype by its short name; torch's own are taken too."""

    def check(self, name: str, value: Any) -> str:
        known = type(value).__module__ == "torch"
        return super().check(name, str(value).removeprefix("torch.") if known else value)


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """Everything that determines a loaded model. Equal ones load the same, so it is the key of caches.

    The fields are the one list of loading options: `Pipeline.from_pretrained`, `generate`, the commands, `render` and the
    files of images take theirs from it. Paths, torch devices and torch dtypes are stored by their names.

    Attributes:
        model: a `.safetensors` or `.gguf` file, a folder in the diffusers layout, the name of one in `model_dir`, or a hub
            id such as "owner/name"; None is the embedded model.
        model_dir: a folder of models, also of an A1111 or ComfyUI installation; None is what GENPIPE_MODELS says.
        revision: branch, tag or commit on the hub; None is its main one.
        variant: "fp16" reads the files of that name.
        file: the one that the model is in, of a hub repository or a folder that holds several.
        base: of a single file whose model diffusers draws, the folder in the diffusers layout, or the hub id, that has the
            other parts of it.
        vae, text_encoder: parts in place of the checkpoint's, or where a single file has none: a file, a folder or a hub
            id; for SDXL's two text encoders, two with a comma between them.
        tiny_vae: folder of a tiny autoencoder (TAESD) for these latents, which then makes previews and drafts; of a model
            that diffusers draws, previews alone.
        device: "cuda", "cuda:1", "mps" or "cpu"; None takes the best there is.
        dtype: "fp32", "bf16" or "fp16"; None takes what is fast on the device.
        low_memory: hold the text encoder and the autoencoder in memory only while they run, reading them from their files
            for every batch; images are the same.
        compile: let torch compile the blocks of the denoiser (on CUDA), in the place of genpipe's own kernels: it takes a
            minute or so the first time, and is kept on the disk. On an H100 the kernels are faster.
        int8: multiply the wide layers of the denoiser in int8 (on a CPU, in bf16): faster, and not quite the same images.
        weights: keep the denoiser's weights in memory as "fp8", "int8" or "bf16", and widen them layer by layer as they
            run: less memory, slower, and not quite the same images. Of models that diffusers draws also as "nf4", which like
            "int8" there takes a package (`genpipe[nf4]`, `genpipe[int8]`). Not to be mixed up with `int8`, which multiplies in it.
        fp8: multiply layers of the denoiser's transformers in fp8 (on an NVIDIA GPU from Ada or Hopper on, in bf16): not
            quite the same images.
        refiner: SDXL's refiner, a file or a folder, which draws the last part of the schedule (`Request.refiner_start`).
        control_model: ControlNets and T2I-Adapters, each a file, a folder or a hub id; a request's `control` holds an image for each.
        ip_adapter: the file of an IP-Adapter, base or Plus, which shows the denoiser a request's `reference`.
        image_encoder: CLIP's, that the IP-Adapter was trained with, a folder or a file; None is the folder `image_encoder`
            beside its file.
        embeddings: a file, or a folder of files, of textual inversions; prompts use them by the file's name.
        lora_dir: the only folder that LoRAs are taken from which prompts name.
        allow_pickle: read `.ckpt` files, by torch's reader that runs no code; safetensors alone otherwise.
        offload: of a model that diffusers draws, keep on the GPU only what runs: "model" a network, "sequential" and "group"
            a layer; "group" fetches the next one beside it.
        trust_remote_code: of a model that diffusers draws, run the code that comes with it.
        vae_tiling: decode in overlapping tiles, whose seams differ slightly from a whole decode: "on", "off", or "auto",
            which does so where a whole decode would not fit into memory.

    Raises:
        ValueError: a value is of the wrong type; one line that says how to put it right.
    """

    model: str | None = setting(
        _Named("NAME", empty=False),
        "a .safetensors or .gguf file, a folder in the diffusers layout, a name in --model-dir or a hub id "
        "(default: the small one that comes with genpipe)",
        default=None,
        flags=("-m", "--model", "--ckpt"),
    )
    model_dir: str | None = setting(
        _Named("DIR", empty=False),
        "where models are found by their names (default: GENPIPE_MODELS)",
        default=None,
        draws=False,
    )
    revision: str | None = setting(_Named("NAME"), "branch, tag or commit on the hub", default=None)
    variant: str | None = setting(_Named("NAME"), "fp16 reads the files of that name", default=None)
    file: str | None = setting(
        _Named("NAME", empty=False),
        "the model's file, of a hub repository or a folder that holds several",
        default=None,
    )
    base: str | None = setting(
        _Named("NAME", empty=False),
        "models that diffusers draws, where --model is a file of the denoiser alone (FLUX, SD 3, .gguf, ...): the folder or "
        "hub id with the other parts",
        default=None,
    )
    vae: str | None = setting(
        _Named("NAME", empty=False),
        "an autoencoder in place of the model's, or where it has none: a file, folder, a name in --model-dir or a hub id",
        default=None,
    )
    text_encoder: str | None = setting(
        _Named("NAME", empty=False),
        "text encoders in place of the model's, or where it has none: a file or folder, or two with a comma between",
        default=None,
    )
    tiny_vae: str | None = setting(
        _Named("DIR", empty=False),
        "a tiny autoencoder (TAESD), which then decodes drafts",
        default=None,
        flags=("--tiny-vae", "--taesd"),
    )
    device: str | None = setting(
        _Named("NAME"), "cuda, cuda:1, mps or cpu (default: the best there is)", default=None, draws=False
    )
    dtype: str | None = setting(
        _Dtype(tuple(DTYPES.values()), DTYPES), "fp32, bf16 or fp16 (default: the fastest on the device)", default=None
    )
    low_memory: bool = setting(
        Flag(), "hold the text encoder and the autoencoder in memory only while they run", default=False, draws=False
    )
    compile: bool = setting(
        Flag(),
        "let torch compile the denoiser's blocks on a GPU, in the place of genpipe's own kernels: it takes a minute or so "
        "the first time (default: no)",
        default=False,
        draws=False,
    )
    int8: bool = setting(
        Flag(), "multiply in int8 on a CPU: faster, and not quite the same image (default: no)", default=False
    )
    fp8: bool = setting(
        Flag(),
        "multiply the denoiser's transformers in fp8 on a GPU (Ada, Hopper): not quite the same image (default: no)",
        default=False,
    )
    weights: str | None = setting(
        Choice((*WEIGHTS, NF4)),
        "keep the denoiser's weights in memory as fp8, int8 or bf16, widened layer by layer, or as nf4 (models that diffusers "
        "draws): less memory, not quite the same image (default: in the dtype)",
        default=None,
    )
    refiner: str | None = setting(
        _Named("NAME", empty=False),
        "SDXL's refiner, which draws the last part of the schedule: a file or a folder",
        default=None,
    )
    control_model: tuple[str, ...] = setting(
        _Several("NAME", empty=False),
        "a ControlNet or T2I-Adapter that --control holds the image for: a file, folder or hub id; may be repeated",
        default=(),
    )
    ip_adapter: str | None = setting(
        _Named("FILE", empty=False), "an IP-Adapter (base or Plus) that --reference holds the image for", default=None
    )
    image_encoder: str | None = setting(
        _Named("NAME", empty=False),
        "CLIP's image encoder for --ip-adapter, a folder or a file (default: image_encoder beside it)",
        default=None,
    )
    embeddings: str | None = setting(
        _Named("NAME", empty=False),
        "textual inversions, used by their file's name in prompts: a file or a folder of them",
        default=None,
    )
    lora_dir: str | None = setting(
        _Named("DIR", empty=False), "where LoRAs are that prompts name, as <lora:name:0.8>", default=None, draws=False
    )
    allow_pickle: bool = setting(
        Flag(),
        "read .ckpt files too, by a reader that runs no code of theirs (default: no)",
        default=False,
        draws=False,
    )
    offload: str | None = setting(
        Choice(("model", "sequential", "group")),
        "models that diffusers draws, on a GPU: keep in its memory only the part that runs (model), or the layer "
        "(sequential; group fetches the next one beside it); slower, the same image",
        default=None,
        draws=False,
    )
    trust_remote_code: bool = setting(
        Flag(),
        "models that diffusers draws: run the code that comes with the model, with all that you may do (default: no)",
        default=False,
        draws=False,
    )
    vae_tiling: str = setting(
        Choice(("auto", "on", "off")),
        "decode in tiles: auto (where memory is short; default), on or off",
        default="auto",
    )

    def __post_init__(self) -> None:
        check_fields(self)
        if self.model == "embedded":
            object.__setattr__(self, "model", None)

    def to_dict(self) -> dict[str, Any]:
        """Give the fields by name, ready for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "ModelSpec":
        """Make the spec that `to_dict` gave.

        Raises:
            ValueError: a key is unknown, or a value is of the wrong type.
        """
        refuse_unknown(cls, values, "a model")
        return cls(**values)

    def drawn_by(self) -> dict[str, Any]:
        """Give the fields that images depend on, the model itself and its dtype aside, where they are not the defaults."""
        values, defaults = asdict(self), defaults_of(ModelSpec)
        return {
            name: values[name]
            for name, described in settings_of(ModelSpec).items()
            if described.draws and name not in ("model", "dtype") and values[name] != defaults[name]
        }


class PortableOptions(TypedDict, total=False):
    """The fields of `ModelSpec` but the model itself, its device and its dtype, as keyword arguments."""

    model_dir: "str | Path | None"
    revision: str | None
    variant: str | None
    file: str | None
    base: "str | Path | None"
    vae: "str | Path | None"
    text_encoder: "str | Path | None"
    tiny_vae: "str | Path | None"
    low_memory: bool
    compile: bool
    int8: bool
    fp8: bool
    weights: str | None
    refiner: "str | Path | None"
    control_model: "str | Path | Sequence[str | Path]"
    ip_adapter: "str | Path | None"
    image_encoder: "str | Path | None"
    embeddings: "str | Path | None"
    lora_dir: "str | Path | None"
    allow_pickle: bool
    offload: str | None
    trust_remote_code: bool
    vae_tiling: str


class ModelOptions(PortableOptions, total=False):
    """The fields of `ModelSpec` but the model itself, as keyword arguments."""

    device: "str | torch.device | None"
    dtype: "str | torch.dtype | None"

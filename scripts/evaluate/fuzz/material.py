"""What samples are made from: a tiny checkpoint, a tiny classifier, images of many formats, a folder of a finished run."""

import io
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image

from genpipe.checkpoints import save_checkpoint
from genpipe.checkpoints.families import SD1
from genpipe.fit import Traits
from genpipe.models.text_encoder import TextEncoder, TextEncoderConfig
from genpipe.models.tokenizer import train_tokenizer
from genpipe.models.unet import UNet
from genpipe.models.unet_config import UNetConfig
from genpipe.models.vae import VAE, VAEConfig
from genpipe.pipeline import Pipeline
from genpipe.render.options import Options
from genpipe.render.run import Run
from genpipe.vision.architectures import build
from genpipe.vision.preprocess import Preprocess
from genpipe.vision.weights import Classifier, save_classifier
from genpipe.workers.engines import Event
from genpipe.workers.messages import Job, Model, Result, Work
from genpipe.workers.storage import open_storage

SCHEDULER = {**SD1.scheduler_config, "_class_name": "DDIMScheduler"}
CONFIGS = ("model_index.json", "scheduler/scheduler_config.json")
CONFIGS += tuple(f"{part}/config.json" for part in ("unet", "vae", "text_encoder"))
WEIGHTS = tuple(f"{part}/diffusion_pytorch_model.safetensors" for part in ("unet", "vae"))
WEIGHTS += ("text_encoder/model.safetensors",)
DEFAULTS = {"height": 16, "width": 16, "steps": 1, "guidance_scale": 2.0, "guidance_rescale": 0.0}
FORMATS = (
    "PNG",
    "JPEG",
    "WEBP",
    "GIF",
    "BMP",
    "TIFF",
    "EPS",
    "PDF",
    "PPM",
    "TGA",
    "ICO",
    "PCX",
    "SGI",
    "JPEG2000",
    "DDS",
)


class Instant:
    """An engine that writes an image of one pixel for each task, at once."""

    workers, lost = 1, 0

    def __init__(self) -> None:
        self._waiting: list[Work] = []
        self._out = ""

    def open(self, job: Job) -> Model:
        self._out = job.out
        return Model(
            "tiny", "f" * 64, "float32", {"": DEFAULTS, "lcm": DEFAULTS}, Traits(factor=4, tile_factor=4, layers=2)
        )

    def room(self) -> bool:
        return len(self._waiting) < 2

    def submit(self, work: Work) -> None:
        self._waiting.append(work)

    def event(self, timeout: float) -> Event | None:
        import hashlib

        work = self._waiting.pop(0)
        storage, result = open_storage(self._out), Result()
        data = io.BytesIO()
        Image.new("RGB", (1, 1)).save(data, "PNG")
        for task in work.tasks:
            storage.write(task.path, data.getvalue())
            result.drawn.append((task.number, len(data.getvalue()), hashlib.sha256(data.getvalue()).hexdigest(), None))
        result.seconds = {"text": 0.0, "denoise": 0.0, "decode": 0.0, "judge": 0.0, "encode": 0.0, "write": 0.0}
        return Event(work.key, result)

    def drain(self) -> None: ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class Material:
    """What was made, all of it below one folder.

    Attributes:
        checkpoint: a folder in the diffusers layout, of random weights.
        image: a PNG that this checkpoint drew, which says what made it.
        classifier, pickle: the same weights, as safetensors and as a pickle.
        images: the bytes of one image by its format.
        rendered: a folder that a run has finished.
    """

    checkpoint: Path
    image: Path
    classifier: Path
    pickle: Path
    images: dict[str, bytes]
    rendered: Path

    def copy(self, folder: Path) -> Path:
        """Copy the checkpoint for spoiling: its JSON files are copied, its weights linked."""
        for path in self.checkpoint.rglob("*"):
            target = folder / path.relative_to(self.checkpoint)
            if path.is_dir():
                target.mkdir(parents=True, exist_ok=True)
            elif path.suffix == ".safetensors":
                target.parent.mkdir(parents=True, exist_ok=True)
                target.symlink_to(path)
            else:
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, target)
        return folder


def make_material(root: Path) -> Material:
    """Make it below `root`, which has to be there."""
    checkpoint = root / "checkpoint"
    _save_tiny(checkpoint)
    image = Pipeline.from_pretrained(checkpoint, device="cpu", dtype="fp32")(
        "a red cat", seed=1, steps=1, progress=False
    )
    image.save(root / "drawn.png")
    torch.manual_seed(0)
    made = Classifier(build("lenet5", 3), "lenet5", ("cat", "dog", "ship"), Preprocess(36, 32, (0.5,), (0.5,)))
    save_classifier(made, root / "small.safetensors")
    torch.save(made.network.state_dict(), root / "small.pth")
    images = {}
    for kind in FORMATS:
        data = io.BytesIO()
        try:
            Image.linear_gradient("L").resize((24, 24)).convert("RGB").save(data, kind)
        except (KeyError, OSError, ValueError):  # this Pillow does not write it
            continue
        images[kind] = data.getvalue()
    rows = [{"prompt": "a red cat"}, {"prompt": "a ship", "seed": 5}, {"prompt": "a dog", "file_name": "dog"}]
    options = Options.of(steps=1)
    for _ in Run(rows, root / "rendered", options, engine=Instant()).pictures():
        pass
    return Material(
        checkpoint, root / "drawn.png", root / "small.safetensors", root / "small.pth", images, root / "rendered"
    )


def _save_tiny(folder: Path) -> None:
    tokenizer = train_tokenizer(["a red cat and a blue dog", "a ship at sea"], 530, length=12)
    torch.manual_seed(0)
    text = TextEncoder(
        TextEncoderConfig(
            vocab_size=tokenizer.vocab_size, hidden_size=16, intermediate_size=32, num_hidden_layers=2,
            num_attention_heads=2, max_position_embeddings=12, eos_token_id=tokenizer.eos_id,
        )
    )  # fmt: skip
    unet = UNet(
        UNetConfig(
            sample_size=4, channels=(8, 16), attention=(True, False), attention_up=(True, False), layers=(1, 1),
            depth=(1, 1), heads=(2, 2), only_cross=(False, False), context_channels=16, norm_groups=4,
        )
    )  # fmt: skip
    vae = VAE(VAEConfig(channels=(8, 8, 8), layers=1, norm_groups=4, sample_size=16))
    parts = {"text_encoders": (text,), "tokenizers": (tokenizer,), "unet": unet, "vae": vae}
    save_checkpoint(folder, **parts, scheduler_config=SCHEDULER)
    (folder / "genpipe.json").write_text(json.dumps(DEFAULTS))

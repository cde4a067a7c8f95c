"""Loading maps the files: memory grows by the weights once, and nothing heavy is imported for it."""

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from genpipe.checkpoints import save_checkpoint
from genpipe.checkpoints.tensors import Safetensors, release_pages
from genpipe.checkpoints.weights import skeleton
from genpipe.models.text_encoder import TextEncoder, TextEncoderConfig
from genpipe.models.tokenizer import train_tokenizer
from genpipe.models.unet import UNet
from genpipe.models.unet_config import UNetConfig
from genpipe.models.vae import VAE, VAEConfig

# Peak memory of a process that loads a checkpoint and reads every weight, over what it held before.
PROBE = """
import json, resource, sys
import torch
from genpipe.checkpoints import load_checkpoint

def status(key):
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(key))

def load(path, dtype):
    narrow = dtype is not None and dtype.itemsize == 1
    checkpoint = load_checkpoint(path, **({"unet_dtype" if narrow else "dtype": dtype}))
    networks = tuple(checkpoint.networks.values())
    for network in networks:
        for tensor in network.state_dict().values():
            tensor.view(-1).view(torch.uint8)[::4096].sum()  # one number of every page
    return networks

small, large, dtype = sys.argv[1:]
dtype = getattr(torch, dtype, None)
load(small, dtype)
open("/proc/self/clear_refs", "w").write("5")  # sets the peak back to what is held now
before = status("VmRSS")
networks = load(large, dtype)
sizes = [sum(t.nbytes for t in network.state_dict().values()) for network in networks]
heavy = [name for name in ("diffusers", "transformers", "huggingface_hub", "sympy") if name in sys.modules]
print(json.dumps({"growth": status("VmHWM") - before, "sizes": sizes, "heavy": heavy}))
"""


@pytest.fixture(scope="module")
def disk() -> Iterator[Path]:
    """A folder on a disk: of a file that lies in memory itself, no page is given back."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def large(disk: Path) -> Path:
    """A checkpoint of about 200 MB of fp16 weights."""
    tokenizer = train_tokenizer(["a"], 514, length=16)
    networks = {
        "text": skeleton(
            lambda: TextEncoder(TextEncoderConfig(vocab_size=8000, num_hidden_layers=2, max_position_embeddings=16))
        ),
        "unet": skeleton(lambda: UNet(UNetConfig(channels=(128, 256, 384, 512), heads=(4,) * 4, layers=(1,) * 4))),
        "vae": skeleton(lambda: VAE(VAEConfig(channels=(64, 128, 256), layers=1))),
    }
    generator = torch.Generator().manual_seed(0)
    for name, network in networks.items():
        networks[name] = network.to(torch.float16).to_empty(device="cpu")
        for parameter in networks[name].parameters():
            parameter.data.uniform_(-0.1, 0.1, generator=generator)
    directory = disk / "large"
    scheduler_config = {"_class_name": "DDIMScheduler"}
    save_checkpoint(
        directory,
        text_encoders=(networks.pop("text"),),
        tokenizers=(tokenizer,),
        **networks,
        scheduler_config=scheduler_config,
    )
    return directory


def probe(small: Path, large: Path, dtype: str) -> tuple[int, list[int], list[str]]:
    done = subprocess.run(
        [sys.executable, "-c", PROBE, str(small), str(large), dtype], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return tuple(json.loads(done.stdout).values())


reads_peak = pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="peak memory is read from Linux's /proc"
)


@reads_peak
def test_loading_grows_memory_by_the_weights_once(tiny_checkpoint: Path, large: Path) -> None:
    growth, sizes, heavy = probe(tiny_checkpoint, large, "as stored")
    assert sum(sizes) > 180e6 and heavy == []
    assert growth <= 1.15 * sum(sizes)
    growth, sizes, _ = probe(tiny_checkpoint, large, "float32")
    stored = [size // 2 for size in sizes]
    assert growth <= sum(sizes) + max(stored) + 0.05 * sum(sizes)


@reads_peak
@pytest.mark.parametrize("stored", ["float16", "float8_e4m3fn"])
def test_weights_kept_in_fewer_bits_are_never_in_memory_in_more(
    tiny_checkpoint: Path, large: Path, disk: Path, stored: str
) -> None:
    model = shutil.copytree(large, disk / stored)
    path = model / "unet" / "diffusion_pytorch_model.safetensors"
    save_file({key: tensor.to(getattr(torch, stored)) for key, tensor in load_file(path).items()}, path)
    growth, sizes, _ = probe(tiny_checkpoint, model, "float8_e4m3fn")
    numbers = sum(tensor.numel() for tensor in load_file(path).values())
    assert sizes[1] < 1.05 * numbers  # a byte each, where fp16 takes two
    assert growth <= sum(sizes) + 0.5 * numbers  # for the layer that is being read


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from Linux's /proc")
def test_pages_of_mapped_tensors_are_let_go_and_read_again(disk: Path) -> None:
    def held() -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssFile:"))

    path, numbers = disk / "numbers.safetensors", torch.arange(2.0**24)  # 64 MB
    save_file({"a": numbers, "b": torch.ones(8)}, path)
    file = Safetensors(path)
    mapped = [file.tensor("a"), file.tensor("b")]
    total, full = mapped[0].sum(), held()
    release_pages([*mapped, numbers, mapped[0].to_mkldnn(), numbers.to("meta")])
    assert full - held() > 60e6
    assert mapped[0].sum() == total and torch.equal(mapped[0].view(-1, 64)[-1], numbers[-64:])

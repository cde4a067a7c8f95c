"""The peers of `benchmark.py`, each in a process of its own that waits for orders: one line of JSON in, one out.

Started as `python scripts/benchmark_peers.py PEER PART CHECKPOINT SIZE BATCH`; says when it is ready, then answers "run"
with the seconds of one evaluation, "save PATH" by saving what it computed, and leaves at the end of its input.
"""

import importlib
import json
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

PEERS = {
    "genpipe": "genpipe, exact",
    "low_memory": "genpipe, exact, low_memory=True",
    "int8": "genpipe, int8=True",
    "diffusers": "diffusers, as shipped (fp32)",
    "tuned": "diffusers, bf16 + channels_last",
    "compile": "diffusers, bf16 + channels_last + torch.compile",
    "openvino": "OpenVINO, bf16",
}
PROMPT, NEGATIVE, SEED, GUIDANCE, TIMESTEP, SCALING = "a pirate ship at sea", "", 7, 7.5, 500.0, 0.18215
Run = Callable[[], Any]


def inputs(size: int, batch: int) -> tuple[Tensor, Tensor, Tensor]:
    """Latents (B, 4, h, w), the context (2B, 77, 768) of a guided batch, token ids (1, 77); the same for every peer."""
    generator = torch.Generator().manual_seed(SEED)
    latents = torch.randn(batch, 4, size // 8, size // 8, generator=generator)
    context = torch.randn(2 * batch, 77, 768, generator=generator)
    return latents, context, torch.randint(0, 400, (1, 77), generator=generator)


def genpipe(part: str, folder: Path, size: int, batch: int, steps: int, **loading: Any) -> Run:
    from genpipe.models.inference import Denoiser
    from genpipe.pipeline import Pipeline

    pipe = Pipeline.from_pretrained(folder, device="cpu", **loading)
    latents, context, ids = inputs(size, batch)
    if part == "text":
        return lambda: pipe.text_encoder(ids).context
    if part == "step":
        denoiser = Denoiser(pipe.unet, [TIMESTEP], context)
        return lambda: denoiser(latents, TIMESTEP)
    if part == "decode":
        return lambda: pipe.vae.decode(latents)
    settings = {"n": batch, "seed": SEED, "steps": steps, "sampler": "ddim", "height": size, "width": size}
    return lambda: _pixels(pipe(PROMPT, guidance_scale=GUIDANCE, progress=False, **settings))


def diffusers(
    part: str, folder: Path, size: int, batch: int, steps: int, *, tuned: bool, compiled: bool = False
) -> Run:
    library: Any = importlib.import_module("diffusers")
    dtype = torch.bfloat16 if tuned else torch.float32
    latents, context, ids = inputs(size, batch)
    latents, context = latents.to(dtype), context.to(dtype)

    def network(kind: str, name: str) -> Any:
        home: Any = importlib.import_module("transformers") if kind == "CLIPTextModel" else library
        found = getattr(home, kind).from_pretrained(folder / name, torch_dtype=dtype).eval()
        return found.to(memory_format=torch.channels_last) if tuned and name != "text_encoder" else found

    def quick(call: Any) -> Any:
        return torch.compile(call) if compiled else call

    if part == "text":
        encoder = network("CLIPTextModel", "text_encoder")
        return lambda: encoder(ids)[0]
    if part == "step":
        unet = quick(network("UNet2DConditionModel", "unet"))
        return lambda: unet(torch.cat([latents, latents]), TIMESTEP, context, return_dict=False)[0]
    if part == "decode":
        decode = quick(network("AutoencoderKL", "vae").decode)
        return lambda: decode(latents / SCALING, return_dict=False)[0]
    pipe = library.StableDiffusionPipeline.from_pretrained(folder, torch_dtype=dtype, safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    if tuned:
        pipe.unet.to(memory_format=torch.channels_last)
        pipe.vae.to(memory_format=torch.channels_last)
    pipe.unet, pipe.vae.decode = quick(pipe.unet), quick(pipe.vae.decode)
    pipe.scheduler = library.DDIMScheduler.from_config(pipe.scheduler.config, clip_sample=False)

    def picture() -> np.ndarray:
        generators = [torch.Generator("cpu").manual_seed(SEED + k) for k in range(batch)]
        images = pipe(
            [PROMPT] * batch, num_inference_steps=steps, guidance_scale=GUIDANCE, height=size, width=size,
            generator=generators,
        ).images  # fmt: skip
        return _pixels(images)

    return picture


def openvino(part: str, folder: Path, size: int, batch: int, steps: int) -> Run:
    library: Any = importlib.import_module("openvino")
    reference: Any = importlib.import_module("diffusers")
    latents, context, _ = inputs(size, batch)

    class Part(torch.nn.Module):
        def __init__(self, network: torch.nn.Module) -> None:
            super().__init__()
            self.network = network

        def forward(self, *tensors: Tensor) -> Tensor:
            call: Any = self.network if part == "step" else self.network.decode
            return call(*tensors, return_dict=False)[0]

    if part == "step":
        network = reference.UNet2DConditionModel.from_pretrained(folder, subfolder="unet")
        given = (torch.cat([latents, latents]), torch.tensor(TIMESTEP), context)
    else:
        network = reference.AutoencoderKL.from_pretrained(folder, subfolder="vae")
        given = (latents / SCALING,)
    model = library.convert_model(Part(network.eval()), example_input=given)
    model.reshape({index: library.PartialShape(list(tensor.shape)) for index, tensor in enumerate(given)})
    compiled = library.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "bf16"})
    arrays = [tensor.numpy() for tensor in given]
    return lambda: compiled(arrays)[0]


BUILDERS: dict[str, Callable[..., Run]] = {
    "genpipe": genpipe,
    "low_memory": lambda *given: genpipe(*given, low_memory=True),
    "int8": lambda *given: genpipe(*given, int8=True),
    "diffusers": lambda *given: diffusers(*given, tuned=False),
    "tuned": lambda *given: diffusers(*given, tuned=True),
    "compile": lambda *given: diffusers(*given, tuned=True, compiled=True),
    "openvino": openvino,
}


def can(peer: str, part: str) -> bool:
    """Whether the peer has this part: OpenVINO is converted network by network, and brings no pipeline; text encoders are
    not compiled; what is done for memory shows in a whole picture."""
    networks = ("step", "decode")
    some = {
        "int8": ("step", "picture"),
        "low_memory": ("picture",),
        "compile": (*networks, "picture"),
        "openvino": networks,
    }
    return part in some.get(peer, (part,))


def peak_bytes() -> int:
    """The most memory that this process has held. Not `ru_maxrss`, which a process inherits from the one that started it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def _pixels(images: Any) -> np.ndarray:
    return np.stack(
        [np.asarray(image, dtype=np.float32) for image in (images if isinstance(images, list) else [images])]
    )


def main() -> None:
    peer, part, folder, size, batch, steps = sys.argv[1:]
    warnings.simplefilter("ignore")
    out, sys.stdout = sys.stdout, sys.stderr

    def answer(**values: Any) -> None:
        print(json.dumps(values), file=out, flush=True)

    started = time.perf_counter()
    result: Any = None
    with torch.inference_mode():
        run = BUILDERS[peer](part, Path(folder), int(size), int(batch), int(steps))
        loaded = time.perf_counter() - started
        if part != "picture":
            result = run()  # compiles, reads pages, makes oneDNN's primitives
        answer(load_s=loaded, first_s=time.perf_counter() - started - loaded)
        for line in sys.stdin:
            order, _, path = line.strip().partition(" ")
            if order == "run":
                started = time.perf_counter()
                result = run()
                answer(seconds=time.perf_counter() - started, peak_bytes=peak_bytes())
            else:
                saved = result.float().numpy() if isinstance(result, Tensor) else np.asarray(result)
                np.save(path, saved)
                answer(saved=path)


if __name__ == "__main__":
    main()

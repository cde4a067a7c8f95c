"""The peers of `benchmark.py`, each in a process of its own that waits for orders: one line of JSON in, one out.

Started as `python -m scripts.benchmark.peers PEER TASK`, the task as JSON; says when it is ready, then answers "run" with the
seconds of one evaluation, and "finish PATH" by saving what it computed and telling the most memory that this took.
"""

import importlib
import json
import sys
import time
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from genpipe.hardware import choose_dtype
from genpipe.sampling.noise import ImageNoise

PEERS = {
    "genpipe": "genpipe, exact",
    "low_memory": "genpipe, exact, low_memory=True",
    "int8": "genpipe, int8=True",
    "diffusers": "diffusers, as shipped (fp32)",
    "tuned": "diffusers, in genpipe's dtype + channels_last",
    "compile": "diffusers, in genpipe's dtype + channels_last + torch.compile",
    "openvino": "OpenVINO, in genpipe's dtype",
}
PROMPT, NEGATIVE, SEED, GUIDANCE, TIMESTEP, SCALING = "a pirate ship at sea", "", 7, 7.5, 500.0, 0.18215
Run = Callable[[], Any]


@dataclass(frozen=True)
class Task:
    """What every peer is to compute: a part of the checkpoint in `folder`, at so many pixels per side and images per batch;
    whole pictures in so many steps. For the part "control" a ControlNet lies in `folder`/controlnet."""

    part: str
    folder: str
    size: int
    batch: int
    steps: int


@dataclass(frozen=True)
class Inputs:
    """What the networks are given, the same for every peer.

    Attributes:
        latents: (B, 4, h, w).
        context: (2B, 77, D), of a guided batch.
        ids: token ids (1, 77).
        image: (B, 3, H, W), for a ControlNet.
        pooled, time_ids: (2B, P) and (2B, 6), where the U-Net takes them.
        scaling: of the latents.
    """

    latents: Tensor
    context: Tensor
    ids: Tensor
    image: Tensor
    pooled: Tensor | None
    time_ids: Tensor | None
    scaling: float


def inputs(task: Task) -> Inputs:
    """Random ones, in the widths of the checkpoint's networks."""
    generator = torch.Generator().manual_seed(SEED)
    unet, vae = (json.loads(Path(task.folder, name, "config.json").read_text()) for name in ("unet", "vae"))
    rows, side = 2 * task.batch, task.size // 8
    latents = torch.randn(task.batch, 4, side, side, generator=generator)
    context = torch.randn(rows, 77, unet["cross_attention_dim"], generator=generator)
    ids, pooled, time_ids = torch.randint(0, 400, (1, 77), generator=generator), None, None
    if unet.get("addition_embed_type") == "text_time":
        width = unet["projection_class_embeddings_input_dim"] - 6 * unet["addition_time_embed_dim"]
        pooled = torch.randn(rows, width, generator=generator)
        time_ids = torch.tensor([[task.size, task.size, 0, 0, task.size, task.size]] * rows, dtype=torch.float32)
    pixels = side * 2 ** (len(vae["block_out_channels"]) - 1)
    image = torch.rand(task.batch, 3, pixels, pixels, generator=generator)
    return Inputs(latents, context, ids, image, pooled, time_ids, vae.get("scaling_factor", SCALING))


def genpipe(task: Task, **loading: Any) -> Run:
    if task.part == "decode":
        return _decoder(task, **loading)
    from genpipe.models.conditioning import Conditioning
    from genpipe.models.control import Controls, Shown
    from genpipe.models.denoiser import UNetDenoiser
    from genpipe.pipeline import Pipeline

    if task.part == "control":
        loading["control_model"] = f"{task.folder}/controlnet"
    pipe = Pipeline.from_pretrained(task.folder, device="cpu", **loading)
    given = inputs(task)
    if task.part == "text":
        return lambda: pipe.text_encoders[0](given.ids).context
    if task.part in ("step", "control"):
        conditioning, control = Conditioning(given.context, given.pooled, given.time_ids), None
        if task.part == "control":
            shown = [Shown(given.image, [1.0] * task.batch, [TIMESTEP])]
            control = Controls(pipe.checkpoint.controls, shown, [TIMESTEP], conditioning)
        denoiser = UNetDenoiser(pipe.unet, [TIMESTEP], conditioning, control=control)
        return lambda: denoiser(given.latents, TIMESTEP)
    settings = {"n": task.batch, "seed": SEED, "steps": task.steps, "sampler": "ddim"}
    settings |= {"height": task.size, "width": task.size}
    return lambda: _pixels(pipe(PROMPT, guidance_scale=GUIDANCE, progress=False, **settings))


def _decoder(task: Task, *, dtype: str | None = None) -> Run:
    """The autoencoder alone, as the other peers load it: the other networks' weights stay in their files."""
    from genpipe.checkpoints import load_checkpoint
    from genpipe.pipeline.networks import Networks, prepare_process
    from genpipe.spec import ModelSpec

    device, latents = torch.device("cpu"), inputs(task).latents
    chosen = choose_dtype(dtype, device)
    prepare_process(ModelSpec(), device, chosen)
    checkpoint = load_checkpoint(task.folder)
    vae = Networks(checkpoint, device=device, dtype=chosen, low_memory=False, int8=False).prepare(checkpoint.vae)
    return lambda: vae.decode(latents)


def diffusers(task: Task, *, tuned: bool, compiled: bool = False) -> Run:
    library: Any = importlib.import_module("diffusers")
    dtype = choose_dtype(None, torch.device("cpu")) if tuned else torch.float32
    given = inputs(task)
    latents, context = given.latents.to(dtype), given.context.to(dtype)

    def network(kind: str, name: str) -> Any:
        home: Any = importlib.import_module("transformers") if kind == "CLIPTextModel" else library
        found = getattr(home, kind).from_pretrained(Path(task.folder, name), torch_dtype=dtype).eval()
        return found.to(memory_format=torch.channels_last) if tuned and name != "text_encoder" else found

    def quick(call: Any) -> Any:
        return torch.compile(call) if compiled else call

    if task.part == "text":
        encoder = network("CLIPTextModel", "text_encoder")
        return lambda: encoder(given.ids)[0]
    if task.part in ("step", "control"):
        unet = quick(network("UNet2DConditionModel", "unet"))
        timestep = torch.tensor(TIMESTEP)
        added = {}
        if given.pooled is not None and given.time_ids is not None:
            added = {"added_cond_kwargs": {"text_embeds": given.pooled.to(dtype), "time_ids": given.time_ids.to(dtype)}}
        if task.part == "step":
            return lambda: unet(torch.cat([latents, latents]), timestep, context, return_dict=False, **added)[0]
        net, image = quick(network("ControlNetModel", "controlnet")), torch.cat([given.image, given.image]).to(dtype)

        def controlled() -> Tensor:
            x, more = torch.cat([latents, latents]), {**added, "return_dict": False}
            down, middle = net(x, timestep, context, image, **more)
            residuals = {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}
            return unet(x, timestep, context, **residuals, **more)[0]

        return controlled
    if task.part == "decode":
        decode = quick(network("AutoencoderKL", "vae").decode)
        return lambda: decode(latents / given.scaling, return_dict=False)[0]
    kind = json.loads(Path(task.folder, "model_index.json").read_text())["_class_name"]
    unchecked = {"safety_checker": None} if kind == "StableDiffusionPipeline" else {}
    pipe = getattr(library, kind).from_pretrained(task.folder, torch_dtype=dtype, **unchecked)
    pipe.set_progress_bar_config(disable=True)
    if tuned:
        pipe.unet.to(memory_format=torch.channels_last)
        pipe.vae.to(memory_format=torch.channels_last)
    pipe.unet, pipe.vae.decode = quick(pipe.unet), quick(pipe.vae.decode)
    pipe.scheduler = library.DDIMScheduler.from_config(pipe.scheduler.config, clip_sample=False)

    def picture() -> np.ndarray:
        # genpipe's noise: under torch 2.11 a generator gives other numbers in bf16 than in fp32.
        seeds, side = [SEED + k for k in range(task.batch)], task.size // pipe.vae_scale_factor
        noise = ImageNoise(seeds, (4, side, side), torch.device("cpu"))
        images = pipe(
            [PROMPT] * task.batch, num_inference_steps=task.steps, guidance_scale=GUIDANCE, height=task.size,
            width=task.size, latents=noise().to(dtype),
        ).images  # fmt: skip
        return _pixels(images)

    return picture


def openvino(task: Task) -> Run:
    """What it converts, which takes minutes, stays in `folder`/openvino for later runs."""
    library: Any = importlib.import_module("openvino")
    reference: Any = importlib.import_module("diffusers")
    inputs_ = inputs(task)
    latents, context = inputs_.latents, inputs_.context

    class Part(torch.nn.Module):
        def __init__(self, network: torch.nn.Module) -> None:
            super().__init__()
            self.network = network

        def forward(self, *tensors: Tensor) -> Tensor:
            call: Any = self.network if task.part == "step" else self.network.decode
            return call(*tensors, return_dict=False)[0]

    given = (latents / inputs_.scaling,)
    if task.part == "step":
        given = (torch.cat([latents, latents]), torch.tensor(TIMESTEP), context)
    kept = Path(task.folder, "openvino", f"{task.part}-{task.size}-{task.batch}")
    if not kept.is_dir():
        kind, name = ("UNet2DConditionModel", "unet") if task.part == "step" else ("AutoencoderKL", "vae")
        network = getattr(reference, kind).from_pretrained(task.folder, subfolder=name)
        converted = library.convert_model(Part(network.eval()), example_input=given)
        converted.reshape({index: library.PartialShape(list(tensor.shape)) for index, tensor in enumerate(given)})
        new = kept.with_name(f"new-{kept.name}")
        library.save_model(converted, new / "model.xml", compress_to_fp16=False)
        new.rename(kept)
        del network, converted
    model = library.Core().read_model(kept / "model.xml")
    bf16 = choose_dtype(None, torch.device("cpu")) == torch.bfloat16
    compiled = library.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "bf16" if bf16 else "f32"})
    arrays = [tensor.numpy() for tensor in given]
    return lambda: compiled(arrays)[0]


BUILDERS: dict[str, Callable[[Task], Run]] = {
    "genpipe": genpipe,
    "low_memory": partial(genpipe, low_memory=True),
    "int8": partial(genpipe, int8=True),
    "diffusers": partial(diffusers, tuned=False),
    "tuned": partial(diffusers, tuned=True),
    "compile": partial(diffusers, tuned=True, compiled=True),
    "openvino": openvino,
}


def can(peer: str, part: str, family: str = "sd15") -> bool:
    """Whether the peer has this part of a family's checkpoint: OpenVINO is converted network by network, and brings no pipeline; text encoders are
    not compiled; what is done for memory shows in a whole picture. SDXL's two text encoders are not compared, and its U-Net
    is not converted."""
    networks = ("step", "decode")
    some = {
        "int8": ("step", "control", "picture"),
        "low_memory": ("picture",),
        "compile": (*networks, "picture"),
        "openvino": networks,
    }
    return part in some.get(peer, (part,)) and (family == "sd15" or (part != "text" and peer != "openvino"))


def peak_bytes() -> int:
    """The most memory that this process has held as its own, which is not `ru_maxrss`: that is inherited from the process
    that started it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def _pixels(images: Any) -> np.ndarray:
    return np.stack(
        [np.asarray(image, dtype=np.float32) for image in (images if isinstance(images, list) else [images])]
    )


@torch.inference_mode()
def serve(peer: str, task: Task, orders: Iterable[str], answer: Callable[..., None]) -> None:
    """Build the peer, then do what it is told."""

    def timed(call: Callable[[], Any]) -> tuple[Any, float]:
        started = time.perf_counter()
        result = call()
        return result, time.perf_counter() - started

    run, loading = timed(lambda: BUILDERS[peer](task))
    # It compiles, reads pages, makes oneDNN's primitives. Whole images are timed with all that.
    result, first = (None, 0.0) if task.part == "picture" else timed(run)
    answer(load_s=loading, first_s=first)
    for order in orders:
        what, _, path = order.strip().partition(" ")
        if what == "run":
            result, seconds = timed(run)
            answer(seconds=seconds)
        else:
            most = peak_bytes()
            np.save(path, result.float().cpu().numpy() if isinstance(result, Tensor) else np.asarray(result))
            answer(peak_bytes=most)


def main() -> None:
    peer, task = sys.argv[1:]
    warnings.simplefilter("ignore")
    out, sys.stdout = sys.stdout, sys.stderr
    serve(peer, Task(**json.loads(task)), sys.stdin, lambda **values: print(json.dumps(values), file=out, flush=True))


if __name__ == "__main__":
    main()

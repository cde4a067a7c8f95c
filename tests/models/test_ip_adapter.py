"""Our image encoder is CLIP's, and our IP-Adapters compute what diffusers computes with the same weights."""

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from genpipe.checkpoints.layout import IMAGE_ENCODER, ip_adapter
from genpipe.models.conditioning import Conditioning
from genpipe.models.cpu.forms import PACKABLE, Forms
from genpipe.models.cuda.graphs import Graphs
from genpipe.models.denoiser import UNetDenoiser
from genpipe.models.image_encoder import ImageEncoder, ImageEncoderConfig, ImageEncoding
from genpipe.models.ip_adapter import HEAD, IPAdapter, IPAdapterConfig
from genpipe.models.prepare import prepare
from tests.conftest import VISION
from tests.models.conftest import SDXL_UNET, UNetPair, their_inputs, unet_conditioning
from tests.models.cuda.test_graphs import Recall

CPU, FP32 = torch.device("cpu"), torch.float32
TIMES = [981.0, 499.5, 0.0]
CONTEXT = 24  # of the tiny U-Nets
KINDS = {"base": None, "plus": (40, 2, 3)}


@torch.inference_mode()
@pytest.mark.parametrize("activation", ["gelu", "quick_gelu"])
def test_the_image_encoder_is_that_of_transformers(activation: str) -> None:
    torch.manual_seed(0)
    theirs: Any = CLIPVisionModelWithProjection(CLIPVisionConfig(**VISION, hidden_act=activation)).eval()
    for parameter in theirs.parameters():
        parameter += 0.1 * torch.randn_like(parameter)
    ours = ImageEncoder(ImageEncoderConfig.from_dict(theirs.config.to_dict())).eval()
    state = {
        IMAGE_ENCODER.ours(key): tensor for key, tensor in theirs.state_dict().items() if "position_ids" not in key
    }
    ours.load_state_dict({str(key): tensor for key, tensor in state.items()}, strict=True)
    pixels = torch.randn(2, 3, 28, 28)
    expected = theirs(pixels, output_hidden_states=True)
    found = ours(pixels)
    assert (found.pooled - expected.image_embeds).abs().max() <= 1e-5
    assert (found.hidden - expected.hidden_states[-2]).abs().max() <= 1e-5


def made_for(unet: Any, kind: str, seed: int = 0) -> tuple[IPAdapter, dict[str, Any]]:
    """Our IP-Adapter of random weights for a U-Net, and the same as diffusers takes it."""
    torch.manual_seed(seed)
    widths = tuple(reader.heads * reader.head_channels for reader in unet.readers())
    resampler = KINDS[kind]
    channels = VISION["projection_dim"] if resampler is None else VISION["hidden_size"]
    ours = IPAdapter(IPAdapterConfig(channels, CONTEXT, 4 if resampler is None else 5, widths, resampler)).eval()
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    names = ip_adapter(len(widths))
    state: dict[str, Any] = {"image_proj": {}, "ip_adapter": {}}
    for key, tensor in ours.state_dict().items():
        part, _, rest = names.theirs(key).partition(".")
        state[part][rest] = tensor.clone()
    return ours, state


@torch.inference_mode()
@pytest.mark.parametrize("recorded", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["Stable Diffusion 1", "SDXL"])
def test_a_unet_with_one_computes_what_diffusers_computes(
    name: str, kind: str, recorded: bool, unet_pair: UNetPair
) -> None:
    unet, theirs = unet_pair(**({} if name == "Stable Diffusion 1" else SDXL_UNET))
    adapter, state = made_for(unet, kind)
    if kind == "plus":  # diffusers takes every Plus to have four layers
        adapter.projection.layers.extend(list(adapter.projection.layers))  # type: ignore[union-attr, operator]
        for key in [key for key in state["image_proj"] if key.startswith("layers.")]:
            _, number, rest = key.split(".", 2)
            state["image_proj"][f"layers.{int(number) + 2}.{rest}"] = state["image_proj"][key].clone()
    theirs._load_ip_adapter_weights([state])
    for processor in theirs.attn_processors.values():
        if hasattr(processor, "scale"):
            processor.scale = [0.6]
    prepare(unet, device=CPU, dtype=FP32, forms=Forms(packed=PACKABLE))
    encoding = ImageEncoding(torch.randn(2, 17, 32), torch.randn(2, 20))
    nothing = ImageEncoding(torch.randn(2, 17, 32), torch.zeros(2, 20))
    tokens = torch.cat([adapter(nothing), adapter(encoding)])
    plain = unet_conditioning(unet, 4)
    conditioning = Conditioning(
        plain.context,
        pooled=plain.pooled,
        time_ids=plain.time_ids,
        image_tokens=tokens,
        image_scales=torch.full((4,), 0.6),
    )
    embeds = (
        torch.cat([nothing.pooled, encoding.pooled]) if kind == "base" else torch.cat([nothing.hidden, encoding.hidden])
    )
    more: Any = {"evaluate": Graphs(unet, device=CPU, capture=Recall())} if recorded else {}
    denoiser = UNetDenoiser(unet, TIMES, conditioning, references=adapter, **more)
    for time in TIMES:
        latents = torch.randn(2, 4, 9, 7)
        given = their_inputs(plain)
        given["added_cond_kwargs"] = {**given.get("added_cond_kwargs", {}), "image_embeds": [embeds[:, None]]}
        expected = theirs(torch.cat([latents] * 2), time, **given).sample
        found = denoiser(latents, time)
        assert (found - expected).abs().max() <= 2e-5
        assert (found - UNetDenoiser(unet, TIMES, plain)(latents, time)).abs().max() > 0.01
        assert (denoiser(latents, time, last=True) - expected[2:]).abs().max() <= 2e-5


@torch.inference_mode()
def test_each_image_counts_as_much_as_its_own_scale(unet_pair: UNetPair) -> None:
    unet, _ = unet_pair()
    adapter, _ = made_for(unet, "base")
    tokens, latents = torch.randn(2, 4, CONTEXT), torch.randn(2, 4, 8, 8)
    plain, scales = unet_conditioning(unet, 2), torch.tensor([0.0, 1.5])

    def output(rows: list[int]) -> Tensor:
        given = plain.rows(rows)
        shown = Conditioning(given.context, image_tokens=tokens[rows], image_scales=scales[rows])
        return UNetDenoiser(unet, TIMES, shown, references=adapter)(latents[rows], TIMES[0])

    together = output([0, 1])
    assert (together[:1] - output([0])).abs().max() <= 1e-5 and (together[1:] - output([1])).abs().max() <= 1e-5
    unshown = UNetDenoiser(unet, TIMES, plain)(latents, TIMES[0])
    assert (together[0] - unshown[0]).abs().max() <= 1e-5
    assert (together[1] - unshown[1]).abs().max() > 0.01


def test_heads_of_the_resampler_are_as_wide_as_in_files() -> None:
    adapter = IPAdapter(IPAdapterConfig(32, CONTEXT, 5, (16,), (40, 2, 3)))
    assert adapter.state_dict()["projection.layers.0.query.weight"].shape == (3 * HEAD, 40)

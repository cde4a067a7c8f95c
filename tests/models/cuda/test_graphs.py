"""A denoiser by recordings gives what the plain one gives, whatever the order of shapes, batches and memory."""

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from genpipe.models.conditioning import Conditioning
from genpipe.models.cuda.graphs import Capture, Graphs, Outputs, release_graphs
from genpipe.models.denoiser import Denoiser, UNetDenoiser
from genpipe.models.prepare import prepare
from genpipe.models.unet import UNet
from tests.models.conftest import UNET_FAMILIES, UNetPair, unet_conditioning

CPU, FP32 = torch.device("cpu"), torch.float32
TIMES = [981.0, 499.5, 250.0, 0.0]


class Recall:
    """`Capture` on a CPU: repeats by calling again, into the same tensors, and spoils what other recordings gave."""

    def __init__(
        self,
        *,
        fails: Callable[[int], bool] = lambda made: False,
        error: RuntimeError = torch.OutOfMemoryError(  # noqa: B008 - an error may be raised again
            "CUDA out of memory. Tried to allocate 3 GiB\nand much more text"
        ),
    ) -> None:
        self.made, self.released, self.waits, self.free = 0, 0, 0, 1.0
        self._fails, self._error, self._given = fails, error, []

    def __call__(self, function: Callable[[], Outputs]) -> Callable[[], Outputs]:
        self.made += 1
        if self._fails(self.made):
            raise self._error
        outputs = function()
        self._given.append(outputs)

        def repeat() -> Outputs:
            fresh = function()
            for tensor in (tensor for given in self._given for tensor in given if tensor is not None):
                tensor.fill_(float("nan"))
            for tensor, value in zip(outputs, fresh, strict=True):
                if tensor is not None and value is not None:
                    tensor.copy_(value)
            return outputs

        return repeat

    def wait(self) -> None:
        self.waits += 1

    def free_share(self) -> float:
        return self.free

    def release(self) -> None:
        self.released += 1


def graphs(unet: UNet, capture: Capture, **bounds: Any) -> Graphs:
    return Graphs(unet, device=CPU, capture=capture, **bounds)


def both(unet: UNet, conditioning: Conditioning, evaluate: Graphs, *, refresh: int = 1) -> tuple[Denoiser, Denoiser]:
    """The plain denoiser and that by recordings."""
    plain = UNetDenoiser(unet, TIMES, conditioning, refresh=refresh)
    return plain, UNetDenoiser(unet, TIMES, conditioning, refresh=refresh, evaluate=evaluate)


def latents(images: int = 2, height: int = 8, width: int = 8, seed: int = 5) -> Tensor:
    return torch.randn(images, 4, height, width, generator=torch.Generator().manual_seed(seed))


@torch.inference_mode()
@pytest.mark.parametrize("refresh", [1, 2, 3])
@pytest.mark.parametrize("name", ["Stable Diffusion 1", "SDXL", "Stable Diffusion 2.1 unCLIP"])
def test_recordings_give_what_the_network_gives(name: str, refresh: int, unet_pair: UNetPair) -> None:
    unet = prepare(unet_pair(**UNET_FAMILIES[name])[0], device=CPU, dtype=FP32)
    capture = Recall()
    evaluate = graphs(unet, capture)
    for seed in (1, 2):  # batches, of other prompts
        conditioning = unet_conditioning(unet, 4)
        conditioning = Conditioning(conditioning.context + seed, conditioning.pooled, conditioning.time_ids)
        plain, recorded = both(unet, conditioning, evaluate, refresh=refresh)
        given = []
        for step, timestep in enumerate(TIMES):
            for last in (False, True):
                x = latents(seed=10 * seed + step)
                given.append((plain(x, timestep, last=last), recorded(x, timestep, last=last)))
        made = capture.made
        assert all((expected - output).abs().max() <= 1e-6 for expected, output in given)
    assert capture.made == made == len(evaluate)  # the second batch made none


@torch.inference_mode()
def test_each_image_may_have_its_own_timestep(unet_pair: UNetPair) -> None:
    unet = prepare(unet_pair()[0], device=CPU, dtype=FP32)
    conditioning = unet_conditioning(unet, 4)
    evaluate = graphs(unet, Recall())
    plain, recorded = both(unet, conditioning, evaluate)
    for own in ([TIMES[2], TIMES[0]], [TIMES[1], TIMES[3]], TIMES[0], [TIMES[3], TIMES[1]]):
        assert torch.equal(plain(latents(), own), recorded(latents(), own))
    assert len(evaluate) == 2


@torch.inference_mode()
def test_batches_that_take_turns_keep_their_prompts(unet_pair: UNetPair) -> None:
    unet = prepare(unet_pair(in_channels=9)[0], device=CPU, dtype=FP32)
    evaluate = graphs(unet, Recall())
    pairs = []
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        context = torch.randn(4, 7, 24, generator=generator)
        conditioning = Conditioning(context, extra_channels=torch.randn(4, 5, 8, 8, generator=generator))
        pairs.append(both(unet, conditioning, evaluate))
    for timestep in TIMES[:2]:
        for plain, recorded in pairs:
            assert torch.equal(plain(latents(), timestep), recorded(latents(), timestep))
    assert len(evaluate) == 1


@torch.inference_mode()
def test_the_recording_used_least_recently_goes(unet_pair: UNetPair) -> None:
    unet = prepare(unet_pair()[0], device=CPU, dtype=FP32)
    capture = Recall()
    evaluate = graphs(unet, capture, most=2)
    denoiser = UNetDenoiser(unet, TIMES, unet_conditioning(unet, 2), evaluate=evaluate)
    for width, made in ((8, 1), (12, 2), (8, 2), (16, 3), (8, 3), (12, 4)):
        denoiser(latents(1, width=width), TIMES[0])
        assert capture.made == made and len(evaluate) == min(made, 2)


@torch.inference_mode()
def test_where_memory_is_short_recordings_go_before_another_is_made(unet_pair: UNetPair) -> None:
    unet = prepare(unet_pair()[0], device=CPU, dtype=FP32)
    capture = Recall()
    evaluate = graphs(unet, capture, share=0.5)
    plain, denoiser = both(unet, unet_conditioning(unet, 2), evaluate)
    for width in (8, 12):
        denoiser(latents(1, width=width), TIMES[0])
    assert len(evaluate) == 2 and capture.released == 0
    capture.free = 0.4
    denoiser(latents(1, width=12), TIMES[0])  # there already: nothing is allocated
    assert len(evaluate) == 2
    x = latents(1, width=16)
    assert torch.equal(denoiser(x, TIMES[0]), plain(x, TIMES[0]))
    assert len(evaluate) == 1 and capture.released == 1


@torch.inference_mode()
def test_what_cannot_be_recorded_is_evaluated_plainly_with_one_warning(unet_pair: UNetPair) -> None:
    unet = prepare(unet_pair()[0], device=CPU, dtype=FP32)
    capture = Recall(fails=lambda made: made > 1)
    evaluate = graphs(unet, capture)
    conditioning = unet_conditioning(unet, 2)
    plain, denoiser = both(unet, conditioning, evaluate)
    denoiser(latents(1), TIMES[0])

    def all_equal() -> bool:
        given = [(latents(1, width=width), timestep) for width in (12, 16) for timestep in TIMES]
        return all(torch.equal(denoiser(*one), plain(*one)) for one in given)

    with pytest.warns(UserWarning, match=r"^evaluating without CUDA graphs, .*: CUDA out of memory[^\n]*$") as seen:
        assert all_equal()
    assert len(seen) == 1 and len(evaluate) == 0  # the memory of the others went to it


@torch.inference_mode()
@pytest.mark.parametrize(
    ("error", "attempts"),
    [(torch.OutOfMemoryError("CUDA out of memory"), [1, 5, 12]), (RuntimeError("not permitted when capturing"), [1])],
    ids=["memory", "other"],
)
def test_what_memory_was_too_short_for_is_tried_again_later(
    error: RuntimeError, attempts: list[int], unet_pair: UNetPair
) -> None:
    """As where another process on the same card takes the memory for a while: it fails twice."""
    unet = prepare(unet_pair()[0], device=CPU, dtype=FP32)
    capture = Recall(fails=lambda made: made <= 2, error=error)
    evaluate, seen = graphs(unet, capture, retry=3), []
    plain, denoiser = both(unet, unet_conditioning(unet, 2), evaluate)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for number in range(1, 16):
            made = capture.made
            assert torch.equal(denoiser(latents(1), TIMES[0]), plain(latents(1), TIMES[0]))
            if capture.made > made:
                seen.append(number)
    assert seen == attempts and len(evaluate) == (len(attempts) == 3)
    assert [str(one.message).partition(",")[0] for one in said] == ["evaluating without CUDA graphs"]


@torch.inference_mode()
def test_where_memory_is_short_all_recordings_can_be_let_go(unet_pair: UNetPair) -> None:
    unet = prepare(unet_pair()[0], device=CPU, dtype=FP32)
    captures = [Recall(), Recall()]
    several = [graphs(unet, capture) for capture in captures]
    pairs = [both(unet, unet_conditioning(unet, 2), evaluate) for evaluate in several]
    for _, denoiser in pairs:
        denoiser(latents(1), TIMES[0])
    release_graphs()
    assert [len(evaluate) for evaluate in several] == [0, 0] and [capture.released for capture in captures] == [1, 1]
    for plain, denoiser in pairs:
        assert torch.equal(denoiser(latents(1), TIMES[1]), plain(latents(1), TIMES[1]))
    assert [capture.made for capture in captures] == [2, 2]


@torch.inference_mode()
def test_another_network_is_evaluated_plainly(unet_pair: UNetPair) -> None:
    """As where what overflows is repeated by a copy in fp32."""
    unet, other = (prepare(unet_pair()[0], device=CPU, dtype=FP32) for _ in range(2))
    capture = Recall()
    evaluate = graphs(unet, capture)
    conditioning = unet_conditioning(unet, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        output = UNetDenoiser(other, TIMES, conditioning, evaluate=evaluate)(latents(1), TIMES[0])
    assert torch.equal(output, UNetDenoiser(other, TIMES, conditioning)(latents(1), TIMES[0])) and capture.made == 0

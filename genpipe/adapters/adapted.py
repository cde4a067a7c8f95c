"""A loaded pipeline of diffusers, and how batches of requests are drawn with it."""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from threading import Lock
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from genpipe.adapters.controls import told_of
from genpipe.adapters.forms import Form, form_for, forms_of, taken_by
from genpipe.adapters.pixels import pictures_of, pixels_of
from genpipe.adapters.sizes import check_size, default_size, size_factor
from genpipe.adapters.skipping import skipping
from genpipe.adapters.stepping import Step, steps_of
from genpipe.adapters.texts import Texts
from genpipe.fit import Traits
from genpipe.inputs import Control
from genpipe.messages import Notice, listed
from genpipe.request import Request


class Adapted:
    """A pipeline of diffusers that draws requests.

    Args:
        pipe: the loaded pipeline.
        device: that its networks are on.
        name: what messages call it.
        controls: control networks beside it.
        read_control: gives a control image of a request as its network is to see it.

    Attributes:
        forms: the pipelines that share its networks, by what they draw.
        signature: what the `__call__` takes of the one that draws where a request has no image, or of the only one.
        traits: which requests it draws.
    """

    def __init__(
        self,
        pipe: Any,
        *,
        device: torch.device,
        name: str,
        controls: Sequence[Any] = (),
        read_control: Callable[[Control, Request], Image.Image] | None = None,
    ) -> None:
        self.pipe, self.device, self.name = pipe, device, name
        self.forms = forms_of(pipe, controls)
        self._read_control, self._texts = read_control, Texts()
        draws = next(name for name in ("text", "image", "mask") if name in self.forms)
        self.signature = self.forms[draws].signature
        self.size = default_size(pipe, self.signature)
        factor, shown = size_factor(pipe, self.size), None if draws == "text" else draws
        takes = taken_by(self.forms)
        self.traits = Traits(
            factor=factor, tile_factor=factor, layers=0, shown=shown, takes=takes, controls=len(controls)
        )
        self._drawing = Lock()

    def defaults(self) -> dict[str, Any]:
        """What applies where a request says nothing: what the pipeline's `__call__` does without it."""
        height, width = self.size
        return {
            "height": height,
            "width": width,
            "steps": self.signature.default(self.signature.steps) or 1,
            "guidance_scale": float(self.signature.default(self.signature.guidance) or 0.0),
            "prompt_syntax": "plain",
        }

    def draw(self, requests: Sequence[Request]) -> Iterator[tuple[int, int, Tensor]]:
        """Draw a batch, and yield (step, steps, latents) after each step.

        Steps are those of all stages, of all parts of the batch that go through the networks together. Latents are what the
        running part's scheduler made, and at the last step the finished images, uint8 (B, 3, H, W).

        Raises:
            ValueError: a setting is not one for this pipeline.
            RuntimeError: it is drawing another batch, or draws another size than was asked for.
            NonFiniteError: the images are not finite.
        """
        form = form_for(requests[0], self.forms)
        form.signature.check(requests[0].arguments)
        check_size(self.pipe, (requests[0].height, requests[0].width))
        if not self._drawing.acquire(blocking=False):
            raise RuntimeError(f"{self.name} draws one batch at a time: let the other end, or close its stream")
        try:
            parts = self.parts(requests, form)
            images: dict[int, Tensor] = {}
            first = [requests[part[0]] for part in parts]
            expected = [form.signature.step_count(form.signature.keywords(request)) for request in first]
            before = 0
            for index, part in enumerate(parts):
                later, own = sum(expected[index + 1 :]), [requests[one] for one in part]
                waiting, done = None, 0
                for state in steps_of(lambda own=own: self._call(form, own), self._schedulers(), self.device):
                    if not isinstance(state, Step):
                        for one, image in zip(part, state.value, strict=True):
                            images[one] = image
                        break
                    if waiting is not None:  # it was not the last
                        yield waiting
                    done = state.done
                    waiting = (before + done, before + max(expected[index], done + 1) + later, state.latents)
                    if done < expected[index]:
                        yield waiting
                        waiting = None
                before += max(1, done)
                if index + 1 < len(parts):
                    yield before, before + later, torch.stack([images[one] for one in part])
            yield before, before, torch.stack([images[one] for one in range(len(requests))])
        finally:
            self._drawing.release()

    def parts(self, requests: Sequence[Request], form: Form) -> list[list[int]]:
        """Say which requests of a batch one call of a form draws: those that agree in all that a call has but once."""
        # What is skipped at a lower speed depends on all images of a call.
        if form.draws != "text" or not form.signature.batches or requests[0].speed != "exact":
            return [[index] for index in range(len(requests))]
        parts: dict[Any, list[int]] = {}
        for index, request in enumerate(requests):
            parts.setdefault((request.guidance_scale, bool(request.negative_prompt)), []).append(index)
        return list(parts.values())

    def _schedulers(self) -> list[Any]:
        found = {id(part): part for part in self.pipe.components.values() if hasattr(part, "set_timesteps")}
        return [part for part in found.values() if hasattr(part, "step")]

    @torch.inference_mode()
    def _call(self, form: Form, requests: Sequence[Request]) -> Tensor:
        """Draw requests by one call, as uint8 (B, 3, H, W)."""
        first, parameters = requests[0], form.signature.parameters
        keywords = form.signature.keywords(first) | pictures_of(first)
        if first.control and self._read_control is not None:
            images = [self._read_control(control, first) for control in first.control]
            keywords |= told_of(first.control, images, parameters)
        prompts = [request.prompt for request in requests]
        negative = [request.negative_prompt for request in requests]
        generators = [torch.Generator("cpu").manual_seed(request.seed) for request in requests]
        alone = len(requests) == 1
        keywords["generator"] = generators[0] if alone else generators
        if "prompt" in parameters:
            keywords["prompt"] = prompts[0] if alone else prompts
        if first.negative_prompt and "negative_prompt" in parameters:
            keywords["negative_prompt"] = negative[0] if alone else negative
        if "output_type" in parameters:
            # A watermark is put on PIL images alone.
            keywords["output_type"] = "pil" if getattr(self.pipe, "watermarker", None) is not None else "np"
        try:
            with (
                self._texts.kept(form.pipe),
                skipping(self.pipe, form.cache, first.speed),
                self._seeded(form, first.seed),
            ):
                result = form.pipe(**keywords)
        except (TypeError, AttributeError, LookupError, ArithmeticError, AssertionError) as error:
            if isinstance(error, ZeroDivisionError) and (few := form.signature.single_steps(keywords)):
                raise ValueError(f"{form.kind.__name__} cannot draw with {listed(few)} 1: give 2 or more") from error
            raise RuntimeError(f"{form.kind.__name__} failed: {type(error).__name__}: {error}") from error
        drawn = next((one for name in ("images", "image") if (one := getattr(result, name, None)) is not None), None)
        if drawn is None:
            raise ValueError(f"{form.kind.__name__} gives no images: it is a part of another pipeline")
        pixels = pixels_of(drawn, self.name)
        self._check(pixels, result, requests)
        if first.negative_prompt and (scale := _unguided(form, keywords)) is not None:
            said = "negative_prompt has no effect with this {scale}: raise it, or leave it out"
            warnings.warn(Notice(said, scale=scale), stacklevel=2)
        return pixels

    @contextmanager
    def _seeded(self, form: Form, seed: int) -> Iterator[None]:
        """Seed torch's own generator for a call that encodes control images: that of some families draws from it."""
        if form.draws != "control":
            yield
            return
        with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(seed)
            yield

    def _check(self, images: Tensor, result: Any, requests: Sequence[Request]) -> None:
        first, (height, width) = requests[0], images.shape[-2:]
        if (height, width) != (first.height, first.width):
            raise ValueError(
                f"this model draws {width}x{height} where {first.width}x{first.height} was asked for: ask for that size"
            )
        flags = getattr(result, "nsfw_content_detected", None) or getattr(result, "nsfw_detected", None) or []
        seeds = [request.seed for request, flag in zip(requests, flags, strict=False) if flag]
        if seeds:
            form = "the safety checker of {model} has blacked out the image of seed {seeds}: try another seed"
            warnings.warn(Notice(form, model=self.name, seeds=listed(seeds)), stacklevel=2)


def _unguided(form: Form, keywords: Mapping[str, Any]) -> str | None:
    """What scale has kept the call that was just made from being led away from its negative prompt; None where it was."""
    if "true_cfg_scale" in form.signature.parameters:
        name = "guidance_scale" if form.signature.guidance == "true_cfg_scale" else "true_cfg_scale (see arguments)"
        return name if keywords.get("true_cfg_scale", form.signature.default("true_cfg_scale")) <= 1 else None
    guided = getattr(form.pipe, "do_classifier_free_guidance", True)
    return None if guided else "guidance_scale"

"""A batch's control images, read for the control networks of its model."""

from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np
import torch
from PIL import Image

from genpipe.inputs import Control
from genpipe.models.conditioning import Conditioning
from genpipe.models.control import Controlled, ControlNetwork, Controls, Shown
from genpipe.models.denoiser import Denoiser, MakeDenoiser, UNetDenoiser
from genpipe.models.t2i_adapter import T2IAdapter
from genpipe.pipeline.preprocessors import preprocess
from genpipe.request import Request, check_size
from genpipe.sampling.schedule import Schedule


def shown(
    networks: Sequence[ControlNetwork],
    requests: Sequence[Request],
    schedule: Schedule,
    *,
    before: int,
    total: int,
    device: torch.device,
) -> list[Shown]:
    """Give what each control network is shown in a batch.

    Args:
        networks: the model's, one for each control image.
        requests: that agree in how many control images they have, and in when those act.
        schedule: of the steps that are taken.
        before: steps that were taken before this schedule.
        total: steps of the whole image, of which `Control.start` and `end` are shares.
        device: of the images.

    Raises:
        ValueError: an image cannot be used, or a network takes no images of that size.
        OSError: a file cannot be read.
    """
    found = []
    for network, controls in zip(networks, zip(*(request.control for request in requests), strict=True), strict=True):
        images = [control_image(each, request) for each, request in zip(controls, requests, strict=True)]
        if isinstance(network, T2IAdapter):
            check_size(requests[0].height, requests[0].width, network.config.factor)
            images = [image.convert("L") if network.config.image_channels == 1 else image for image in images]
        levels = np.stack([np.atleast_3d(np.asarray(image)) for image in images])
        pixels = torch.from_numpy(levels).permute(0, 3, 1, 2)
        scales = [each.scale for each in controls]
        times = frozenset(_acting(schedule, controls[0], before, total))
        found.append(Shown(pixels.to(device).float() / 255, scales, times))
    return found


def control_image(control: Control, request: Request) -> Image.Image:
    """Read a control image as its network is to see it: RGB, of the size that is drawn."""
    image = control.image.open().convert("RGB").resize((request.width, request.height), Image.Resampling.LANCZOS)
    return image if control.preprocessor is None else preprocess(control.preprocessor, image)


def _acting(schedule: Schedule, control: Control, before: int, total: int) -> Iterator[float]:
    """The timesteps of a schedule at which a control image acts: an evaluation counts only if all of it is between."""
    own, count = len(schedule.steps) - 1, len(schedule.evaluated)
    done, all_of_them = count * before / own, count * total / own
    seen: set[float] = set()
    for number, index in enumerate(schedule.evaluated):
        timestep = schedule.steps[index].timestep
        outside = (done + number) / all_of_them < control.start or (done + number + 1) / all_of_them > control.end
        if not outside and timestep not in seen:  # a solver may come back to one
            yield timestep
        seen.add(timestep)


def controlled_by(images: Sequence[Shown], make: "partial[UNetDenoiser]", *, guess: bool) -> MakeDenoiser[Controlled]:
    """Make the denoiser of a U-Net and its control networks from that of the U-Net alone.

    Args:
        images: what the networks are shown.
        make: `UNetDenoiser` with its options.
        guess: as in `genpipe.models.control.Controls`.
    """

    def made(network: Controlled, timesteps: Sequence[float], conditioning: Conditioning) -> Denoiser:
        control = Controls(network.networks, images, timesteps, conditioning, guess=guess)
        return make(network.unet, timesteps, conditioning, control=control)

    return made

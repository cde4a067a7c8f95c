"""What timesteps add in the residual blocks of a network, for a whole schedule at once."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from genpipe.blocks import ResidualBlock
from genpipe.models.conditioning import Conditioning
from genpipe.models.contracting import ContractingPath, Shifts


class ShiftTable:
    """What each timestep of a schedule adds in all residual blocks of a network: a row per timestep.

    It is a row per timestep and prompt where more than the timestep is embedded (SDXL's pooled text).

    Args:
        network: whose blocks they are.
        timesteps: those that it will be asked at.
        conditioning: k prompts per image.

    Attributes:
        table: (timesteps, 1 or prompts, sum of C_out).
        steps: the row of each timestep.
        widths: C_out of each block, in their order.
    """

    def __init__(self, network: ContractingPath, timesteps: Sequence[float], conditioning: Conditioning) -> None:
        distinct = list(dict.fromkeys(timesteps))
        self.steps = {timestep: step for step, timestep in enumerate(distinct)}
        times = torch.tensor(distinct, dtype=torch.float32, device=conditioning.context.device)
        embedded = (conditioning.guidance_scale, conditioning.pooled, conditioning.time_ids)
        # Prompts that agree in all that is embedded share a row: layers then add it before they round (`AddingLayer`).
        same = all(tensor is None or bool((tensor == tensor[:1]).all()) for tensor in embedded)
        count = 1 if same else len(conditioning)

        def repeated(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else torch.cat([tensor[:count]] * len(distinct))

        guidance, pooled, time_ids = (repeated(tensor) for tensor in embedded)
        embedding = network.embed(times.repeat_interleave(count), guidance=guidance, pooled=pooled, time_ids=time_ids)
        shifts = network.shifts(embedding)
        self.table = torch.cat(list(shifts.values()), dim=1).unflatten(0, (-1, count))  # (timesteps, 1 or prompts, C)
        self.widths: dict[ResidualBlock, int] = {block: shift.shape[1] for block, shift in shifts.items()}

    def is_of(self, timesteps: Sequence[float]) -> bool:
        """Whether it is of these timesteps, each once."""
        return [*self.steps] == [*dict.fromkeys(timesteps)]

    def numbers(self, timestep: float | Sequence[float]) -> list[int]:
        """The places of timesteps, one for all images or one per image, in the schedule."""
        return [self.steps[each] for each in ([timestep] if isinstance(timestep, int | float) else timestep)]

    def at(self, timestep: float | Sequence[float], rows: int) -> Tensor:
        """What timesteps add for `rows` prompts, side by side, (1, images or rows; sum of C_out).

        Args:
            timestep: one for all images, or one per image.
            rows: fewer than there are prompts are those of the last prompts.
        """
        table, steps = self.table, self.numbers(timestep)
        if len(set(steps)) == 1:
            return table[steps[0], -rows:]
        by_row = list(steps) * (rows // len(steps))
        first = table.shape[1] - rows
        return table[by_row, [0] * rows if table.shape[1] == 1 else list(range(first, first + rows))]


def by_block(shifts: Tensor, widths: Mapping[ResidualBlock, int]) -> Shifts:
    """Part what a `ShiftTable` gives by the blocks that it is for."""
    return dict(zip(widths, shifts.split(list(widths.values()), dim=1), strict=True))

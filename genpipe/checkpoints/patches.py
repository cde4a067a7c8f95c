"""What changes weights while they are read."""

from collections.abc import Set as AbstractSet
from typing import Protocol

from torch import Tensor


class Patch(Protocol):
    """A change of some weights, such as a LoRA: called with each that it names, it gives what is to be in its place.

    Attributes:
        names: the weights that it changes: the network's name ("unet", "text_encoder", …), a dot, and ours of the tensor.
    """

    @property
    def names(self) -> AbstractSet[str]: ...

    def __call__(self, name: str, tensor: Tensor) -> Tensor:
        """The weight `name`, in fp32 and in its own shape -> the same, changed, perhaps in place."""
        ...

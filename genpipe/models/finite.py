"""NaN and infinity: whether weights hold them, the copy that repeats what overflowed, and the error where that failed."""

from torch import nn

from genpipe.blocks import Network, unpacked_copy


def float32_copy(network: Network) -> Network:
    """Copy a network in fp32, to repeat what overflowed; the original, which others may be using, stays as it is."""
    return unpacked_copy(network).float()


def nonfinite_weights(network: nn.Module) -> list[str]:
    """List the names of the tensors of `network` that hold a NaN or an infinity; of a weight in fp8 or int8, its scales."""
    return [
        name
        for name, tensor in network.state_dict().items()
        if tensor.is_floating_point()
        and tensor.dtype.itemsize > 1
        and not bool(tensor.to_dense().isfinite().all())  # dense: some may be packed
    ]


class NonFiniteError(RuntimeError):
    """A network gave NaN or infinity, in fp32 too."""

    @classmethod
    def of(cls, part: str, network: nn.Module, model: str) -> "NonFiniteError":
        """Say which weights hold NaN or infinity; where none do, advise another sampler or seed."""
        values = f"the {part} of {model} gave values that are not finite"
        bad = nonfinite_weights(network)
        if not bad:
            return cls(f"{values}, in fp32 too: try another sampler or seed")
        listed = ", ".join(bad[:5]) + (f" and {len(bad) - 5} more" if len(bad) > 5 else "")
        return cls(f"{values}: its weights hold NaN or infinity in {listed}")

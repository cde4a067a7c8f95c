"""LoRAs of requests: which a prompt names, and the networks that have them."""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from genpipe.checkpoints import Checkpoint
from genpipe.checkpoints.lora import LoRA, load_lora
from genpipe.checkpoints.weights import skeleton
from genpipe.inputs import Lora
from genpipe.messages import quoted

# As in A1111: <lora:name>, <lora:name:strength>.
_TAG = re.compile(r"<lora:([^<>:]*)(?::([^<>]*))?>", re.IGNORECASE)


def named_in(prompt: str, folder: str | None) -> tuple[str, tuple[Lora, ...]]:
    """Take the LoRAs that a prompt names out of it: <lora:name:0.8>.

    Args:
        prompt: as written.
        folder: the only one that they are looked for in; None for none.

    Returns:
        The prompt without them, and them, in their order.

    Raises:
        ValueError: there is no such file in the folder, there is no folder, or a name or a strength is not one.
    """
    found = []
    for name, strength in _TAG.findall(prompt):
        name = name.strip()
        if folder is None:
            raise ValueError(
                f"the prompt names the LoRA {quoted(name)}: say where it is with --lora-dir, or use --lora FILE"
            )
        if not name or name.startswith(".") or re.search(r"[\\/\x00]", name):
            raise ValueError(
                f"the prompt names the LoRA {quoted(name)}: give a file's name in {folder}, without a path"
            )
        path = Path(folder).expanduser() / f"{name.removesuffix('.safetensors')}.safetensors"
        if not path.is_file():
            here = sorted(one.stem for one in Path(folder).expanduser().glob("*.safetensors"))
            raise ValueError(f"the LoRA {quoted(name)} is not in {folder}: it has {', '.join(here[:10]) or 'none'}")
        try:
            value = float(strength) if strength else 1.0
        except ValueError:
            raise ValueError(
                f"the strength of the LoRA {quoted(name)} must be a number, not {quoted(strength)}"
            ) from None
        found.append(Lora.of((path, value)))
    if not found:
        return prompt, ()
    return " ".join(_TAG.sub(" ", prompt).split()), tuple(found)


def patched(checkpoint: Checkpoint, loras: Sequence[Lora], *, allow_pickle: bool = False) -> Checkpoint:
    """Give the checkpoint with these LoRAs and no others: networks that change are read again, not yet prepared.

    Raises:
        CheckpointError: a file is no LoRA, is of another family, or holds what fits nothing in the model.
    """
    plain = _plain(checkpoint)
    patches = [load_lora(one.path, plain, one.strength, allow_pickle=allow_pickle) for one in loras]
    return checkpoint.with_patches(patches)


def _plain(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint's networks in the form in which files know them, without memory: they may have been prepared."""

    def bare(network):
        kind, config = type(network), network.config
        return skeleton(lambda: kind(config))

    texts = tuple(bare(one) for one in checkpoint.text_encoders)
    return replace(checkpoint, text_encoders=texts, unet=bare(checkpoint.unet), vae=bare(checkpoint.vae))


__all__ = ["LoRA", "named_in", "patched"]

"""LoRAs that prompts name, as in A1111: <lora:name:0.8>, or <lora:name:0.5:0.8> with the text encoders' strength first.

Imports no torch.
"""

import re
from pathlib import Path

from genpipe.inputs import Lora
from genpipe.messages import quoted

_TAG = re.compile(r"<lora:([^<>:]*)(?::([^<>]*))?>", re.IGNORECASE)


def named_in(prompt: str, folder: str | None) -> tuple[str, tuple[Lora, ...]]:
    """Take the LoRAs that a prompt names out of it: <lora:name:0.8>.

    Args:
        prompt: as written.
        folder: the only one that they are looked for in; None for none.

    Returns:
        The prompt without them, and them, in their order.

    Raises:
        ValueError: there is no such file in the folder, there is no folder, or a name or a strength cannot be used.
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
            values = [float(part) for part in strength.split(":")] if strength else [1.0]
        except ValueError:
            values = []
        if len(values) not in (1, 2):
            raise ValueError(
                f"the strength of the LoRA {quoted(name)} must be a number, or two, of the text encoders and of the U-Net, "
                f"not {quoted(strength)}"
            )
        found.append(Lora.of({"path": str(path), "text_strength": values[0], "strength": values[-1]}))
    if not found:
        return prompt, ()
    return " ".join(_TAG.sub(" ", prompt).split()), tuple(found)

"""What a request may carry beside words: images and LoRAs, each known by its content. Imports no torch."""

from genpipe.inputs.arguments import Argument, ArgumentList
from genpipe.inputs.controls import MAX_SCALE, PREPROCESSORS, Control, ControlList
from genpipe.inputs.images import ImageInput, InputImage
from genpipe.inputs.loras import Lora, LoraList

__all__ = [
    "MAX_SCALE",
    "PREPROCESSORS",
    "Argument",
    "ArgumentList",
    "Control",
    "ControlList",
    "ImageInput",
    "InputImage",
    "Lora",
    "LoraList",
]

"""Classes of diffusers' pipelines: found by their name, and refused where they draw no images from text."""

import inspect
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

from genpipe.adapters.signature import Signature
from genpipe.checkpoints.errors import CheckpointError
from genpipe.checkpoints.foreign import LIBRARIES, Foreign
from genpipe.messages import listed, quoted

# What parameters of pipelines that make something else are called.
_KINDS = {
    "videos": ("num_frames", "video_length", "frames", "motion"),
    "sound": ("audio", "duration", "music"),
    "shapes": ("frame_size",),
}
# What packages are called where pip has them.
_PACKAGES = {"PIL": "pillow", "cv2": "opencv-python", "google.protobuf": "protobuf", "bs4": "beautifulsoup4"}
# What diffusers calls packages -> what they are imported as.
_MODULES = {"opencv": "cv2"}


def find_class(wanted: Foreign, source: str, *, trusted: bool = False) -> type | None:
    """Find the class of a pipeline in the installed diffusers; None for code of the repository's own that is trusted.

    Args:
        wanted: what the model's index says.
        source: what messages call the model.
        trusted: whether the repository's own code may run.

    Raises:
        CheckpointError: diffusers does not have it, or lacks a package for it; it makes something else than images from
            text; or it is code of the repository's own.
    """
    import diffusers
    from diffusers.pipelines.auto_pipeline import _get_connected_pipeline

    if wanted.code and not trusted:
        raise CheckpointError(
            f"{source} comes with code of its own ({listed(wanted.code)}), which runs with all that you may do: "
            "if you trust it, give trust_remote_code (--trust-remote-code)"
        )
    if wanted.own_class:
        return None
    kind = getattr(diffusers, wanted.name, None)
    if not inspect.isclass(kind):
        installed, saved = version("diffusers"), wanted.version
        newer = saved is not None and _numbers(saved) > _numbers(installed)
        fix = f": it was saved by diffusers {saved}: pip install -U 'diffusers>={saved}'" if newer else ""
        raise CheckpointError(
            f"{source} is a {wanted.name}, which the installed diffusers {installed} does not have{fix}"
        )
    if missing := missing_packages(kind):
        raise CheckpointError(f"{source} is a {wanted.name}, which needs {listed(missing)}: {pip_line(missing)}")
    kind = _get_connected_pipeline(kind) or kind  # two stages where it is one of them
    refuse_others(kind, source)
    for part, (library, name) in wanted.parts.items():
        if library not in LIBRARIES and not wanted.code and is_stray(library, name) and own_part(kind, name) is None:
            raise CheckpointError(
                f"{source}: its {part} is a {name} of {quoted(library)}, which diffusers does not have"
            )
    return kind


def is_stray(library: str, name: str) -> bool:
    """Whether diffusers does not find a class where a model's index says that it is."""
    import diffusers

    if library == "diffusers":
        return not hasattr(diffusers, name)
    return library not in LIBRARIES and not hasattr(diffusers.pipelines, library)


def own_part(kind: type, name: str) -> Any:
    """The class of this name that a pipeline's constructor asks for; None where it asks for none."""
    parameters = inspect.signature(kind.__init__).parameters.values()
    found = (one.annotation for one in parameters if getattr(one.annotation, "__name__", None) == name)
    return next(found, None)


def refuse_others(kind: type, source: str) -> None:
    """Raise CheckpointError unless a class makes images of text, or of text and an image."""
    signature = Signature.of(kind)
    for made, words in _KINDS.items():
        if any(word in name for name in signature.parameters for word in words):
            raise CheckpointError(f"{source} is a {kind.__name__}, which makes {made}: genpipe draws images from text")
    if needed := [name for name in signature.needs() if name != "image"]:
        raise CheckpointError(
            f"{source} is a {kind.__name__}, which cannot draw without {listed(needed)}: genpipe draws images from text"
        )
    if "prompt" not in signature.parameters and "image" not in signature.parameters:
        raise CheckpointError(f"{source} is a {kind.__name__}, which takes no prompt: genpipe draws images from text")


def missing_packages(kind: Any) -> list[str]:
    """The packages that a class wants and that are not installed: diffusers has a stand-in in its place."""
    backends: list[str] = getattr(kind, "_backends", [])
    modules = [_MODULES.get(name, name) for name in backends]
    return [name for name in modules if find_spec(name) is None]


def missing_of(error: BaseException) -> list[str]:
    """The packages that an error says are missing."""
    found: list[str] = []
    if isinstance(error, ModuleNotFoundError) and error.name is not None:
        found.append(error.name)
    if isinstance(error, ImportError | ValueError):
        text = str(error).lower()
        found += [name for name in ("sentencepiece", "protobuf", "tiktoken", "ftfy", "accelerate") if name in text]
    return list(dict.fromkeys(name for name in found if find_spec(name.partition(".")[0]) is None))


def pip_line(packages: list[str]) -> str:
    """The command that installs packages."""
    return f"pip install {' '.join(_PACKAGES.get(name, name) for name in packages)}"


def _numbers(text: str) -> tuple[int, ...]:
    """The numbers of a version, as far as it has them: (0, 42, 1)."""
    found = []
    for part in text.split("."):
        if not part.isdecimal():
            break
        found.append(int(part))
    return tuple(found)

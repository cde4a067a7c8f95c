"""What an image's file says of itself: written into its texts, and read from them.

Files carry what made them twice: as A1111's text, for people and the tools that read it, and as JSON, from which
`read_request` gives the `Request` back; `genpipe.imprint` knows where in the file. Of files that other programs wrote their
own texts are read.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

import genpipe
from genpipe.dialects.a1111 import parameters_text, parse_parameters
from genpipe.dialects.arguments import parse_arguments
from genpipe.dialects.comfyui import parse_graph
from genpipe.dialects.invokeai import parse_metadata, parse_old_metadata
from genpipe.dialects.parameters import Parameters
from genpipe.fields import defaults_of, settings_of
from genpipe.images import open_image
from genpipe.imprint import COMPOSITE, MADE, PARAMETERS, SOURCE, TRAINED, texts_in
from genpipe.messages import quoted
from genpipe.request import Request
from genpipe.spec import ModelSpec

# What an image says of itself besides its request: the fields of `ModelSpec`, and these.
BESIDES = ("version", "best_of")


def annotate(
    image: Image.Image,
    request: Request,
    made_by: Mapping[str, Any],
    *,
    sampler: str | None = None,
    prompts: tuple[str, str] | None = None,
) -> None:
    """Write into `image.info` what made the image, and that a machine did.

    Args:
        image: written to.
        request: what was asked for.
        made_by: of the model: its path, hub id or "embedded" under "model", and the other fields of `ModelSpec` that
            images depend on.
        sampler: the sampler that ran, where the request leaves it to the checkpoint.
        prompts: prompt and negative prompt with the alternatives that were chosen, for A1111, which knows no others.
    """
    made = {**request.to_dict(), **made_by, "version": genpipe.__version__}
    image.info[MADE] = json.dumps(made, ensure_ascii=False)
    image.info[SOURCE] = TRAINED if request.image is None else COMPOSITE
    image.info[PARAMETERS] = parameters_text(request, made_by["model"], sampler=sampler, prompts=prompts)


def annotate_choice(image: Image.Image, scores: Sequence[Mapping[str, Any]]) -> None:
    """Add to what `annotate` wrote, under "best_of", the scores of all the images that this one was chosen from."""
    image.info[MADE] = json.dumps({**json.loads(image.info[MADE]), "best_of": list(scores)}, ensure_ascii=False)


class Made(NamedTuple):
    """What a file says of how to draw its image again.

    Attributes:
        request: settings of `Request`, by name: all of them where genpipe wrote the file.
        model: options of `ModelSpec`, by name; none where another program wrote it.
        unread: what else the file says that genpipe cannot take, by that program's names.
        program: that wrote it.
    """

    request: dict[str, Any]
    model: dict[str, Any]
    unread: dict[str, str]
    program: str = "genpipe"


def _of_a1111(text: str) -> Parameters | None:
    return None if text.lstrip().startswith("{") else parse_parameters(text)


# Where programs keep their texts, and what reads them; the first that can be read counts.
_READERS: tuple[tuple[str, str, Callable[[str], Parameters | None]], ...] = (
    (PARAMETERS, "A1111", _of_a1111),
    ("invokeai_metadata", "InvokeAI", parse_metadata),
    ("sd-metadata", "InvokeAI", parse_old_metadata),
    ("prompt", "ComfyUI", parse_graph),
    *((key, "diffusers", parse_arguments) for key in (PARAMETERS, "metadata", "comment", "description", "Comment")),
)


def read_made(source: str | Path | Image.Image) -> Made:
    """Read how to draw an image again, from a file that genpipe, A1111, ComfyUI, InvokeAI or a program on diffusers wrote.

    Raises:
        ValueError: not an image; one that does not say what made it, or whose text is damaged.
        OSError: the file cannot be read.
    """
    with _opened(source) as (name, image):
        texts = texts_in(image)
    if MADE in texts:
        request, spec = split_metadata(_metadata(name, texts))
        return Made(request.to_dict(), spec.to_dict(), {})
    return _read_foreign(name, texts)


def _read_foreign(name: str, texts: Mapping[str, str]) -> Made:
    for key, program, parse in _READERS:
        found = parse(texts[key]) if key in texts else None
        if found is not None:
            # A name says nothing of where the checkpoint lies.
            unread = {**({"Model": found.model} if found.model else {}), **found.unread}
            return Made(found.settings, {}, unread, program)
    raise ValueError(
        f"{name} does not say what made it: give a file that genpipe, A1111, ComfyUI or InvokeAI wrote, "
        "and no program has stripped"
    )


def what_it_says(source: str | Path | Image.Image) -> dict[str, Any]:
    """Give all that an image's file says of how it was made, for people to read; settings at their defaults are left out.

    Files that the image was made from need not be there any more. Errors as in `read_made`.
    """
    with _opened(source) as (name, image):
        texts = texts_in(image)
    if MADE in texts:
        program, unread = "genpipe", {}
        found = _metadata(name, texts)
        usual = {**defaults_of(Request), **defaults_of(ModelSpec)}
        found = {key: _in_words(value) for key, value in found.items() if value not in ([], usual.get(key, ...))}
        if isinstance(found.get("best_of"), list):
            found["best_of"] = ", ".join(f"seed {one['seed']}: {one['total']:.3g}" for one in found["best_of"])
    else:
        made = _read_foreign(name, texts)
        found, unread, program = made.request, made.unread, made.program
    left = {f"not read: {key}": value for key, value in unread.items()}
    return {"made by": program, **({"source": texts[SOURCE]} if SOURCE in texts else {}), **found, **left}


def _in_words(value: Any) -> Any:
    """Files by their paths, or by their content where they were in memory."""
    if isinstance(value, list) and value and all(isinstance(one, dict) and "sha256" in one for one in value):
        return ", ".join(str(_in_words(one)) for one in value)
    if not isinstance(value, dict) or "sha256" not in value:
        return value
    name = value.get("path") or f"an image in memory, sha256 {str(value['sha256'])[:12]}…"
    return ":".join([name, *(f"{value[key]}" for key in ("text_strength", "strength") if key in value)])


def read_metadata(source: str | Path | Image.Image) -> dict[str, Any]:
    """Read what an image of genpipe's says of itself: the fields of `Request` and `ModelSpec`, and `BESIDES`.

    Raises:
        ValueError: not an image, or one without a readable `genpipe` text (it was not made by genpipe, or has been
            saved again by a program that drops such texts).
        OSError: the file cannot be read.
    """
    with _opened(source) as (name, image):
        texts = texts_in(image)
    return _metadata(name, texts)


def _metadata(name: str, texts: Mapping[str, str]) -> dict[str, Any]:
    if MADE not in texts:
        raise ValueError(f"{name} does not say what made it: give a file that genpipe wrote")
    try:
        made = json.loads(texts[MADE])
    except (ValueError, RecursionError):
        made = None
    if not isinstance(made, dict):
        raise ValueError(f"{name} holds a damaged genpipe text: give a file that genpipe wrote")
    return made


def read_request(source: str | Path | Image.Image) -> Request:
    """Read the request that made an image, from a file that genpipe wrote. Errors as in `read_metadata`."""
    return split_metadata(read_metadata(source))[0]


def split_metadata(made: Mapping[str, Any]) -> tuple[Request, ModelSpec]:
    """Give what `read_metadata` read as the request and the model that made the image.

    Raises:
        ValueError: a key is unknown, or a value is out of its range.
    """
    of_model = settings_of(ModelSpec)
    request = {key: value for key, value in made.items() if key not in of_model and key not in BESIDES}
    request.setdefault("prompt_syntax", "plain")  # a file that does not say is older than the others
    return Request.from_dict(request), ModelSpec.from_dict({key: made[key] for key in of_model if key in made})


@contextmanager
def _opened(source: str | Path | Image.Image) -> Iterator[tuple[str, Image.Image]]:
    """A name for messages and the image, which is closed if it had to be opened."""
    if isinstance(source, Image.Image):
        yield "this image", source
        return
    if not isinstance(source, str | Path):
        raise ValueError(f"{quoted(source)} is not an image: give a PIL image, or the path of a file")
    with open_image(source) as image:
        yield str(source), image

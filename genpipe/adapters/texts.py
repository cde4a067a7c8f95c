"""What the text encoders of a pipeline of diffusers made of prompts, kept from one call to the next.

Pipelines have a method that encodes prompts, some of them two. While a call runs, those of the pipeline and of the stages in
it are replaced by ones that look first whether they were called with the very same arguments before: so images are the same
bits, and text encoders that are kept off a GPU stay there.
"""

import functools
import inspect
import re
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

from genpipe.adapters.instead import instead

_METHOD = re.compile(r"_?encode_(\w+_)?prompt")
_PLAIN = (bool, int, float, str, torch.device, torch.dtype, type(None))


class Texts:
    """The results for the last calls.

    Args:
        most: how many are kept.
    """

    def __init__(self, most: int = 16) -> None:
        self._most = most
        self._kept: OrderedDict[Any, Any] = OrderedDict()

    @contextmanager
    def kept(self, pipe: Any) -> Iterator[None]:
        """Let a pipeline, and the pipelines in it, take what is kept in place of encoding it again."""
        with ExitStack() as hooks:
            for each in (pipe, *(value for value in vars(pipe).values() if hasattr(value, "components"))):
                for name in _methods_of(type(each)):
                    hooks.enter_context(instead(each, name, self._looked_up(each, getattr(each, name))))
            yield

    def _looked_up(self, owner: Any, encode: Callable[..., Any]) -> Callable[..., Any]:
        taken, names = inspect.signature(encode), _named_in(type(owner), encode.__name__)

        @functools.wraps(encode)
        def run(*args: Any, **kwargs: Any) -> Any:
            # What a pipeline has noted of a call, as the scale of guidance, counts where its encoding looks at it.
            noted = {name: value for name in names if isinstance(value := vars(owner).get(name), _PLAIN)}
            key = _key([type(owner).__name__, encode.__name__, noted, taken.bind(*args, **kwargs).arguments])
            if key is None:
                return encode(*args, **kwargs)
            if key not in self._kept:
                self._kept[key] = _copied(encode(*args, **kwargs))
                if len(self._kept) > self._most:
                    self._kept.popitem(last=False)
            self._kept.move_to_end(key)
            return _copied(self._kept[key])

        return run


@functools.cache
def _methods_of(kind: type) -> tuple[str, ...]:
    """The names of a class's methods that encode prompts."""
    return tuple(name for name in dir(kind) if _METHOD.fullmatch(name) and callable(getattr(kind, name)))


@functools.cache
def _named_in(kind: type, method: str) -> frozenset[str]:
    """The names that a method's code has, and that of the methods and properties of its class which it names."""
    names, waiting = set[str](), [method]
    while waiting:
        found = getattr(kind, waiting.pop(), None)
        found = found.fget if isinstance(found, property) else found
        code = getattr(inspect.unwrap(found), "__code__", None) if callable(found) else None
        new = set() if code is None else set(code.co_names) - names
        names |= new
        waiting += new
    return frozenset(names)


def _key(value: Any) -> Any:
    """What tells equal arguments; None where one of them is not plain, as a tensor or an image."""
    if isinstance(value, _PLAIN):
        return type(value).__name__, value
    if isinstance(value, dict):
        value = [part for item in sorted(value.items()) for part in item]
    if not isinstance(value, list | tuple):
        return None
    parts = tuple(_key(part) for part in value)
    return None if None in parts else parts


def _copied(value: Any) -> Any:
    """A result whose tensors may be changed without changing the kept ones."""
    if isinstance(value, Tensor):
        return value.clone()
    if type(value) in (tuple, list):
        return type(value)(_copied(part) for part in value)
    return value

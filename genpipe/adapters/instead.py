"""Another method in the place of an object's own, for a while."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def instead(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Let an object have another method in place of that of its class, or of one that it was given like that."""
    given = {name: vars(owner)[name]} if name in vars(owner) else {}
    setattr(owner, name, value)
    try:
        yield
    finally:
        delattr(owner, name)
        for each, before in given.items():
            setattr(owner, each, before)

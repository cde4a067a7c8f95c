"""Folders of tiny pipelines, saved once per session."""

import importlib
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from genpipe.pipeline import Pipeline
from genpipe.pipeline.wrapped import WrappedDrawer
from tests.adapters.tiny import Family

PLACES = Path(__file__).parent / "families"


def families() -> list[Family]:
    """All families that the modules in `families` hold."""
    found = []
    for path in sorted(PLACES.glob("*.py")):
        module = importlib.import_module(f"tests.adapters.families.{path.stem}")
        found += [one for one in vars(module).values() if isinstance(one, Family)]
    return found


def family_named(name: str) -> Family:
    """The family of this name."""
    return next(one for one in families() if one.name == name)


@contextmanager
def encoded_by(pipeline: Pipeline) -> Iterator[list[str]]:
    """The names of the text encoders that ran."""
    assert isinstance(pipeline.drawer, WrappedDrawer)
    parts, ran = pipeline.drawer.adapted.pipe.components.items(), []
    networks = [(name, part) for name, part in parts if "text_encoder" in name and isinstance(part, nn.Module)]
    hooks = [
        part.register_forward_pre_hook(lambda _module, _given, name=name: ran.append(name)) for name, part in networks
    ]
    yield ran
    for hook in hooks:
        hook.remove()


@pytest.fixture(scope="session")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Family], Path]:
    """Save a family's pipeline, once."""
    root = tmp_path_factory.mktemp("families")

    @cache
    def save(name: str) -> Path:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            family_named(name).build().save_pretrained(root / name)
        return root / name

    return lambda family: save(family.name)


@pytest.fixture(scope="session")
def loaded(folder_of: Callable[[Family], Path]) -> Callable[[Family], Pipeline]:
    """Load a family's pipeline in genpipe, once."""

    @cache
    def load(folder: Path) -> Pipeline:
        return Pipeline.from_pretrained(folder, device="cpu", dtype="fp32")

    return lambda family: load(folder_of(family))


@pytest.fixture(params=[one for one in families() if not one.large], ids=lambda family: family.name)
def family(request: Any) -> Family:
    """Each family in turn, but those of large images."""
    return request.param

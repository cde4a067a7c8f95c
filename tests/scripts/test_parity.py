"""The check against diffusers, run for real on families whose networks are made tiny."""

import importlib
from pathlib import Path
from types import ModuleType

import pytest
import torch

from scripts.make.checkpoint import FAMILIES, narrow


@pytest.fixture(scope="module")
def parity() -> ModuleType:
    return importlib.import_module("scripts.evaluate.parity")


@pytest.mark.parametrize("name", ["sd15", "sdxl", "sdxl_turbo", "sdxl_refiner"])
def test_each_family_agrees_and_another_seed_does_not(parity: ModuleType, tmp_path: Path, name: str) -> None:
    family = narrow(FAMILIES[name])
    result = parity.check(family, tmp_path, family.steps)
    assert result["ok"], result
    assert all(row["latent_difference"] <= 1e-4 for row in result["solvers"].values())
    assert result["changed_seed"]["pixel_difference"] > 20


@pytest.mark.parametrize(("name", "beside"), [("sd15", "image"), ("sdxl", "control")])
def test_so_it_is_with_an_image(parity: ModuleType, tmp_path: Path, name: str, beside: str) -> None:
    family = parity.BESIDE[beside](narrow(FAMILIES[name]))
    result = parity.check(family, tmp_path, family.steps)
    assert result["ok"], result


def test_a_difference_is_told(parity: ModuleType) -> None:
    ours, theirs = ((torch.zeros(2, 2, 3).numpy(), torch.ones(1, 4, 2, 2)) for _ in range(2))
    assert parity.agrees(parity.compare(ours, theirs))
    ours[0][0, 0, 0] = 2.0
    assert not parity.agrees(parity.compare(ours, theirs))

import subprocess
import sys

import pytest

import genpipe.blocks
import genpipe.vision


def test_the_blocks_are_those_that_all_networks_use() -> None:
    assert {name: getattr(genpipe.vision, name) for name in genpipe.vision.__all__} == {
        name: getattr(genpipe.blocks, name) for name in genpipe.vision.__all__
    }
    with pytest.raises(AttributeError, match=r"module 'genpipe.vision' has no attribute 'conv9x9'"):
        genpipe.vision.conv9x9  # noqa: B018  # pyright: ignore[reportAttributeAccessIssue]


def test_asking_for_none_of_them_loads_no_torch() -> None:
    code = "import sys, genpipe.vision, genpipe.vision.reading; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)

"""How the work of a step is shared out among threads."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from genpipe.checkpoints import save_checkpoint
from scripts.benchmark import threads
from tests.conftest import tiny_parts

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the work of a thread is read from Linux's /proc")


@pytest.mark.parametrize(
    ("others", "first", "serial", "speedup"),
    [([2.0, 2.0, 2.0], 2.0, 0.0, 4.0), ([1.0], 3.0, 0.5, 4 / 3), ([3.0, 1.0], 2.0, 0.0, 2.0), ([0.0], 5.0, 1.0, 1.0)],
)
def test_what_the_first_thread_does_beyond_the_others_is_serial(
    others: list[float], first: float, serial: float, speedup: float
) -> None:
    found = threads.shared_out(others, first)
    assert found == pytest.approx({"work_s": first + sum(others), "serial": serial, "speedup": speedup})


def test_it_counts_for_real(tmp_path: Path, capsys: Any) -> None:
    save_checkpoint(tmp_path / "model", **tiny_parts(length=77, width=768))
    threads.main(["--threads", "2", "--size", "64", "--checkpoint", str(tmp_path / "model")])
    (row,) = json.loads(capsys.readouterr().out.splitlines()[-1]).values()
    assert row["work_s"] > 0 and 0 <= row["serial"] <= 1 and 1 <= row["speedup"] <= 2

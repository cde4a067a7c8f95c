"""The benchmark of the server, in small: it finds every image right, and nothing broken."""

import json

import pytest

from scripts.benchmark.hostile import hostile
from scripts.benchmark.serve import main


def test_images_are_right_while_workers_die(capsys: pytest.CaptureFixture[str]) -> None:
    main(["correct", "--requests", "8", "--clients", "4", "--kills", "1"])
    found = json.loads(capsys.readouterr().out.splitlines()[-1])["correct"]
    assert found["requests"] == 8 and found["kills"] == 1
    assert found["lost"] == 0 and found["not_the_pipelines"] == 0 and found["reasons"] == []
    assert 0 < found["p50_s"] <= found["p99_s"]


def test_hostile_requests_break_nothing() -> None:
    found = hostile(30)
    assert sum(found["statuses"].values()) == 30 and found["statuses"]["400"] > 10

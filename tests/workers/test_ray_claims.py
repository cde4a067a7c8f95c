"""What the ray engine claims of a cluster, with a Ray that only notes it: so it is known without Ray, and without GPUs."""

import sys
from dataclasses import asdict
from types import SimpleNamespace
from typing import Any

import pytest

from genpipe.workers.messages import Job, Work
from genpipe.workers.ray_engine import RayEngine
from genpipe.workers.renderer import DEPTH_BESIDE
from tests.render.conftest import MODEL


class Ray:
    """A cluster of so many GPUs and processors, whose actors answer at once that they have loaded the model."""

    def __init__(self, **resources: float) -> None:
        self.resources, self.claimed, self.drawn = resources, [], []
        self.exceptions = SimpleNamespace(RayTaskError=KeyError, RayError=LookupError)

    def is_initialized(self) -> bool:
        return True

    def cluster_resources(self) -> dict[str, float]:
        return self.resources

    def nodes(self) -> list[dict[str, Any]]:
        return [{"Alive": True}]

    def remote(self, **needs: Any) -> Any:
        def actor(job: dict[str, Any], device: str) -> Any:
            self.claimed.append((needs, device))
            draw = SimpleNamespace(remote=lambda work: self.drawn.append(work) or "drawing")
            return SimpleNamespace(open=SimpleNamespace(remote=lambda: object()), draw=draw)

        return lambda kind: SimpleNamespace(remote=actor)

    def wait(self, references: list[Any], timeout: float) -> tuple[list[Any], list[Any]]:
        return references, []

    def get(self, reference: Any) -> Any:
        return asdict(MODEL)


@pytest.mark.parametrize(
    ("resources", "devices", "claims", "device"),
    [
        ({"GPU": 2.0, "CPU": 8.0}, "auto", [{"num_gpus": 1}] * 2, "cuda"),
        ({"GPU": 4.0, "CPU": 8.0}, "cuda", [{"num_gpus": 1}] * 4, "cuda"),
        ({"GPU": 4.0, "CPU": 8.0}, "cuda:0,cuda:1", [{"num_gpus": 1}] * 2, "cuda"),
        ({"GPU": 4.0, "CPU": 8.0}, "cpu:3", [{"num_cpus": 1}] * 3, "cpu"),
    ],
)
def test_each_worker_claims_a_gpu_or_a_processor(monkeypatch, resources, devices, claims, device):
    ray = Ray(**resources)
    monkeypatch.setitem(sys.modules, "ray", ray)
    engine = RayEngine(devices=devices)
    assert engine.open(Job("out")) == MODEL
    assert [
        {key: value for key, value in needs.items() if key != "max_concurrency"} for needs, _ in ray.claimed
    ] == claims
    assert {one for _, one in ray.claimed} == {device} and engine.workers == len(claims)
    # Batches are drawn, one is told to stop, and none of these calls waits for another.
    assert all(needs["max_concurrency"] > DEPTH_BESIDE for needs, _ in ray.claimed)


def test_a_batch_travels_whole(monkeypatch):
    ray = Ray(GPU=1.0)
    monkeypatch.setitem(sys.modules, "ray", ray)
    engine = RayEngine()
    engine.open(Job("out"))
    work = Work(3, [], "shape", 100, alone=True)
    engine.submit(work)
    assert [Work.from_dict(one) for one in ray.drawn] == [work]

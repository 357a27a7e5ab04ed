"""benchmarks/scale.py counts the requests that are really sent."""

from __future__ import annotations

import importlib
from types import ModuleType

import pytest
import torch

import holdfast
from holdfast.runs.checkpoint import open_checkpoint
from holdfast.storage.places import open_source, place_of
from holdfast.storage.remote import store
from holdfast.storage.requests import WriteRequest
from tests.docs.pages import ROOT
from tests.remote.servers import Bucket
from tests.remote.test_runs import train


@pytest.fixture
def scale(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module("scale")


@pytest.mark.parametrize("size", [1, store.PART, store.PART + 1, 2 * store.PART, 20_000_000])
def test_an_upload_and_a_reading_send_as_many(faulty: Bucket, scale: ModuleType, size: int) -> None:
    path = f"{faulty.url}/rank-00000.safetensors"
    faulty.server.fault("", times=0)
    with place_of(path).stage(path, durable=True) as staged:
        staged.write([WriteRequest(0, bytes(size))])
    sent = [faulty.server.seen(f"{method} /{faulty.name}/rank") for method in ("PUT", "POST")]
    assert sum(sent) == scale.upload_requests(size)
    faulty.server.fault("", times=0)
    source = open_source(path)
    assert faulty.server.seen("HEAD /") == 1
    for at in range(0, size, store.PART):
        source.read_into(at, memoryview(bytearray(min(store.PART, size - at))))
    source.close()
    assert faulty.server.seen("GET /") == -(-size // store.PART)


def test_parts_grow_where_an_object_would_have_too_many(scale: ModuleType) -> None:
    assert scale.upload_requests(9_000 * store.PART) == 9_002
    assert scale.upload_requests(20_000 * store.PART) == 9_002


def test_opening_a_checkpoint_asks_for_each_container(faulty: Bucket) -> None:
    train(f"{faulty.url}/a", 1)
    faulty.server.fault("", times=0)
    with open_checkpoint(f"{faulty.url}/a/step-00000003") as checkpoint:
        containers = [name for name in checkpoint.manifest.files if name.endswith(".safetensors")]
        assert len(containers) >= 2
        for name in containers:
            assert faulty.server.seen(f"{name}?") == 1


def test_a_restore_with_a_spare_downloads_once(faulty: Bucket) -> None:
    url, net = f"{faulty.url}/w.safetensors", torch.nn.Linear(2_000, 3_000, bias=False)  # 24 MB
    holdfast.save(net, url)
    parts = {}
    for spare in (False, True):
        other = torch.nn.Linear(2_000, 3_000, bias=False)
        faulty.server.fault("", times=0)
        holdfast.restore(url, model=other, spare=spare)
        parts[spare] = faulty.server.seen("GET /")
        assert torch.equal(other.weight, net.weight)
    assert (parts[False], parts[True]) == (7, 4)  # a header, and three parts, twice or once

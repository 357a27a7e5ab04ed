"""Real S3 servers on the loopback device, one bucket for each test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from holdfast.storage.remote import store
from tests.remote.servers import Bucket, Server, use


@pytest.fixture(scope="session")
def moto() -> Iterator[Server]:
    """moto_server, as it is."""
    server = Server("-m", "moto.server", "-H", "127.0.0.1", "-p", "PORT")
    yield server
    server.stop()


@pytest.fixture(scope="session")
def faulty_server() -> Iterator[Server]:
    """The same with faults on request; see server.py."""
    server = Server("-m", "tests.remote.server", "PORT")
    yield server
    server.stop()


@pytest.fixture
def bucket(moto: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    yield use(moto, monkeypatch)
    store._store.cache_clear()


@pytest.fixture
def faulty(faulty_server: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    yield use(faulty_server, monkeypatch)
    faulty_server.fault("", times=0)
    store._store.cache_clear()


@pytest.fixture
def memory() -> Iterator[str]:
    """A store in this process."""
    yield "memory://tests"
    store._store.cache_clear()

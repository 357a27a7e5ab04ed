from __future__ import annotations

import os
from pathlib import Path

import pytest

from holdfast.errors import ArgumentError, NotFound, RefusedFile, StorageError
from holdfast.storage.backend import (
    Backend,
    Counting,
    Faulty,
    LocalBackend,
    MemoryBackend,
    ReadOnly,
    Retrying,
    contained,
)

FILES = {"run.json": b"{}", "step-1/manifest.json": b"one", "step-1/model": b"w" * 100, "step-2/manifest.json": b"two"}


@pytest.fixture(params=["local", "memory", "wrapped"])
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> Backend:
    made: Backend = MemoryBackend() if request.param == "memory" else LocalBackend(tmp_path / "run", durable=False)
    if request.param == "wrapped":
        made = Retrying(Counting(made))
    for key, data in FILES.items():
        made.put(key, data)
    return made


def test_reading(backend: Backend) -> None:
    assert backend.read("step-1/manifest.json", 3) == b"one"
    source = backend.source("step-1/model")
    assert source.size == 100
    assert source.read(98, 2) == b"ww"
    buffer = bytearray(3)
    source.read_into(0, memoryview(buffer))
    assert buffer == b"www"
    assert source.name.endswith("step-1/model")
    source.close()


def test_listing(backend: Backend) -> None:
    assert backend.list("") == ["run.json", "step-1", "step-2"]
    assert backend.list("step-1") == ["manifest.json", "model"]
    with pytest.raises(NotFound, match="no such folder"):
        backend.list("step-3")


def test_putting_and_deleting(backend: Backend) -> None:
    backend.put("run.json", b"new")
    assert backend.read("run.json", 100) == b"new"
    backend.delete("step-1")
    assert backend.list("") == ["run.json", "step-2"]
    with pytest.raises(NotFound, match="no such folder"):
        backend.delete("step-1")


def test_what_is_missing_or_too_large(backend: Backend) -> None:
    with pytest.raises(NotFound, match="no such file"):
        backend.source("step-1/none")
    with pytest.raises(RefusedFile, match="has 100 bytes, the limit for such a file is 99"):
        backend.read("step-1/model", 99)


@pytest.mark.parametrize("key", ["", "/etc/passwd", "..", "a/../b", "a//b", "./a", "a/", "a\0b", "a/.."])
def test_keys_that_could_lead_out(backend: Backend, key: str) -> None:
    for verb in (backend.source, backend.delete, lambda key: backend.put(key, b""), lambda key: backend.read(key, 9)):
        with pytest.raises(RefusedFile, match="is not a plain relative path; it could lead out of its folder"):
            verb(key)
    if key:
        with pytest.raises(RefusedFile, match="is not a plain relative path"):
            backend.list(key)


def test_links_that_lead_out(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"s")
    (tmp_path / "run-other").mkdir()
    (tmp_path / "run" / "inside").mkdir(parents=True)
    (tmp_path / "run" / "inside" / "file").write_bytes(b"f")
    for name, target in {"out": "../secret", "folder": "..", "sibling": "../run-other", "in": "inside/file"}.items():
        os.symlink(target, tmp_path / "run" / name)
    backend = LocalBackend(tmp_path / "run")
    for key in ("out", "folder/secret", "folder", "sibling"):
        with pytest.raises(RefusedFile, match=r"is a link that leads out of `.*run`"):
            backend.source(key)
    assert backend.read("in", 10) == b"f"
    assert contained(str(tmp_path / "run"), "in") == os.path.realpath(tmp_path / "run" / "inside" / "file")


def test_listing_a_file(tmp_path: Path) -> None:
    backend = LocalBackend(tmp_path)
    backend.put("file", b"")
    with pytest.raises(StorageError, match="can't be listed: Not a directory"):
        backend.list("file")


def test_staging_in_a_folder(tmp_path: Path) -> None:
    with LocalBackend(tmp_path / "run").stage("step-3") as folder:
        folder.write_bytes("manifest.json", b"three")
        folder.commit()
    assert LocalBackend(tmp_path / "run").read("step-3/manifest.json", 9) == b"three"


def test_reading_only() -> None:
    backend = ReadOnly(MemoryBackend(FILES))
    assert backend.read("run.json", 9) == b"{}"
    with pytest.raises(StorageError, match=r"`run\.json`: put refused, this store is opened for reading only"):
        backend.put("run.json", b"")
    with pytest.raises(StorageError, match="`step-1`: delete refused"):
        backend.delete("step-1")


def test_counting() -> None:
    backend = Counting(MemoryBackend(FILES))
    backend.list("")
    backend.read("run.json", 9)
    source = backend.source("step-1/model")
    source.read(0, 1)
    source.read_into(0, memoryview(bytearray(1)))
    assert backend.calls == {"list": 1, "read": 1, "source": 1, "source.read": 2}


def test_faults_and_retries() -> None:
    waits: list[float] = []
    inner = Faulty(MemoryBackend(FILES), {1, 2, 4, 5, 6, 8})
    backend = Retrying(inner, attempts=3, wait=0.5, sleep=waits.append)
    assert backend.read("run.json", 9) == b"{}"  # the third attempt
    assert waits == [0.5, 1.0]
    with pytest.raises(StorageError, match=r"`run.json`: read failed on purpose \(call 6\)"):
        backend.read("run.json", 9)
    source = backend.source("step-1/model")
    assert source.read(0, 2) == b"ww"
    assert inner.count == 9
    with pytest.raises(NotFound):
        backend.read("none", 9)
    assert inner.count == 10  # not a fault that trying again could heal


def test_writes_are_not_repeated() -> None:
    inner = Faulty(MemoryBackend(FILES), {1})
    with pytest.raises(StorageError, match="put failed on purpose"):
        Retrying(inner, sleep=lambda _: None).put("run.json", b"")
    assert inner.count == 1
    with pytest.raises(ArgumentError, match="attempts=0: at least 1 is needed"):
        Retrying(inner, attempts=0)

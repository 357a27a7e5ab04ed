"""Which paths are URLs, what they lead to, and what is said of those that can't be used."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

import holdfast
from holdfast.errors import ArgumentError, MissingExtra, NotFound, StorageError, UnknownFormat
from holdfast.storage.places import absolute, is_url
from holdfast.storage.remote import store
from holdfast.storage.remote.store import split_url
from tests.remote.servers import QUICK


@pytest.mark.parametrize(
    ("url", "root", "key"),
    [
        ("s3://bucket/a/b.pt", "s3://bucket", "a/b.pt"),
        ("S3://bucket/a/", "s3://bucket", "a"),
        ("gs://bucket", "gs://bucket", ""),
        ("az://container/runs/a@best", "az://container", "runs/a@best"),
        ("memory:///x", "memory://", "x"),
    ],
)
def test_a_url_is_a_bucket_and_a_key(url: str, root: str, key: str) -> None:
    assert is_url(url)
    assert split_url(url) == (root, key)
    assert absolute(url) == url.rstrip("/")


@pytest.mark.parametrize("path", ["runs/a", "/tmp/x.pt", "a:b", "runs/a@best", "C:/x", ""])
def test_a_path_is_no_url(path: str) -> None:
    assert not is_url(path)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("https://example.org/a.pt", r"https:// is no object store known here; there are: s3://.*Download it first"),
        ("file:///tmp/a.pt", r"give the path alone, without file://"),
        ("s3:/bucket/a.pt", r"a Path keeps one slash of a URL's two; give the URL as a str, s3://"),
        (Path("s3://bucket/a.pt"), r"a Path keeps one slash"),
        ("s3:///a.pt", r"names no bucket; write s3://BUCKET/PATH"),
        ("s3://bucket/a//b.pt", r"is no plain URL of an object"),
        ("s3://bucket/../b.pt", r"is no plain URL of an object"),
        ("s3://buc ket/b.pt", r"is no plain URL of an object"),
    ],
)
def test_what_is_no_url_of_an_object_is_said(url: str, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        holdfast.load(url)
    with pytest.raises(ArgumentError, match=message):
        holdfast.save({"w": torch.ones(1)}, url)


def test_a_bucket_alone_is_no_object(memory: str) -> None:
    with pytest.raises(ArgumentError, match="is a whole bucket; name an object in it"):
        holdfast.save({"w": torch.ones(1)}, memory)


def test_a_folder_that_is_no_run_is_described(memory: str) -> None:
    holdfast.save({"w": torch.ones(1)}, f"{memory}/folder/w.pt")
    for verb in (holdfast.load, holdfast.verify):
        with pytest.raises(UnknownFormat, match=r"is a folder and no run. It has w.pt; .* Name a file in it"):
            verb(f"{memory}/folder")


def test_adopting_wants_folders(memory: str, tmp_path: Path) -> None:
    from holdfast.surgery.adoption.writing import refuse_target

    with pytest.raises(ArgumentError, match="copy the new run into the store when it is done"):
        refuse_target(str(tmp_path), f"{memory}/a")


def test_a_path_that_exists_is_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("http:").mkdir()
    holdfast.save({"w": torch.ones(1)}, tmp_path / "http:" / "w.pt")
    assert holdfast.load("http://w.pt")["w"].item() == 1


def test_without_obstore_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    store._store.cache_clear()
    monkeypatch.setitem(sys.modules, "obstore.store", None)
    with pytest.raises(MissingExtra, match=r"object stores need obstore; pip install 'holdfast\[remote\]'"):
        holdfast.load("s3://bucket/a.pt")


def test_missing_settings_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AZURE_STORAGE_ACCOUNT_NAME", "AZURE_ACCOUNT_NAME"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(StorageError, match=r"opening the store failed: .*Account must be specified"):
        holdfast.load("az://container/a.pt")


def test_a_server_that_is_not_there_is_an_error_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ALLOW_HTTP", "true")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setattr(store, "LIMITS", QUICK)
    store._store.cache_clear()
    with pytest.raises(StorageError, match=r"`s3://bucket/a.pt`: asking for it failed: .*after 2 retries") as caught:
        holdfast.load("s3://bucket/a.pt")
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)


def test_google_and_azure_are_reached_through_the_same_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """No server speaks their protocols here; that a store is made, and where it looks, is what can be seen."""
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "account")
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", "a2V5")
    store._store.cache_clear()
    assert store.store_of("gs://bucket/a")[0].url("a") == "gs://bucket/a"
    assert store.store_of("az://container/a")[0].url("a") == "az://container/a"
    store._store.cache_clear()


def test_what_is_not_there_is_said_with_what_is_near(memory: str) -> None:
    holdfast.save({"w": torch.ones(1)}, f"{memory}/nets/resnet.pt")
    with pytest.raises(NotFound, match=r"no such file or folder; near: memory://tests/nets/resnet.pt"):
        holdfast.load(f"{memory}/nets/resnet.pth")

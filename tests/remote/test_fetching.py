"""Copies on this machine: fetched once, verified when they come and when they are used."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from torch import nn

import holdfast
from holdfast.errors import CorruptFile, NotFound, UnknownFormat
from holdfast.runs.fetching import fetch
from tests.remote.servers import Bucket


def test_a_file_is_fetched_once(faulty: Bucket, tmp_path: Path) -> None:
    url = f"{faulty.url}/nets/net.safetensors"
    holdfast.save({"w": torch.arange(3_000_000)}, url)
    path = fetch(url, tmp_path / "cache")
    assert path.endswith("/net.safetensors")
    assert Path(path).read_bytes() == faulty.get("nets/net.safetensors")
    faulty.server.fault("", times=0)
    assert fetch(url, tmp_path / "cache") == path
    assert faulty.server.seen("GET") == 0  # one question whether it is still the same
    holdfast.save({"w": torch.zeros(1)}, url)
    again = fetch(url, tmp_path / "cache")
    assert again != path
    assert holdfast.load(again)["w"].tolist() == [0]


def test_a_checkpoint_is_whole_by_itself(bucket: Bucket, tmp_path: Path) -> None:
    net, root = nn.Linear(3, 3), f"{bucket.url}/a"
    with holdfast.Run(root, model=net) as run:
        run.save(step=1)
        run.save(step=2, metrics={"loss": 1.0})
    path = fetch(f"{root}@last", tmp_path / "cache")
    assert path.endswith("/step-00000002")
    assert sorted(one.name for one in Path(path).iterdir()) == [
        "entries.json", "manifest.json", "model.safetensors", "rng.safetensors", "state.json",
    ]  # fmt: skip
    assert holdfast.verify(path).status == "OK"
    fresh = nn.Linear(3, 3)
    holdfast.restore(path, model=fresh)
    assert torch.equal(fresh.weight, net.weight)
    assert fetch(f"{root}@step=2", tmp_path / "cache") == path
    assert fetch(f"{root}@step=1", tmp_path / "cache") != path


def test_a_copy_that_rotted_is_fetched_again(bucket: Bucket, tmp_path: Path) -> None:
    url = f"{bucket.url}/net.safetensors"
    holdfast.save({"w": torch.arange(100)}, url)
    path = Path(fetch(url, tmp_path))
    path.chmod(0o644)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert fetch(url, tmp_path) == str(path)
    assert holdfast.verify(path).status == "OK"
    path.unlink()
    assert Path(fetch(url, tmp_path)).is_file()


def test_what_is_damaged_in_the_store_is_not_kept(bucket: Bucket, tmp_path: Path) -> None:
    holdfast.save({"w": torch.arange(100)}, f"{bucket.url}/net.safetensors")
    data = bytearray(bucket.get("net.safetensors"))
    data[-1] ^= 1
    bucket.put("net.safetensors", bytes(data))
    with pytest.raises(CorruptFile, match=r"out of the store, w does not match its digest: .*; nothing of it"):
        fetch(f"{bucket.url}/net.safetensors", tmp_path)
    with holdfast.Run(f"{bucket.url}/a", model=nn.Linear(2, 1)) as run:
        run.save(step=1)
    key = next(key for key in bucket.names("a/") if key.endswith("model.safetensors"))
    data = bytearray(bucket.get(key))
    data[-1] ^= 1
    bucket.put(key, bytes(data))
    with pytest.raises(CorruptFile, match=r"s3://.*/a/step-00000001`: as it came out of the store"):
        fetch(f"{bucket.url}/a@last", tmp_path)
    bucket.put("page.pt", b"<!doctype html>")
    with pytest.raises(UnknownFormat):
        fetch(f"{bucket.url}/page.pt", tmp_path)
    with pytest.raises(NotFound):
        fetch(f"{bucket.url}/none.pt", tmp_path)
    assert [one.name for one in tmp_path.iterdir()] == [".lock"]


def test_many_who_ask_at_once_fetch_once(faulty: Bucket, tmp_path: Path) -> None:
    url = f"{faulty.url}/net.safetensors"
    holdfast.save({"w": torch.arange(3_000_000)}, url)
    faulty.server.fault("", times=0)
    paths: list[str] = []
    threads = [threading.Thread(target=lambda: paths.append(fetch(url, tmp_path))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(paths) == 4
    assert len(set(paths)) == 1
    assert faulty.server.seen(f"GET /{faulty.name}/net") < 8


def test_a_path_of_this_machine_is_given_back(tmp_path: Path) -> None:
    assert fetch("runs/a@best", tmp_path / "cache") == "runs/a@best"
    assert not (tmp_path / "cache").exists()


def test_the_command_prints_the_path(bucket: Bucket, tmp_path: Path) -> None:
    holdfast.save({"w": torch.ones(1)}, f"{bucket.url}/net.pt")
    command = [sys.executable, "-m", "holdfast", "fetch", f"{bucket.url}/net.pt", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert holdfast.load(done.stdout.strip())["w"].item() == 1

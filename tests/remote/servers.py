"""Processes that serve S3 on the loopback device, and buckets of them."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
import uuid
from pathlib import Path

import obstore
import pytest
from obstore.store import S3Store

from holdfast.storage.remote import store

ROOT = Path(__file__).parents[2]
QUICK = store.Limits(retries=2, first=0.01, seconds=3.0, answer=10.0, connect=2.0)


class Server:
    """A process that serves S3."""

    def __init__(self, *command: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._process = subprocess.Popen(
            [sys.executable, *(part.replace("PORT", str(self.port)) for part in command)],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'src'}"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        end = time.monotonic() + 60
        while time.monotonic() < end:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
                return
            time.sleep(0.05)
        self.stop()
        raise RuntimeError("the server did not start")

    def ask(self, method: str, path: str, data: bytes | None = None) -> bytes:
        request = urllib.request.Request(f"{self.url}{path}", data=data, method=method)
        with urllib.request.urlopen(request, timeout=20) as answer:
            return bytes(answer.read())

    def fault(self, kind: str, match: str = "", times: int = 1) -> None:
        """What requests are to suffer from now on; ``times=0`` heals all."""
        self.ask("POST", "/_faults", json.dumps({"kind": kind, "match": match, "times": times}).encode())

    def seen(self, match: str) -> int:
        """Requests since the last fault was set."""
        return sum(match in line for line in json.loads(self.ask("GET", "/_seen")))

    @property
    def ended(self) -> bool:
        return self._process.poll() is not None

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()


class Bucket:
    """A bucket of a server and what is in it, asked for without holdfast."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.name = f"b{uuid.uuid4().hex[:16]}"
        server.ask("PUT", f"/{self.name}", b"")
        self.url = f"s3://{self.name}"
        self._inner = S3Store(
            self.name,
            endpoint=server.url,
            region="us-east-1",
            access_key_id="key",
            secret_access_key="secret",
            client_options={"allow_http": True},
        )

    def names(self, prefix: str = "") -> list[str]:
        found = obstore.list(self._inner, prefix.rstrip("/") or None).collect()
        return sorted(one["path"] for one in found)

    def uploads(self) -> int:
        """Uploads that were begun and neither completed nor aborted."""
        return self.server.ask("GET", f"/{self.name}?uploads").decode().count("<UploadId>")

    def get(self, key: str) -> bytes:
        return bytes(obstore.get(self._inner, key).bytes())

    def put(self, key: str, data: bytes) -> None:
        obstore.put(self._inner, key, data, use_multipart=False)


def use(server: Server, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    """Lets this process find a server where obstore looks for one."""
    for name, value in {
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_REGION": "us-east-1",
        "AWS_ENDPOINT": server.url,
        "AWS_ALLOW_HTTP": "true",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(store, "LIMITS", QUICK)
    store._store.cache_clear()
    return Bucket(server)

"""Saving to and restoring from an object store, beside the server's own limit: obstore moving the same bytes.

    python benchmarks/remote.py [--pairs 5] [--megabytes 128] [--folder DIR]

The store is moto's S3 server in a process of its own on the loopback device. It is written in Python, and so the limit
of this table; how far ours lies from what the server gives is what is measured. ``raw put`` uploads the bytes of the
state in parts of the size that obstore takes by itself, from memory; ``raw get`` reads them in 8 ranges at a time. Our
side digests on save and verifies every digest on restore, for which it reads twice; with a spare and by ``fetch`` it
reads once. ``torch.save and raw put`` is what people type without holdfast.
"""

from __future__ import annotations

import concurrent.futures
import io
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import obstore
import torch
from obstore.store import S3Store
from table import Case, finish, measure, parser, timed
from torch import nn

import holdfast
from holdfast.runs.fetching import fetch

TENSORS, BUCKET, AT_ONCE = 32, "bench", 8
BLOCK = 8 << 20


@contextmanager
def served() -> Iterator[str]:
    """The URL of a server of this machine, with one bucket."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            try:
                urllib.request.urlopen(urllib.request.Request(f"{url}/{BUCKET}", data=b"", method="PUT"), timeout=20)
                break
            except OSError:
                time.sleep(0.1)
        yield url
    finally:
        server.kill()
        server.wait()


def main() -> None:
    """Measures and prints one table."""
    options = parser(__doc__)
    options.add_argument("--megabytes", type=int, default=128)
    args = options.parse_args()
    floats = args.megabytes * 1_000_000 // 4 // TENSORS
    net = nn.ParameterList(nn.Parameter(torch.full((floats,), 0.5)) for _ in range(TENSORS))
    with served() as url, tempfile.TemporaryDirectory(dir=args.folder) as name:
        os.environ |= {"AWS_ENDPOINT": url, "AWS_ALLOW_HTTP": "true", "AWS_REGION": "us-east-1"}
        os.environ |= {"AWS_ACCESS_KEY_ID": "bench", "AWS_SECRET_ACCESS_KEY": "bench"}
        store = S3Store(BUCKET, client_options={"allow_http": True})
        data = b"".join(parameter.detach().numpy().tobytes() for parameter in net)
        ours, copies = f"s3://{BUCKET}/ours.safetensors", iter(range(1 << 30))

        def raw_get() -> None:
            ranges = range(0, len(data), BLOCK)
            with concurrent.futures.ThreadPoolExecutor(AT_ONCE) as threads:
                read = threads.map(
                    lambda at: obstore.get_range(store, "raw", start=at, end=min(at + BLOCK, len(data))), ranges
                )
                assert sum(map(len, read)) == len(data)

        def by_torch() -> None:
            file = io.BytesIO()
            torch.save(net.state_dict(), file)
            obstore.put(store, "torch.pt", file.getvalue())

        saves = measure(
            {
                "raw put": Case(lambda: obstore.put(store, "raw", data)),
                "torch.save and raw put": Case(by_torch),
                "ours .safetensors": Case(lambda: holdfast.save(net, ours)),
                "ours .pt": Case(lambda: holdfast.save(net, f"s3://{BUCKET}/ours.pt")),
            },
            args.pairs,
        )
        loads = measure(
            {
                "raw get": Case(raw_get),
                "torch.load of a raw get": Case(
                    lambda: net.load_state_dict(torch.load(io.BytesIO(obstore.get(store, "torch.pt").bytes())))
                ),
                "ours .safetensors": Case(lambda: holdfast.restore(ours, model=net)),
                "ours .safetensors, spare=True": Case(lambda: holdfast.restore(ours, model=net, spare=True)),
                "ours, fetch": Case(lambda: fetch(ours, Path(name) / str(next(copies)))),
            },
            args.pairs,
        )
    rows = timed("save", saves, {"raw": "raw put", "torch": "torch.save and raw put"}, "raw put")
    restored = timed("restore", loads, {"raw": "raw get", "torch": "torch.load of a raw get"}, "raw get")
    finish(args, f"{args.megabytes} MB to and from an S3 server on loopback", [*rows.values(), *restored.values()])


if __name__ == "__main__":
    main()

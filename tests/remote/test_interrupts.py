"""Ctrl-C and errors amid an upload: nothing half is seen, no part is left to be paid for, and the next save works."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

import holdfast
from holdfast.errors import StorageError
from holdfast.runs.catalog import scan
from holdfast.storage.remote.upload import StagedObject
from tests.remote.servers import ROOT, Bucket

LARGE = "torch.arange(24_000_000, dtype=torch.float32)"
"""96 MB: twelve parts, of which eight are under way at a time."""

FILE = f"""
import sys, torch, holdfast
big, url = {LARGE}, sys.argv[1]
try:
    holdfast.save({{"w": big}}, url)
except KeyboardInterrupt:
    pass
else:
    sys.exit("not interrupted")
assert holdfast.load(url)["w"].tolist() == [1.0, 1.0]
holdfast.save({{"w": big + 1}}, url)
"""

RUN = f"""
import sys, torch, holdfast
net = torch.nn.ParameterList([{LARGE}])
with holdfast.Run(sys.argv[1], model=net, rng=False) as run:
    run.save(step=1)
    sys.stdout.write("saved\\n")
    sys.stdout.flush()
    sys.stdin.readline()
    try:
        run.save(step=2)
    except KeyboardInterrupt:
        pass
    else:
        sys.exit("not interrupted")
    assert run.last.step == 1
    assert holdfast.verify(sys.argv[1]).status == "OK"
    sys.stdout.write("interrupted\\n")
    sys.stdout.flush()
    sys.stdin.readline()
    run.save(step=3)
"""


def start(code: str, url: str) -> subprocess.Popen[str]:
    pipes: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    paths = os.pathsep.join([str(ROOT), str(ROOT / "src")])
    environment = {**os.environ, "PYTHONPATH": paths}
    return subprocess.Popen([sys.executable, "-c", code, url], env=environment, text=True, **pipes)


def interrupt_amid_upload(faulty: Bucket, process: subprocess.Popen[str]) -> None:
    """Waits until parts are under way, which the server answers slowly, and presses Ctrl-C."""
    end = time.monotonic() + 60
    while not faulty.server.seen("partNumber="):
        assert time.monotonic() < end
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)


def told(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def heard(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def ended(process: subprocess.Popen[str]) -> None:
    _, said = process.communicate(timeout=100)
    assert process.returncode == 0, said


@pytest.mark.timeout(180)
def test_ctrl_c_amid_an_upload_leaves_the_old_object_and_no_parts(faulty: Bucket) -> None:
    url = f"{faulty.url}/w.safetensors"
    holdfast.save({"w": torch.ones(2)}, url)
    faulty.server.fault("slow", "partNumber=", times=8)
    process = start(FILE, url)
    interrupt_amid_upload(faulty, process)
    ended(process)
    assert holdfast.load(url)["w"][1] == 2.0
    assert faulty.uploads() == 0
    assert faulty.names() == ["w.safetensors"]


@pytest.mark.timeout(180)
def test_ctrl_c_amid_a_save_of_a_run_costs_that_checkpoint_alone(faulty: Bucket) -> None:
    root = f"{faulty.url}/a"
    faulty.put("b/step-00000009/0123456789abcdef/model.safetensors", b"of another run")
    begun = faulty.server.ask("POST", f"/{faulty.name}/b/theirs?uploads", b"")
    assert b"UploadId" in begun
    process = start(RUN, root)
    assert heard(process) == "saved"
    faulty.server.fault("slow", "partNumber=", times=8)
    told(process)
    interrupt_amid_upload(faulty, process)
    assert heard(process) == "interrupted"
    assert [one.step for one in scan(root).checkpoints] == [1]
    assert not [key for key in faulty.names("a/") if "step-00000002" in key]
    assert faulty.uploads() == 1, "that of another program stays"
    told(process)
    ended(process)
    assert [one.step for one in scan(root).readable] == [1, 3]
    assert holdfast.verify(root).status == "OK"
    assert faulty.uploads() == 1
    assert len(faulty.names("b/")) == 1


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(3), MemoryError(), StorageError("`disk`: gone")])
def test_an_error_amid_an_upload_aborts_it(
    faulty: Bucket, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    big, real, root = torch.arange(5_000_000.0), StagedObject.blocks, f"{faulty.url}/a"
    net = nn.ParameterList([big])

    def broken(self: StagedObject) -> Iterator[bytes]:
        for number, block in enumerate(real(self)):
            if number == 18:  # in the third part
                raise error
            yield block

    with holdfast.Run(root, model=net, rng=False) as run:
        run.save(step=1)
        with monkeypatch.context() as patched:
            patched.setattr(StagedObject, "blocks", broken)
            with pytest.raises(type(error)):
                run.save(step=2)
            with pytest.raises(type(error)):
                holdfast.save({"w": big}, f"{faulty.url}/w.pt")
        assert faulty.uploads() == 0
        assert {key.split("/")[1] for key in faulty.names("a/")} <= {"run.json", ".lock", "step-00000001"}
        assert "w.pt" not in faulty.names()
        run.save(step=2)
    assert holdfast.verify(root).status == "OK"
    assert [one.step for one in scan(root).readable] == [1, 2]

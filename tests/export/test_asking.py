"""The other process: what it says and how it ends never hangs this one, and nothing is left behind."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

import holdfast
from holdfast.errors import MismatchError
from holdfast.export import asking, exporting, wire

Left = Callable[[Path], list[str]]


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import time; time.sleep(60)", r"the process that was to run it did not end in 1 s; nothing was written"),
        ("import os; os.kill(os.getpid(), 11)", "was killed by signal 11"),
        ("raise SystemExit(3)", "ended with code 3 and no answer"),
        ("raise ValueError('a\\x1b[31mb')", r"ended with code 1 and no answer: ValueError: a\\x1b\[31mb"),
    ],
)
def test_a_process_that_gives_no_answer(
    tmp_path: Path, left: Left, monkeypatch: pytest.MonkeyPatch, code: str, message: str
) -> None:
    monkeypatch.setattr(asking, "_START", code)
    monkeypatch.setattr(asking, "PATIENCE", 1.0 if "sleep" in code else 60.0)
    start = time.monotonic()
    with pytest.raises(MismatchError, match=message):
        holdfast.export(nn.Linear(2, 2), tmp_path / "m.ts", example=torch.ones(1, 2))
    assert time.monotonic() - start < 30
    assert left(tmp_path) == []


def test_an_error_of_the_runtime_is_short_and_printable(
    tmp_path: Path, left: Left, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here the file is no ONNX."""
    real = exporting._made

    def broken(*arguments: object) -> object:
        return real(*arguments)._replace(content=b"\x1b[31m not a model")  # type: ignore[arg-type]

    monkeypatch.setattr(exporting, "_made", broken)
    with pytest.raises(MismatchError, match=r"m\.onnx`: can't be opened in its runtime: InvalidProtobuf: ") as caught:
        holdfast.export(nn.Linear(2, 2), tmp_path / "m.onnx", example=torch.ones(1, 2))
    assert len(str(caught.value)) < 600
    assert "\n" not in str(caught.value)
    assert left(tmp_path) == []


def test_onnx_is_run_without_torch() -> None:
    """As the machine that the file is for would."""
    code = """
import sys, os
sys.modules["torch"] = None
from holdfast.export import runtime, wire
import onnx, numpy as np
from onnx import helper
ports = [helper.make_tensor_value_info(name, 1, [2]) for name in "xy"]
graph = helper.make_graph([helper.make_node("Neg", ["x"], ["y"])], "g", ports[:1], ports[1:])
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
fds = [os.memfd_create(name) for name in ("file", "request", "answer")]
os.write(fds[0], model.SerializeToString())
blobs = []
call = wire.pack(((wire.array_blob(np.array([1, 2], np.float32)),), {}), blobs)
wire.send(fds[1], [call, ["tuple", [["tuple", []], ["dict", []]]]], blobs)
runtime.main({"format": "onnx", "file": fds[0], "request": fds[1], "answer": fds[2], "data": {}})
message, blobs = wire.receive(fds[2])
assert wire.blob_array(blobs[0]).tolist() == [-1.0, -2.0]
print(message["runtime"], message["cases"][1]["error"])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "onnxruntime " in done.stdout
    assert "the file has 1 inputs (x), the model was given 0" in done.stdout


def test_a_message_that_was_cut_is_no_answer() -> None:
    fd = os.memfd_create("cut")
    try:
        with pytest.raises(ValueError, match="are not there"):
            wire.receive(fd)
        wire.send(fd, ["plain", 1], [wire.tensor_blob(torch.ones(5))])
        assert wire.blob_tensor(wire.receive(fd)[1][0]).equal(torch.ones(5))
        os.ftruncate(fd, os.fstat(fd).st_size - 60)
        with pytest.raises(ValueError, match="are not there"):
            wire.receive(fd)
    finally:
        os.close(fd)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.complex64, torch.bool, torch.float64, torch.uint8])
def test_tensors_pass_with_every_bit(dtype: torch.dtype) -> None:
    for shape in ((), (0, 3), (2, 3)):
        tensor = torch.randn(shape).to(dtype)
        assert wire.blob_tensor(wire.tensor_blob(tensor)).equal(tensor)
    with pytest.raises(ValueError, match="torch has no dtype float1"):
        wire.blob_tensor(wire.Blob("float1", [1], b"1234"))
    with pytest.raises(ValueError, match="onnxruntime takes no float1 through numpy"):
        wire.blob_array(wire.Blob("float1", [1], b"1234"))


def test_nested_values_pass() -> None:
    blobs: list[wire.Blob] = []
    value = ((wire.tensor_blob(torch.ones(1)), [None, True, 2, float("inf"), "x"]), {"a": {"b": (1,)}})
    packed = wire.pack(value, blobs)
    assert wire.unpack(packed, blobs, lambda blob: blob.dtype) == (
        ("float32", [None, True, 2, float("inf"), "x"]),
        {"a": {"b": (1,)}},
    )
    with pytest.raises(TypeError, match="set is neither a tensor nor a plain value"):
        wire.pack({1}, blobs)

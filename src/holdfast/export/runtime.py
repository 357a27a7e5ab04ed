"""The process that opens an exported file in the runtime it is for and answers what it is asked; then it ends.

For ONNX it does without torch, as the machine will that the file is for.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import mmap
import os
from collections.abc import Callable
from typing import Any

from holdfast.export.wire import Blob, array_blob, blob_array, blob_tensor, pack, receive, send, tensor_blob, unpack

Answer = Callable[[Any, list[Blob]], list[Any]]
"""Packed arguments and their blobs to the leaves of the answer, tensors as blobs."""


def main(task: dict[str, Any]) -> None:
    """Answers each case of a request, or says why not.

    Args:
        task: ``format``; ``file``, ``request`` and ``answer``: descriptors; ``data``: descriptors of external data by
            location.
    """
    blobs: list[Blob] = []
    message: dict[str, Any] = {"cases": []}
    try:
        request, given = receive(task["request"])
        name, answer = _OPENERS[task["format"]](task["file"], task["data"])
        message["runtime"] = name
        for call in request:
            message["cases"].append(_answered(answer, call, given, blobs))
    except Exception as reason:  # whatever the runtime raises is the answer
        message["error"] = _said(reason)
    send(task["answer"], message, blobs)


def _answered(answer: Answer, call: Any, given: list[Blob], blobs: list[Blob]) -> dict[str, Any]:
    try:
        return {"leaves": [pack(leaf, blobs) for leaf in answer(call, given)]}
    except Exception as reason:  # another input may still do
        return {"error": _said(reason)}


def _said(reason: BaseException) -> str:
    """What a runtime says: of an error that has a cause, that, for it is the one that says anything; TorchScript puts
    the error itself last.
    """
    while reason.__cause__ is not None:
        reason = reason.__cause__
    lines = [line.strip() for line in str(reason).splitlines() if line.strip()] or [""]
    return f"{type(reason).__name__}: {' '.join(dict.fromkeys((lines[0], lines[-1])))}"


def _open_onnx(fd: int, data: dict[str, int]) -> tuple[str, Answer]:
    onnxruntime: Any = importlib.import_module("onnxruntime")

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    if data:
        maps = [mmap.mmap(one, 0, prot=mmap.PROT_READ) for one in data.values()]
        options.add_external_initializers_from_files_in_memory(list(data), maps, [len(one) for one in maps])
    session = onnxruntime.InferenceSession(_content(fd), options, providers=["CPUExecutionProvider"])
    names = [one.name for one in session.get_inputs()]

    def answer(call: Any, blobs: list[Blob]) -> list[Any]:
        tensors = [blob_array(blobs[index]) for index in _blobs_of(call)]
        if len(tensors) != len(names):
            raise ValueError(
                f"the file has {len(names)} inputs ({', '.join(names)}), the model was given {len(tensors)}"
            )
        return [array_blob(one) for one in session.run(None, dict(zip(names, tensors, strict=True)))]

    return f"onnxruntime {onnxruntime.__version__}", answer


def _blobs_of(packed: Any) -> list[int]:
    """The numbers of the blobs in packed arguments, in their order."""
    kind, content = packed
    if kind == "blob":
        return [content]
    inner = [item for _, item in content] if kind == "dict" else content if kind in ("tuple", "list") else []
    return [index for item in inner for index in _blobs_of(item)]


def _open_torchscript(fd: int, _: dict[str, int]) -> tuple[str, Answer]:
    import torch

    load: Any = torch.jit.load
    with _reading(fd) as stream:
        module = load(stream, map_location="cpu")
    return f"torch.jit of torch {torch.__version__}", _torch_answer(module)


def _open_program(fd: int, _: dict[str, int]) -> tuple[str, Answer]:
    import torch

    with _reading(fd) as stream:
        program = torch.export.load(stream)
    return f"torch.export of torch {torch.__version__}", _torch_answer(program.module())


def _torch_answer(module: Any) -> Answer:
    import torch
    from torch.utils import _pytree as pytree

    def answer(call: Any, blobs: list[Blob]) -> list[Any]:
        args, kwargs = unpack(call, blobs, blob_tensor)
        with torch.no_grad():
            leaves = pytree.tree_leaves(module(*args, **kwargs))
        return [tensor_blob(leaf) if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves]

    return answer


def _content(fd: int) -> bytes:
    with _reading(fd) as stream:
        return stream.read()


def _reading(fd: int) -> contextlib.AbstractContextManager[io.BufferedReader]:
    stream = os.fdopen(fd, "rb", closefd=False)
    stream.seek(0)
    return stream


_OPENERS: dict[str, Callable[[int, dict[str, int]], tuple[str, Answer]]] = {
    "onnx": _open_onnx,
    "torch-export": _open_program,
    "torchscript": _open_torchscript,
}

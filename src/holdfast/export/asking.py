"""Asks an exported file: starts the process that runs it, waits for so long and no longer, and takes its answers."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from holdfast.errors import MismatchError
from holdfast.export.example import Example
from holdfast.export.quiet import first_line
from holdfast.export.wire import blob_tensor, pack, receive, send, tensor_blob, unpack
from holdfast.state.paths import printable

PATIENCE = 180.0
"""Seconds that the other process may take to start, beside what it needs to compute."""
_TIMES = 20
"""How many times as long as the model itself a runtime may compute."""
_START = (
    "import json, sys; task = json.loads(sys.argv[1]); sys.path[:] = task['path']; "
    "from holdfast.export.runtime import main; main(task)"
)
_SAID = 2000


class Answers:
    """What a runtime answered.

    Attributes:
        runtime: its name and version.
        cases: for each case the leaves of the answer, or the text of the error.
    """

    def __init__(self, runtime: str, cases: list[list[Any] | str]) -> None:
        self.runtime = runtime
        self.cases = cases


def ask(
    kind: str, fd: int, data: dict[str, int], example: Example, cases: Sequence[list[Any]], *, seconds: float, file: str
) -> Answers:
    """Runs a file on inputs in a fresh process.

    Args:
        kind: ``onnx``, ``torch-export`` or ``torchscript``.
        fd: the file.
        data: descriptors of its external data, by location.
        example: how the leaves of the cases are arguments.
        cases: the leaves of each input.
        seconds: what the model itself took for all cases.
        file: named in errors.

    Raises:
        MismatchError: the runtime does not open the file, ended without an answer, or took too long.
    """
    with _memory("request") as request, _memory("answer") as answer, _memory("said") as said:
        blobs: list[Any] = []
        calls = [pack(_with_blobs(example.arguments(leaves)), blobs) for leaves in cases]
        send(request, calls, blobs)
        task = {
            "format": kind,
            "file": fd,
            "data": data,
            "request": request,
            "answer": answer,
            "path": [*map(str, sys.path)],
        }
        status = _run(task, said, (fd, request, answer, *data.values()), PATIENCE + _TIMES * seconds)
        try:
            message, found = receive(answer)
        except ValueError:
            raise MismatchError(
                f"`{printable(file)}`: the process that was to run it {status}{_last_words(said)}; nothing was written",
                file=file,
            ) from None
    if "error" in message:
        raise MismatchError(
            f"`{printable(file)}`: can't be opened in its runtime: {first_line(message['error'])}; nothing was written",
            file=file,
        )
    answered = [
        case["error"] if "error" in case else [unpack(leaf, found, blob_tensor) for leaf in case["leaves"]]
        for case in message["cases"]
    ]
    return Answers(message["runtime"], answered)


def _with_blobs(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return tensor_blob(value)
    if isinstance(value, dict):
        return {key: _with_blobs(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return type(value)(_with_blobs(item) for item in value)
    return value


@contextlib.contextmanager
def _memory(name: str) -> Iterator[int]:
    """A file in memory that has no name on any disk."""
    fd = os.memfd_create(f"holdfast-{name}", os.MFD_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def _run(task: dict[str, Any], said: int, fds: tuple[int, ...], limit: float) -> str:
    """Runs the process to its end, or to the limit; says how it ended."""
    process = subprocess.Popen(
        # -P: the folder that we are in is no place to import from, unless it is one for this process too
        [sys.executable, "-P", "-W", "ignore", "-c", _START, json.dumps(task)],
        stdin=subprocess.DEVNULL,
        stdout=said,
        stderr=said,
        pass_fds=fds,
        start_new_session=True,
    )
    try:
        code = process.wait(limit)
    except BaseException as reason:  # also an interrupt: nothing is left running
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if not isinstance(reason, subprocess.TimeoutExpired):
            raise
        return f"did not end in {limit:.0f} s"
    return f"was killed by signal {-code}" if code < 0 else f"ended with code {code} and no answer"


def _last_words(said: int) -> str:
    size = os.fstat(said).st_size
    text = os.pread(said, _SAID, max(size - _SAID, 0)).decode(errors="replace")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return f": {first_line(lines[-1])}" if lines else ""

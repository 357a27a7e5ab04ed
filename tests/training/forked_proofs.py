"""Proves one script in many forms, each process forked from this one, in which torch is loaded already.

As a script: ``python forked_proofs.py SCRIPT ROOT FLAW...`` prints one JSON line a flaw: the proof, or the error.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import traceback
from types import SimpleNamespace
from typing import Any

import torch._dynamo  # noqa: F401  # the first step of an optimizer imports it

import holdfast.training.run  # noqa: F401  # with all that it imports
from holdfast.errors import HoldfastError
from holdfast.training.proof import proving, proving_process


class Forked:
    """What ``subprocess.Popen`` is to a proof, without the seconds that torch takes to load."""

    def __init__(self, command: list[str], *, stdout: Any, **_: Any) -> None:
        self.pid = os.fork()
        if self.pid == 0:
            os.setsid()
            os.dup2(stdout.fileno(), 1)
            os.dup2(stdout.fileno(), 2)
            os._exit(_child(command))
        self.returncode: int | None = None

    def wait(self, timeout: float | None = None) -> int:
        end = None if timeout is None else time.monotonic() + timeout
        while self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
            elif end is not None and time.monotonic() > end:
                raise subprocess.TimeoutExpired("forked", timeout or 0)
            else:
                time.sleep(0.002)
        return self.returncode


def _child(command: list[str]) -> int:
    sys.argv = ["-c", *command[3:]]
    try:
        proving_process.main()
    except SystemExit as leaving:
        return int(leaving.code or 0)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def main(script: str, root: str, *flaws: str) -> None:
    names = {name: getattr(subprocess, name) for name in ("DEVNULL", "STDOUT", "TimeoutExpired")}
    proving.subprocess = SimpleNamespace(Popen=Forked, **names)
    for number, flaw in enumerate(flaws):
        kills = 2 if flaw in ("two", "order") else 1
        save = "none" if flaw == "anew" else "3step"
        options = proving.Options(kills, seed=7, save=save, timeout=100)
        if flaw == "never":
            proving.draw_kills = lambda *_: [proving_process.Kill("at some time", seconds=1000)]
        try:
            found = proving.prove(script, [f"{root}/{number}", "--flaw", flaw], options, lambda _: None).to_dict()
        except HoldfastError as error:
            found = {"error": type(error).__name__, "message": str(error)}
        print(json.dumps({"flaw": flaw, "left": os.path.exists(f"{root}/{number}"), **found}), flush=True)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    main(*sys.argv[1:])

"""Makes the kernel itself fail the calls of a real process, with strace; run as a script it prints what it found.

As a script: ``python -m tests.faults.injecting ROOT NAME SPEC...`` plays the scenario NAME for each SPEC, such as
``fsync:error=EIO``, once for each call of that kind, which then fails (or kills, with ``signal=SIGKILL``). One JSON
line a spec; ``{"denied": ...}`` where strace may not trace.
"""

from __future__ import annotations

import gc
import itertools
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path

import torch

from holdfast.errors import HoldfastError
from tests.faults.killing import FAILED, Promised, Scenario, after_a_stop, in_child, stages_of
from tests.faults.scenarios import SCENARIOS, between, share_small_files

SAID = 5
"""How a child exits that raised an error of holdfast's own."""
Played = tuple[int, int, bool]
"""(exit status, things promised, whether the call that was to fail was reached)."""


def play_traced(scenario: Scenario, here: Path, first: Promised, spec: str) -> Played:
    """Plays a scenario in a child that strace holds."""
    trace = here.with_name("trace")
    told, wait = os.pipe()

    def play() -> Iterator[object]:
        os.close(wait)
        os.read(told, 1)  # until strace has it
        try:
            yield from scenario.act(here, first)
        except HoldfastError as reason:
            print(reason, file=sys.stderr)
            os._exit(SAID)
        except BaseException:
            traceback.print_exc()
            os._exit(FAILED)

    def attach(pid: int) -> subprocess.Popen[str]:
        call = spec.split(":", 1)[0]
        command = ["strace", "-f", "-o", str(trace), "-e", f"trace={call}", "-e", f"inject={spec}", "-p", str(pid)]
        tracer = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        line = tracer.stderr.readline() if tracer.stderr else ""
        if "attached" not in line:
            os.kill(pid, signal.SIGKILL)
            tracer.kill()
            tracer.wait()
            raise PermissionError(line.strip())
        os.write(wait, b"1")
        return tracer

    tracers: list[subprocess.Popen[str]] = []
    try:
        status, promised = in_child(play, lambda pid: tracers.append(attach(pid)))
    finally:
        os.close(told)
        os.close(wait)
    for tracer in tracers:
        tracer.communicate()
    text = trace.read_text()
    return status, promised, "(INJECTED)" in text or "killed by SIGKILL" in text


def inject_everywhere(scenario: Scenario, root: Path, spec: str) -> tuple[int, int, list[str]]:
    """Fails every call of a kind in turn. Returns how often, how often an error was raised, and what was wrong."""
    template = root / "template"
    template.mkdir(parents=True)
    first = scenario.prepare(template)
    stages = stages_of(scenario, root / "whole")
    raised, wrong = 0, []
    for number in itertools.count(1):
        here = root / "here"
        shutil.copytree(template, here)
        status, promised, reached = play_traced(scenario, here, first, f"{spec}:when={number}")
        if not reached:
            wrong.extend(["the child failed"] if status else [])
            break
        raised += os.WIFEXITED(status) and os.WEXITSTATUS(status) == SAID
        found = after_a_stop(here, *between(stages, promised, failing=True))
        if os.WIFEXITED(status) and os.WEXITSTATUS(status) == FAILED:
            found = "raised another error than one of holdfast's own"
        wrong.extend([f"{spec}, call {number}: {found}"] if found else [])
        shutil.rmtree(here)
    shutil.rmtree(root)
    return number - 1, raised, wrong


def main(root: str, name: str, *specs: str) -> None:
    """Prints ``{"scenario":, "spec":, "calls":, "raised":, "wrong":}`` for each spec."""
    torch.set_num_threads(1)
    logging.disable()
    share_small_files()
    gc.collect()
    gc.freeze()
    for number, spec in enumerate(specs):
        try:
            calls, raised, wrong = inject_everywhere(SCENARIOS[name], Path(root) / str(number), spec)
        except PermissionError as reason:
            print(json.dumps({"denied": str(reason)}), flush=True)
            return
        line = {"scenario": name, "spec": spec, "calls": calls, "raised": raised, "wrong": wrong[:20]}
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])

"""Kills a process with SIGKILL at every call by which it changes a disk; run as a script it prints what it found.

As a script: ``python -m tests.faults.killing ROOT SEED ROUNDS EVERY [NAMES [SIGNAL]]`` plays ROUNDS scenarios, one
after the other or of these NAMES, each with objects of its own. For each kill it forks a child that has everything
loaded, which plays the scenario and kills itself, at every call or at every EVERY-th, with SIGKILL or another signal.
One JSON line a scenario.
"""

from __future__ import annotations

import fcntl
import gc
import io
import itertools
import json
import logging
import mmap
import os
import shutil
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

import holdfast
from tests.faults.scenarios import (
    SCENARIOS,
    Promised,
    Scenario,
    between,
    fault,
    go_on,
    loaded_whole,
    share_small_files,
    state,
    vary,
)
from tests.faults.simulated_disk import on_disk

CHANGING = ("replace", "rename", "link", "unlink", "remove", "rmdir", "mkdir", "chmod", "fchmod", "fsync", "fdatasync")
CHANGING += ("posix_fallocate", "ftruncate", "truncate", "close")
WRITING = ("pwritev", "pwrite", "write", "sendfile", "copy_file_range")
CREATING = os.O_CREAT | os.O_TRUNC | os.O_WRONLY | os.O_RDWR
FAILED, INTERRUPTED = 3, 130


class KillAt:
    """Counts the calls of a process, and kills it before the n-th, or in the middle of it when it writes.

    Other signals than SIGKILL are sent in the same way.
    """

    def __init__(self, limit: int, number: int = signal.SIGKILL) -> None:
        self.limit = limit
        self.number = number
        self._count = itertools.count(1)

    def install(self) -> None:
        """Puts itself between Python and the system, for good: only for a process that was forked for it."""
        for module, names in ((os, CHANGING), (fcntl, ("flock", "lockf"))):
            for name in names:
                if hasattr(module, name):
                    setattr(module, name, self._counted(getattr(module, name)))
        for name in WRITING:
            setattr(os, name, self._torn(name, getattr(os, name)))
        os.open = self._creating(os.open)

    def _reached(self) -> bool:
        return next(self._count) == self.limit

    def _counted(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **named: Any) -> Any:
            if self._reached():
                os.kill(os.getpid(), self.number)
            return call(*arguments, **named)

        return counted

    def _torn(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """A write is two points: before it, and when a part of it is done."""
        counted, write = self._counted(call), os.write if name == "write" else os.pwrite

        def torn(fd: int, data: Any, *rest: Any) -> Any:
            whole = b"".join(data) if isinstance(data, list | tuple) else data
            if self._reached() and isinstance(whole, bytes | memoryview):
                taken = write(fd, whole[: (len(whole) + 1) // 2], *rest[:1])
                os.kill(os.getpid(), self.number)
                return taken  # a signal that does not kill at once
            return counted(fd, data, *rest)

        return torn

    def _creating(self, call: Callable[..., Any]) -> Callable[..., Any]:
        counted = self._counted(call)

        def opened(path: Any, flags: int, *rest: Any, **named: Any) -> Any:
            return (counted if flags & CREATING else call)(path, flags, *rest, **named)

        return opened


def stages_of(scenario: Scenario, root: Path) -> list[Promised]:
    """Plays a scenario to its end and says what was promised on the way."""
    root.mkdir(parents=True)
    first = scenario.prepare(root)
    stages = [first, *scenario.act(root, first)]
    wrong = fault(on_disk(root), stages[-1], stages[-1], lambda path, step: loaded_whole(f"{root / path}", step))
    assert wrong is None, wrong
    return stages


def in_child(
    play: Callable[[], Iterator[object]], began: Callable[[int], object] = lambda pid: None
) -> tuple[int, int]:
    """Plays in a forked child, whose id ``began`` is told; its exit status and how many things were promised in it."""
    told = mmap.mmap(-1, 1)
    pid = os.fork()
    if pid == 0:
        try:
            for _ in play():
                told[0] += 1
        except KeyboardInterrupt:
            os._exit(INTERRUPTED)
        except BaseException:
            traceback.print_exc()
            os._exit(FAILED)
        os._exit(0)
    try:
        began(pid)
    finally:
        status = os.waitpid(pid, 0)[1]
    promised = told[0]
    told.close()
    return status, promised


def kill_everywhere(scenario: Scenario, root: Path, every: int, number: int) -> tuple[int, list[str]]:
    """Kills a scenario at every ``every``-th call. Returns the number of kills, and what was wrong after them."""
    template = root / "template"
    template.mkdir(parents=True)
    first = scenario.prepare(template)
    stages = stages_of(scenario, root / "whole")
    kills, wrong = 0, []
    for limit in itertools.count(1, every):
        here = root / "here"
        shutil.copytree(template, here)

        def play(here: Path = here, limit: int = limit) -> Iterator[object]:
            KillAt(limit, number).install()
            return scenario.act(here, first)

        status, promised = in_child(play)
        if not (os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == INTERRUPTED):
            wrong.extend(["the child failed"] if status else [])
            break
        kills += 1
        found = after_a_stop(here, *between(stages, promised))
        wrong.extend([f"kill {limit}: {found}"] if found else [])
        shutil.rmtree(here)
    shutil.rmtree(root)
    return kills, wrong


def after_a_stop(root: Path, before: Promised, after: Promised, *, undeletable: bool = False) -> str | None:
    """What is wrong with what a process left that was killed or failed, or with what the next one makes of it.

    One unfinished thing may be left; where nothing could be deleted, also every step that was to be.
    """
    files = on_disk(root)
    left = [name for name in files if name.endswith(".partial" if undeletable else (".partial", ".deleting"))]
    if len(left) > 1:
        return f"left behind: {left}"
    return fault(files, before, after, lambda path, step: loaded_whole(f"{root / path}", step)) or go_on(root)


def _writes_in_place(root: Path, now: Promised) -> Iterator[Promised]:
    stream = io.BytesIO()
    holdfast.save(state(2), stream)
    fd = os.open(root / "a.pt", os.O_WRONLY | os.O_TRUNC)
    os.write(fd, stream.getvalue())
    os.close(fd)
    yield Promised(files={**now.files, "a.pt": 2})


def _deletes_first(root: Path, now: Promised) -> Iterator[Promised]:
    os.unlink(root / "a.pt")
    holdfast.save(state(2), root / "a.pt")
    yield Promised(files={**now.files, "a.pt": 2})


UNSAFE = {
    "in place": Scenario(SCENARIOS["single files"].prepare, _writes_in_place, 1),
    "deleted first": Scenario(SCENARIOS["single files"].prepare, _deletes_first, 1),
}
"""What the check must find wrong."""


def main(root: str, seed: str, rounds: str, every: str, only: str = "", number: str = "9") -> None:
    """Prints ``{"scenario":, "saves":, "kills":, "wrong":}`` for each scenario that was played."""
    torch.set_num_threads(1)
    logging.disable()
    share_small_files()
    gc.collect()
    gc.freeze()
    for played in range(int(rounds)):
        vary(int(seed) + played)
        names = only.split(",") if only else list(SCENARIOS)
        name = names[played % len(names)]
        scenario = {**SCENARIOS, **UNSAFE}[name]
        kills, wrong = kill_everywhere(scenario, Path(root) / str(played), int(every), int(number))
        print(json.dumps({"scenario": name, "saves": scenario.saves, "kills": kills, "wrong": wrong[:20]}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])

"""Many processes on one run or one file at once; run as a script it prints what they saw.

As a script: ``python -m tests.faults.racing ROOT run COMMITS`` lets 8 writers and 4 readers loose on a run until there
were COMMITS commits; ``... ROOT file COMMITS`` lets 8 writers and 4 readers loose on one file. One JSON line a process.
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import io
import json
import logging
import mmap
import os
import random
import signal
import socket
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import torch

import holdfast
from holdfast.cli.main import main as holdfast_main
from holdfast.errors import NotFound, RunLocked
from holdfast.runs.catalog import scan
from tests.faults.killing import KillAt
from tests.faults.scenarios import copied, objects, put, same, save_step, share_small_files, state

WRITERS, READERS = 8, 4


class Shared:
    """Numbers that all processes see: commits so far, and the step that was committed last."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, 8)

    @property
    def commits(self) -> int:
        return int.from_bytes(self._memory[:8], "little")

    def commit(self) -> None:
        """For the one writer that holds the run."""
        self._memory[:8] = (self.commits + 1).to_bytes(8, "little")


def write_run(root: Path, shared: Shared, wanted: int, draw: random.Random) -> Counter[str]:
    """Tries to hold the run; saves a few steps when it does, or is killed in that; else it is told who holds it."""
    seen: Counter[str] = Counter()
    while shared.commits < wanted:
        try:
            run = holdfast.Run(root / "run", **put(0), rng=False, keep="last:2")
        except RunLocked as reason:
            known = "pid " in str(reason) and socket.gethostname() in str(reason)
            seen["told who" if known or "another process writes" in str(reason) else f"told {reason}"] += 1
            seen["told the pid"] += known
            time.sleep(draw.random() / 10)
            continue
        if draw.random() < 0.3:
            KillAt(draw.randint(1, 150)).install()  # somewhere in what comes now
        with run, (root / "inside").open("a") as alone:
            try:
                fcntl.flock(alone, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                seen["two writers at once"] += 1
            at = run.resume()
            step = at.step if at else 0
            if at and not same(copied(), state(step)):
                seen["resumed mixed"] += 1
            for more in range(1, draw.randint(2, 5)):
                save_step(run, step + more)
                shared.commit()
        seen["held"] += 1
    return seen


def read_run(root: Path, shared: Shared, wanted: int, draw: random.Random) -> Counter[str]:
    """Reads the run in every way; what it gets is whole, or is said not to be there."""
    seen: Counter[str] = Counter()
    ways = [_restored, _opened, _verified, _listed, _verified_all]
    while shared.commits < wanted:
        way = draw.choice(ways)
        try:
            seen[way(root / "run")] += 1
        except NotFound:
            seen["not found"] += 1
        except Exception as reason:
            seen[f"{way.__name__}: {type(reason).__name__}: {reason}"] += 1
    return seen


def _step_in(tree: dict[str, dict[str, torch.Tensor]]) -> int:
    return int(tree["model"]["norm.running_mean"][0])


def _restored(run: Path) -> str:
    holdfast.restore(f"{run}@last", **put(0))
    found = copied()
    return "whole" if same(found, state(_step_in(found))) else "mixed"


def _opened(run: Path) -> str:
    with holdfast.open(f"{run}@-2") as checkpoint:
        step = int(checkpoint["model.norm.running_mean"].read()[0])
        weight = checkpoint["model.frozen.weight"].read()
    return "whole" if torch.equal(weight, state(step)["model"]["frozen.weight"]) else "mixed"


def _verified(run: Path) -> str:
    report = holdfast.verify(f"{run}@last")
    return "whole" if report.status == "OK" else str(report)


def _verified_all(run: Path) -> str:
    report = holdfast.verify(run)
    return "whole" if report.status == "OK" else str(report)


def _listed(run: Path) -> str:
    problems = [one.problem for one in scan(run).checkpoints if one.problem]
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.suppress(SystemExit):
        holdfast_main(["ls", str(run), "--json"])
    return str(problems) if problems or '"problem": "' in out.getvalue() else "whole"


def write_file(root: Path, shared: Shared, wanted: int, draw: random.Random) -> Counter[str]:
    """Saves the same file again and again, each time with other numbers."""
    seen: Counter[str] = Counter()
    while shared.commits < wanted:
        holdfast.save(state(draw.randint(1, 60)), root / "a.pt")
        shared.commit()  # not exact when two do it at once, which is good enough to end by
        seen["saved"] += 1
    return seen


def read_file(root: Path, shared: Shared, wanted: int, draw: random.Random) -> Counter[str]:
    """Loads it again and again."""
    seen: Counter[str] = Counter()
    while shared.commits < wanted:
        try:
            tree = holdfast.load(root / "a.pt")
            seen["whole" if same(tree, state(_step_in(tree))) else "mixed"] += 1
        except NotFound:
            seen["not found"] += 1
        except Exception as reason:
            seen[f"{type(reason).__name__}: {reason}"] += 1
    return seen


Work = Callable[[Path, Shared, int, random.Random], "Counter[str]"]


def child(work: Work, root: Path, shared: Shared, wanted: int, seed: int) -> int:
    """Does the work in a forked process, which prints what it saw."""
    pid = os.fork()
    if pid == 0:
        _in_child(work, root, shared, wanted, seed)
    return pid


def _in_child(work: Work, root: Path, shared: Shared, wanted: int, seed: int) -> NoReturn:
    code = 1
    try:
        seen = work(root, shared, wanted, random.Random(seed))
        os.write(1, (json.dumps({"who": work.__name__, "seen": seen}) + "\n").encode())
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def main(root: str, what: str, commits: str) -> None:
    """Starts them all, replaces those that are killed, and waits until all have ended."""
    torch.set_num_threads(1)
    logging.disable()
    share_small_files()
    objects()
    gc.collect()
    gc.freeze()
    shared, wanted = Shared(), int(commits)
    write, read = (write_run, read_run) if what == "run" else (write_file, read_file)
    alive = {child(write, Path(root), shared, wanted, seed): write for seed in range(WRITERS)}
    alive |= {child(read, Path(root), shared, wanted, 100 + seed): read for seed in range(READERS)}
    killed = failed = 0
    while alive:
        pid, status = os.wait()
        work = alive.pop(pid)
        failed += os.WIFEXITED(status) and os.WEXITSTATUS(status) != 0
        if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
            killed += 1
            alive[child(work, Path(root), shared, wanted, 1000 + killed)] = work
    print(json.dumps({"who": "all", "killed": killed, "failed": failed, "commits": shared.commits}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])

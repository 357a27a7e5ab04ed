"""The process in which a script is proved: its runs live elsewhere, are watched, and it is killed where the plan says.

Started by ``proving.py`` with the plan as JSON, then the script and its arguments. Nothing here imports torch, so the
script still decides what is set before that. What happened goes line by line to the plan's trace, past every buffer:
the next moment may be the last.
"""

from __future__ import annotations

import os
import random
import runpy
import signal
import sys
import threading
import time
import weakref
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, Literal

import msgspec
import xxhash

from holdfast.runs.elsewhere import live_elsewhere
from holdfast.runs.layout import parse_step
from holdfast.training.proof.trial import put_on_trial

Where = Literal["between items", "inside an item", "inside a save", "at some time"]
_CHANGES = {"open", "os.mkdir", "os.rename", "os.link", "os.remove", "os.rmdir", "os.chmod", "os.truncate"}
"""Events of ``sys.addaudithook`` that change a disk; ``open`` only when it is for writing."""


class Kill(msgspec.Struct, frozen=True):
    """Where a process is killed.

    Attributes:
        where: what kind of place.
        run: the number of the run, in the order in which the script makes them.
        step: items of that run done, at least; saves and times count from there.
        share: of the time of one item, inside an item.
        calls: changes to the disk, inside a save.
        seconds: after the run was made.
    """

    where: Where
    run: int = 0
    step: int = 0
    share: float = 0.5
    calls: int = 1
    seconds: float = 0.0


class Plan(msgspec.Struct, frozen=True):
    """What a process is to do.

    Attributes:
        folder: where its runs live.
        trace: the file to which it writes what happened.
        save: save rules to add to those of the script.
        audit: whether to call ``run.audit()`` at the end of each run.
        kill: where to die, or None.
    """

    folder: str
    trace: str
    save: str = ""
    audit: bool = False
    kill: Kill | None = None


class Watch:
    """The trial of a process: directs its runs, writes the trace, and kills it."""

    def __init__(self, plan: Plan) -> None:
        self._plan, self._kill = plan, plan.kill
        self._fd = os.open(plan.trace, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._pid = os.getpid()
        self._numbers: dict[str, int] = {}
        self._given: dict[str, tuple[int, str]] = {}
        self._audited: set[int] = set()
        self._calls = self._commits = self._items = 0
        self._began: float | None = None
        self._busy = 0.0
        self._armed = plan.kill is not None and plan.kill.step == 0
        self._calls_left = plan.kill.calls if plan.kill is not None else 0

    def note(self, **line: Any) -> None:
        """One line of the trace, in one write."""
        os.write(self._fd, msgspec.json.encode(line) + b"\n")

    def ended(self) -> None:
        """The script is at its end, well or not."""
        seconds = 0.0 if self._began is None else time.monotonic() - self._began
        each = self._busy / self._items if self._items else 0.0
        self.note(seconds=seconds, each=each, calls=self._calls, commits=self._commits)

    # -- the trial ---------------------------------------------------------------------------------------------------

    def begins(self, root: str, save: str) -> tuple[str, str]:
        """The run lives in the plan's folder and saves by the plan's rules too."""
        number = self._numbers.setdefault(os.path.abspath(root), len(self._numbers))
        folder = os.path.join(self._plan.folder, f"run-{number}")
        self._given[folder] = (number, root)
        live_elsewhere(root, folder)
        if self._began is None:
            self._began = time.monotonic()
            self._kill_later()
        return folder, f"{save} {self._plan.save}".strip()

    def made(self, run: Any) -> None:
        """Its loop is watched from here on, by methods of its own; a weak reference, so that it ends when it would."""
        (number, root), ref = self._given[run.path], weakref.ref(run)
        self.note(run=number, root=root, generators=generators())
        for name, watched in (
            ("resume", self._resume),
            ("batches", self._batches),
            ("epochs", self._epochs),
            ("close", self._close),
        ):
            vars(run)[name] = partial(watched, ref, number)

    def _resume(self, ref: Any, number: int) -> Any:
        run = ref()
        position = type(run).resume(run)
        self.note(resumed=number, step=None if position is None else position.step)
        return position

    def _batches(self, ref: Any, number: int, loader: Any) -> Iterator[Any]:
        run = ref()
        for item in type(run).batches(run, loader):
            step = run.position.step
            self.note(item=number, step=step, digest=digest(item))
            due = self._due(number, step)
            if due and self._kill is not None and self._kill.where == "inside an item":
                delay = self._kill.share * self._busy / max(self._items, 1)
                threading.Thread(target=self._die, args=(delay,), daemon=True).start()
            elif due and self._kill is not None and self._kill.where == "between items":
                self._die()
            begin = time.perf_counter()
            yield item
            self._busy += time.perf_counter() - begin
            self._items += 1
            if due and self._kill is not None and self._kill.where == "inside an item":
                self._die()  # the item was faster than the thread

    def _due(self, number: int, step: int) -> bool:
        kill = self._kill
        due = kill is not None and (number, step) >= (kill.run, kill.step)
        self._armed = self._armed or due
        return due

    def _epochs(self, ref: Any, number: int, count: int) -> Iterator[int]:
        run = ref()
        yield from type(run).epochs(run, count)
        self._audit(run, number)

    def _close(self, ref: Any, number: int) -> None:
        run = ref()
        self._audit(run, number)
        type(run).close(run)

    def _audit(self, run: Any, number: int) -> None:
        if self._plan.audit and number not in self._audited:
            self._audited.add(number)
            self.note(audit=number, report=run.audit().to_dict())

    # -- the kill ----------------------------------------------------------------------------------------------------

    def _kill_later(self) -> None:
        if self._kill is not None and self._kill.where == "at some time":
            threading.Thread(target=self._die, args=(self._kill.seconds,), daemon=True).start()

    def _die(self, delay: float = 0.0) -> None:
        time.sleep(delay)
        self.note(killed=None if self._kill is None else self._kill.where)
        os.kill(os.getpid(), signal.SIGKILL)

    def on_event(self, event: str, args: tuple[Any, ...]) -> None:
        """Python is about to do something that its auditors may hear of: counts what changes the runs on disk."""
        if event not in _CHANGES or os.getpid() != self._pid or not _is_change(event, args, self._plan.folder):
            return
        self._calls += 1
        commits = event == "os.rename" and parse_step(os.path.basename(os.fsdecode(args[1]))) is not None
        self._commits += commits
        if self._armed and self._kill is not None and self._kill.where == "inside a save":
            self._calls_left -= 1
            if self._calls_left <= 0 or (commits and self._kill.step > 0):  # this save, not a later one
                self._die()


def _is_change(event: str, args: tuple[Any, ...], folder: str) -> bool:
    path = args[0] if args else None
    if not isinstance(path, str) or not path.startswith(folder + os.sep):
        return False
    return event != "open" or bool(args[2] & (os.O_WRONLY | os.O_RDWR))


def generators() -> dict[str, str]:
    """The state of each global generator on the CPU, as a digest: tells which ones a script does not seed."""
    torch, numpy = sys.modules.get("torch"), sys.modules.get("numpy")
    found = {"python": digest(random.getstate())}
    if numpy is not None:
        found["numpy"] = digest(numpy.random.get_state())
    return found if torch is None else found | {"torch": digest(torch.get_rng_state())}


def digest(item: Any) -> str:
    """What an item of a loader holds, as a digest: tensors, arrays and plain values in any nesting."""
    hasher = xxhash.xxh3_64()
    todo = [item]
    while todo:
        part = todo.pop()
        if isinstance(part, Mapping):
            todo += [*part.keys(), *part.values()]
        elif isinstance(part, list | tuple):
            todo += part
        else:
            hasher.update(_content(part))
        hasher.update(type(part).__name__.encode())
    return hasher.hexdigest()


def _content(part: Any) -> bytes:
    torch, numpy = sys.modules.get("torch"), sys.modules.get("numpy")
    if torch is not None and isinstance(part, torch.Tensor) and part.layout is torch.strided:
        flat = part.detach().resolve_conj().resolve_neg().cpu().contiguous().reshape(-1)
        return repr((part.dtype, part.shape)).encode() + bytes(flat.view(torch.uint8).numpy().data)
    if numpy is not None and isinstance(part, numpy.ndarray | numpy.generic) and part.dtype != object:
        return repr((part.dtype, part.shape)).encode() + bytes(part.tobytes())
    return repr(part).encode() if isinstance(part, str | bytes | int | float | complex) else b""


def main() -> None:
    """Runs the script as Python would, as ``__main__`` with its own arguments and its own folder first in the path."""
    plan = msgspec.json.decode(sys.argv[1], type=Plan)
    script = os.path.abspath(sys.argv[2])
    watch = Watch(plan)
    put_on_trial(watch)
    sys.addaudithook(watch.on_event)
    sys.argv[:] = sys.argv[2:]
    if not sys.flags.safe_path:
        sys.path[0] = os.path.dirname(os.path.realpath(script))
    try:
        runpy.run_path(script, run_name="__main__")
    finally:
        watch.ended()

"""What the benchmarks share: rounds in turns, medians, limits of the machine, memory in a process, one table."""

from __future__ import annotations

import argparse
import datetime
import gc
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from rich.console import Console
from rich.table import Table

Work = Callable[[], object]
_SPAN = 4 << 20


def nothing() -> None:
    """The preparation of what needs none."""


class Case(NamedTuple):
    """One row's work; only ``work`` is timed. ``rounds`` is how often at most, None as often as the others."""

    work: Work
    prepare: Work = nothing
    rounds: int | None = None


class Row(msgspec.Struct):
    """One line of a table.

    Attributes:
        what: is measured.
        value: the median, in ``unit``; None where there is none, and the note says why.
        unit: ``s``, ``ms``, ``MB`` or ``x``.
        ratios: to each peer, by the peer's name.
        limit: share of the machine's own limit, measured in the same run; 1.0 is as fast as the machine.
        memory: peak resident MB above the state, in a process that does nothing else.
        promise: as in docs/promises.md, its number first.
        met: whether; None where nothing is promised.
        note: what a reader must know of this row.
    """

    what: str
    value: float | None
    unit: str = "s"
    ratios: dict[str, float] = {}
    limit: float | None = None
    memory: float | None = None
    promise: str = ""
    met: bool | None = None
    note: str = ""


class Result(msgspec.Struct):
    """What a script found, as ``--json`` writes it."""

    script: str
    title: str
    rows: list[Row]
    notes: list[str]
    machine: str
    versions: str
    date: str


# ---- time ------------------------------------------------------------------------------------------------------------


def measure(cases: Mapping[str, Case], rounds: int) -> dict[str, list[float]]:
    """Seconds of each case in each round, one round of each after the other: A B A B."""
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for number in range(rounds + 1):  # the first round warms memory and page cache, and is not counted
        for name, case in cases.items():
            if case.rounds is not None and number > case.rounds:
                continue
            gc.collect()
            case.prepare()
            begin = time.perf_counter()
            case.work()
            if number:
                seconds[name].append(time.perf_counter() - begin)
    return seconds


def ratio(seconds: Mapping[str, Sequence[float]], ours: str, peer: str) -> float:
    """The median of the rounds' ratios: both sides of a round ran right after each other."""
    return statistics.median(a / b for a, b in zip(seconds[ours], seconds[peer], strict=False))  # some run less often


def timed(
    title: str, seconds: Mapping[str, Sequence[float]], peers: Mapping[str, str], limit: str | None = None
) -> dict[str, Row]:
    """A row for each case, by its name.

    Args:
        title: comes before each name.
        seconds: of :func:`measure`.
        peers: name in the table to the case that it is.
        limit: the case that is the machine's limit.
    """
    rounds = max(map(len, seconds.values()))
    rows = {}
    for name, values in seconds.items():
        row = rows[name] = Row(f"{title}: {name}", statistics.median(values))
        row.ratios = {peer: ratio(seconds, name, case) for peer, case in peers.items() if case in seconds}
        if limit is not None:
            row.limit = ratio(seconds, limit, name)
        if len(values) < rounds:
            row.note = f"{len(values)} rounds"
    return rows


def promise(row: Row, number: str, **bounds: float) -> None:
    """Writes down what is promised of a row, as upper bounds of its ratios, and whether it holds."""
    row.promise = f"{number}: " + ", ".join(f"<= {bound:g}x {peer}" for peer, bound in bounds.items())
    row.met = all(row.ratios[peer] <= bound for peer, bound in bounds.items())


def at_most(row: Row, number: str, bound: float) -> None:
    """The same for the value itself."""
    row.promise = f"{number}: <= {bound:g} {row.unit}"
    row.met = row.value is not None and row.value <= bound


def missing(title: str, reasons: Mapping[str, str]) -> list[Row]:
    """Rows of peers that could not be measured here."""
    return [Row(f"{title}: {name}", None, note=reason) for name, reason in reasons.items()]


# ---- limits of the machine -------------------------------------------------------------------------------------------


def _spans(blocks: Iterable[memoryview]) -> list[tuple[int, memoryview]]:
    """Offset in the file and bytes, in pieces that several threads can share."""
    spans, offset = [], 0
    for block in blocks:
        spans += [(offset + at, block[at : at + _SPAN]) for at in range(0, block.nbytes, _SPAN)]
        offset += block.nbytes
    return spans


def _in_threads(work: Callable[[Any], object], items: Iterable[Any]) -> None:
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        list(threads.map(work, items))


def raw_write(path: Path, blocks: Sequence[memoryview]) -> None:
    """The limit for writing: the same bytes with pwrite from all cores into a preallocated file, no digest."""
    fd = os.open(path, os.O_CREAT | os.O_WRONLY)

    def write(span: tuple[int, memoryview]) -> None:
        offset, data = span
        while data:
            done = os.pwrite(fd, data, offset)
            offset, data = offset + done, data[done:]

    try:
        os.posix_fallocate(fd, 0, sum(block.nbytes for block in blocks))
        _in_threads(write, _spans(blocks))
    finally:
        os.close(fd)


def raw_read(path: Path, blocks: Sequence[memoryview]) -> None:
    """The limit for restoring: the same bytes with preadv on all cores into the live tensors, nothing verified."""
    fd = os.open(path, os.O_RDONLY)

    def read(span: tuple[int, memoryview]) -> None:
        offset, data = span
        while data:
            done = os.preadv(fd, [data], offset)
            offset, data = offset + done, data[done:]

    try:
        _in_threads(read, _spans(blocks))
    finally:
        os.close(fd)


def memcpy(into: memoryview, blocks: Sequence[memoryview]) -> None:
    """The limit of anything that moves these bytes: one copy into memory that is there already, on one core."""
    offset = 0
    for block in blocks:
        into[offset : offset + block.nbytes] = block
        offset += block.nbytes


# ---- memory ----------------------------------------------------------------------------------------------------------

_PROCESS = """
import ctypes, gc, json, re, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
folder = Path(sys.argv[1])
import torch, holdfast
def status(key):
    return int(re.search(key + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
{setup}
peaks = {{}}
for name, work in json.loads(sys.argv[3]).items():
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what the one before freed is not this one's to take without being seen
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark begins here
    before = status("VmRSS")
    exec(work)
    peaks[name] = (status("VmHWM") - before) / 1024
print("peaks", json.dumps(peaks))
"""


def peaks(folder: Path, setup: str, works: Mapping[str, str]) -> dict[str, float]:
    """MB of resident memory that each work needs above what is there before it, in a process that does nothing else.

    Args:
        folder: known as ``folder`` to all.
        setup: Python lines; benchmarks/ can be imported.
        works: Python lines by name, run one after the other.
    """
    script = _PROCESS.format(setup=setup)
    command = [sys.executable, "-W", "ignore", "-c", script, str(folder), str(Path(__file__).parent), json.dumps(works)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"a process that measures memory failed:\n{script}\n{done.stderr}")
    found: dict[str, float] = json.loads(done.stdout.split("peaks ")[-1])
    return found


# ---- the table -------------------------------------------------------------------------------------------------------


def parser(text: str | None) -> argparse.ArgumentParser:
    """The options that all scripts have."""
    result = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument("--pairs", type=int, default=5, help="rounds, of which the median is taken")
    result.add_argument("--folder", type=Path, default=None, help="where to write; a folder of the system by default")
    result.add_argument("--json", type=Path, default=None, metavar="FILE", help="write the rows to this file too")
    return result


def finish(args: argparse.Namespace, title: str, rows: Sequence[Row], notes: Sequence[str] = ()) -> None:
    """Prints the one table, and writes ``--json``."""
    script = Path(sys.argv[0]).stem
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    result = Result(script, title, list(rows), list(notes), machine(), versions(), today)
    heads, lines = cells(result.rows)
    table = Table(*heads, title=title)
    for line in lines:
        table.add_row(*line)
    console = Console(width=None if sys.stdout.isatty() else 170)
    console.print(table)
    for note in [*notes, result.machine, result.versions]:
        console.print(note, highlight=False)
    if args.json is not None:
        args.json.write_bytes(msgspec.json.format(msgspec.json.encode(result)))


def cells(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Heads and lines of a table; columns that would be empty are left out."""
    peers = list(dict.fromkeys(peer for row in rows for peer in row.ratios))
    columns: list[tuple[str, Callable[[Row], str]]] = [
        ("what", lambda row: row.what),
        ("value", lambda row: "-" if row.value is None else f"{row.value:.3g} {row.unit}"),
        *((f"to {peer}", lambda row, peer=peer: _shown(row.ratios.get(peer), "{:.2f}x")) for peer in peers),
        ("of the machine's limit", lambda row: _shown(row.limit, "{:.0%}")),
        ("peak extra memory", lambda row: _shown(row.memory, "{:.0f} MB")),
        ("promise", lambda row: row.promise),
        ("", lambda row: {None: "", True: "met", False: "**not met**"}[row.met]),
        ("note", lambda row: row.note),
    ]
    kept = [(head, show) for head, show in columns if any(show(row) for row in rows)]
    return [head for head, _ in kept], [[show(row) for _, show in kept] for row in rows]


def _shown(value: float | None, form: str) -> str:
    return "" if value is None else form.format(value)


def machine() -> str:
    """The machine in one line."""
    cpu = next(
        (line.split(": ")[1] for line in _lines("/proc/cpuinfo") if line.startswith("model name")), "unknown CPU"
    )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{os.cpu_count()} cores of {cpu}, {memory:.0f} GB, Linux {platform.release()}"


def versions() -> str:
    """What was compared, in one line."""
    peers = ["tensorizer", "torchsnapshot", "fastsafetensors", "runai-model-streamer"]
    names = ["torch", "safetensors", "numpy", "isal", "xxhash", *peers]
    found = {dist.metadata["Name"].lower(): dist.version for dist in metadata.distributions()}
    kept = [f"{name} {found[name]}" for name in names if name in found]
    return ", ".join([f"Python {platform.python_version()}", *kept])


def _lines(path: str) -> list[str]:
    return Path(path).read_text(encoding="utf-8").splitlines()

"""What it takes to start and to look: P7 and P8 of docs/promises.md.

    python benchmarks/opening.py [--pairs 5] [--checkpoints 5000] [--verified 512] [--folder DIR]

Whole processes are timed from their start to their exit, beside a bare ``python -c pass``, on copies of the package:
one with bytecode, as an installation has it, one without, as after a change. The large files have real headers of 300
tensors in 100 GB and no data: they take no room. ``safetensors.safe_open`` maps such a file whole, which a machine
with less memory refuses, and is no row for it. The rows of a round run one after the other, ``--pairs`` rounds,
medians. ``verify`` reads ``--verified`` MB, once from memory and once from the disk, beside plain ``preadv`` of the
same file by as many threads as there are cores and beside the 1.5 GB/s that a core is expected to digest: the lower of
the two is the limit, and the ratio is to it.
"""

from __future__ import annotations

import concurrent.futures
import datetime
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import torch
from table import Row, at_most, finish, parser
from torch._subclasses.fake_tensor import FakeTensorMode

import holdfast
from holdfast.runs.catalog import scan
from holdfast.runs.entries import encode_entries
from holdfast.runs.layout import ENTRIES, MANIFEST, STATE
from holdfast.runs.manifest import FileRecord, encode, read_manifest
from holdfast.spec import CHUNK, Entry, TensorSpec
from holdfast.state.encoding import dumps
from holdfast.storage.digest import digest_bytes

TENSORS = 300
SMALL, LARGE = 1 << 20, 100 << 30
BLOCK = 8 << 20
KINDS = (".safetensors", ".pt", " run")
MAIN = "from holdfast.cli.main import main; main()"
Taken = tuple[float, float]
"""Seconds on the clock, and of processor time: what other programs on the machine do shows in the first."""
Work = Callable[[], Taken]
Seconds = dict[str, list[Taken]]


# ---- files -----------------------------------------------------------------------------------------------------------


def names() -> list[str]:
    """The tensors of a model of many layers."""
    return [f"model.layers.{number // 8}.block.w{number % 8}.weight" for number in range(TENSORS)]


def sparse_safetensors(path: Path, total: int) -> int:
    """A file whose data is a hole; returns the bytes of its header."""
    each = total // TENSORS // 4 * 4
    rows = {
        name: {"dtype": "F32", "shape": [each // 4], "data_offsets": [index * each, (index + 1) * each]}
        for index, name in enumerate(names())
    }
    header = json.dumps(rows).encode()
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + each * TENSORS)
    return 8 + len(header)


def sparse_pt(path: Path, total: int) -> None:
    """A file of torch.save whose storages are holes."""
    with FakeTensorMode():
        state = {name: torch.empty(total // TENSORS // 4) for name in names()}
    with torch.serialization.skip_data(materialize_fake_tensors=True):
        torch.save(state, path)


def sparse_run(root: Path, total: int) -> None:
    """A run whose newest checkpoint has a container of holes, with as many digests as its bytes call for."""
    with holdfast.Run(root, model=torch.nn.Linear(2, 2)) as run:
        run.save(step=1)
    folder = Path(scan(root).checkpoints[-1].path)
    head = sparse_safetensors(folder / "model.safetensors", total)
    each = total // TENSORS // 4 * 4
    chunks = ("0" * 32,) * -(-each // CHUNK)
    spec = TensorSpec("float32", (each // 4,))
    entries = [
        Entry(("model", name), spec, "model.safetensors", name, head + index * each, each, chunks)
        for index, name in enumerate(names())
    ]
    tree = {"version": 0, "tree": {"model": {name: {"$tensor": index} for index, name in enumerate(names())}}}
    with (folder / "model.safetensors").open("rb") as file:
        files = {"model.safetensors": FileRecord(head + each * TENSORS, digest_bytes(file.read(head)), head)}
    for name, data in ((ENTRIES, encode_entries(entries)), (STATE, dumps(tree))):
        (folder / name).write_bytes(data)
        files[name] = FileRecord(len(data), digest_bytes(data))
    manifest = msgspec.structs.replace(read_manifest(str(folder)), files=files)
    (folder / MANIFEST).write_bytes(encode(manifest))


def long_run(root: Path, count: int) -> None:
    """A run of many checkpoints, with metrics and retention rules; their containers are left out."""
    with holdfast.Run(root, model=torch.nn.Linear(2, 2), keep=["last:3", "1000step"], best="loss:min") as run:
        run.save(step=0)
    first = read_manifest(scan(root).checkpoints[-1].path)
    for step in range(1, count):
        folder = root / f"step-{step:08d}"
        folder.mkdir()
        metrics = {"loss": 1 / step, "accuracy": step / count}
        later = first.time + datetime.timedelta(minutes=step)
        manifest = msgspec.structs.replace(first, step=step, epoch=step, time=later, metrics=metrics)
        (folder / MANIFEST).write_bytes(encode(manifest))


# ---- measuring -------------------------------------------------------------------------------------------------------


def environment(package: Path) -> dict[str, str]:
    """That of this process, without what it says to Python, and with a copy of the package."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return {**plain, "PYTHONPATH": str(package), "PYTHONDONTWRITEBYTECODE": "1"}


def process(*command: str, package: Path) -> Work:
    """Runs python with a copy of the package, from start to exit."""

    def run() -> Taken:
        begin = time.perf_counter()
        child = subprocess.Popen([sys.executable, *command], env=environment(package), stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(child.pid, 0)
        taken = time.perf_counter() - begin
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode:
            raise subprocess.CalledProcessError(child.returncode, command)
        return taken, usage.ru_utime + usage.ru_stime

    return run


def imported(name: str, package: Path) -> Work:
    """Imports a module in a process of its own; only the import counts."""

    def run() -> Taken:
        clocks = "perf_counter(), process_time()"
        code = f"from time import *\na, b = {clocks}\nimport {name}\nc, d = {clocks}\nprint(c - a, d - b)"
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment(package), capture_output=True, text=True, check=True
        )
        wall, busy = map(float, done.stdout.split())
        return wall, busy

    return run


def timed(work: Callable[[], object]) -> Work:
    """Runs something in this process."""

    def run() -> Taken:
        begin, busy = time.perf_counter(), time.process_time()
        work()
        return time.perf_counter() - begin, time.process_time() - busy

    return run


def measure(rows: dict[str, Work], rounds: int) -> Seconds:
    """What each row took in each round."""
    seconds: Seconds = {name: [] for name in rows}
    for number in range(rounds + 1):  # the first round warms memory and page cache, and is not counted
        for name, work in rows.items():
            taken = work()
            if number:
                seconds[name].append(taken)
    return seconds


def copies(folder: Path) -> tuple[Path, Path]:
    """The package with bytecode, and without."""
    source = Path(holdfast.__file__).parent
    for name in ("compiled", "plain"):
        shutil.copytree(source, folder / name / "holdfast", ignore=shutil.ignore_patterns("__pycache__"))
    compiled, plain = folder / "compiled", folder / "plain"
    process("-m", "compileall", "-q", str(compiled), package=compiled)()
    return compiled, plain


def lazily(path: Path) -> None:
    """Opens a file, and looks at every leaf of it, reading none."""
    with holdfast.open(path) as opened:
        assert len(list(opened)) > 0


def json_header(path: Path) -> None:
    """What a header costs that is read and decoded, and not checked."""
    with path.open("rb") as file:
        json.loads(file.read(int.from_bytes(file.read(8), "little")))


def json_manifests(root: Path) -> None:
    """The same for the manifests of a run."""
    for folder in sorted(root.glob("step-*")):
        json.loads((folder / MANIFEST).read_bytes())


def raw_read(path: Path) -> None:
    """The machine's limit: all bytes of a file with plain preadv, by as many threads as there are cores."""
    size, descriptor = path.stat().st_size, os.open(path, os.O_RDONLY)
    blocks = [bytearray(BLOCK) for _ in range(os.cpu_count() or 1)]

    def part(number: int) -> None:
        for offset in range(number * BLOCK, size, len(blocks) * BLOCK):
            os.preadv(descriptor, [blocks[number]], offset)

    with concurrent.futures.ThreadPoolExecutor(len(blocks)) as threads:
        list(threads.map(part, range(len(blocks))))
    os.close(descriptor)


def forgotten(path: Path, work: Callable[[Path], object]) -> Work:
    """The seconds of ``work`` after the page cache has let go of a file."""

    def run() -> Taken:
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)
        return timed(lambda: work(path))()

    return run


# ---- rows ------------------------------------------------------------------------------------------------------------


def median(taken: list[Taken], which: int) -> float:
    """Of the seconds on the clock (0), or of processor time (1)."""
    return statistics.median(one[which] for one in taken)


def row(seconds: Seconds, name: str, peer: str, limit: float | None = None) -> Row:
    """What, its time, and beside it the peer's time and its own processor time."""
    ours, other = median(seconds[name], 0), median(seconds[peer], 0)
    found = Row(name, 1e3 * ours, "ms")
    found.note = f"{1e3 * median(seconds[name], 1):.0f} ms of processor time; {peer} takes {1e3 * other:.3g} ms"
    if limit is not None:
        at_most(found, "P7", 1e3 * limit)
    return found


def processes(folder: Path, pairs: int, checkpoints: int) -> list[Row]:
    """Rows of whole processes."""
    compiled, plain = copies(folder)
    run = folder / "long-run"
    long_run(run, checkpoints)
    bare, needs = "python -c pass", "import click, msgspec"
    rows = {
        bare: process("-c", "pass", package=compiled),
        needs: process("-c", needs, package=compiled),
        "import holdfast": imported("holdfast", compiled),
    }
    targets = {f"inspect {size}{kind}": folder / f"{size}{kind}" for size in ("1 MB", "100 GB") for kind in KINDS}
    for name, path in targets.items():
        rows[name] = process("-c", MAIN, "inspect", str(path), package=compiled)
    for name, path in targets.items():
        rows[f"{name}, no bytecode"] = process("-c", MAIN, "inspect", str(path), package=plain)
    listed, decoded = f"ls of {checkpoints:,} checkpoints", "json.loads of their manifests"
    rows |= {listed: process("-c", MAIN, "ls", str(run), package=compiled), decoded: timed(lambda: json_manifests(run))}
    seconds = measure(rows, pairs)
    inspected = [name for name in rows if name.startswith("inspect")]
    return [
        row(seconds, "import holdfast", bare, 0.030),
        row(seconds, needs, bare),
        *(row(seconds, name, bare, 0.150) for name in inspected),
        row(seconds, listed, decoded, 1.0),
    ]


def opened(folder: Path, pairs: int) -> list[Row]:
    """Rows of opening lazily in a process that has torch."""
    tensors, archive, run = (folder / f"100 GB{kind}" for kind in KINDS)
    rows = {
        "open 100 GB.safetensors": timed(lambda: lazily(tensors)),
        "json.loads of its header": timed(lambda: json_header(tensors)),
        "open 100 GB.pt": timed(lambda: lazily(archive)),
        "open 100 GB run": timed(lambda: lazily(run)),
    }
    seconds = measure(rows, pairs)
    return [
        row(seconds, "open 100 GB.safetensors", "json.loads of its header", 0.050),
        row(seconds, "open 100 GB.pt", "json.loads of its header", 0.050),
        row(seconds, "open 100 GB run", "json.loads of its header", 0.050),
    ]


def verified(folder: Path, pairs: int, megabytes: int) -> list[Row]:
    """Rows of P8."""
    state = {f"w{number}": torch.randn(1 << 20) for number in range(max(megabytes // 4, 1))}
    rows: dict[str, Work] = {}
    sizes: dict[str, int] = {}
    for kind in (".safetensors", ".pt"):
        path = folder / f"verified{kind}"
        holdfast.save(state, path)
        for place, prepared in (("memory", lambda path, work: timed(lambda: work(path))), ("the disk", forgotten)):
            for what, work in (("verify", holdfast.verify), ("preadv of", raw_read)):
                name = f"{what} {megabytes} MB{kind} from {place}"
                rows[name] = prepared(path, work)
                sizes[name] = path.stat().st_size
    seconds = measure(rows, pairs)
    found = []
    for name in [name for name in rows if name.startswith("verify")]:
        peer = name.replace("verify", "preadv of")
        speeds = [sizes[name] / one / 1e9 for one, _ in seconds[name]]
        raw = [sizes[name] / one / 1e9 for one, _ in seconds[peer]]
        cores = 1.5 * (os.cpu_count() or 1)
        ratio = statistics.median(a / min(b, cores) for a, b in zip(speeds, raw, strict=True))
        line = Row(
            name, statistics.median(speeds), "GB/s", limit=ratio, promise="P8: >= 80% of the limit", met=ratio >= 0.8
        )
        line.note = f"the limit is the lower of {peer}, {statistics.median(raw):.3g} GB/s, and {cores:.1f} GB/s"
        found.append(line)
    return found


def main() -> None:
    """Measures and prints one table."""
    options = parser(__doc__)
    options.add_argument("--checkpoints", type=int, default=5000, help="of the run that is listed")
    options.add_argument("--verified", type=int, default=512, help="MB of the files that are verified")
    args = options.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder = Path(name)
        for label, size in (("1 MB", SMALL), ("100 GB", LARGE)):
            sparse_safetensors(folder / f"{label}.safetensors", size)
            sparse_pt(folder / f"{label}.pt", size)
            sparse_run(folder / f"{label} run", size)
        rows = [
            *processes(folder, args.pairs, args.checkpoints),
            *opened(folder, args.pairs),
            *verified(folder, args.pairs, args.verified),
        ]
    finish(args, "Starting, opening and verifying", rows, [f"load of the machine at the end: {os.getloadavg()[0]:.1f}"])


if __name__ == "__main__":
    main()

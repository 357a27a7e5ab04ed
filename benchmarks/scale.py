"""What a checkpoint of a large model on many ranks would cost: a calculation, nothing of that size is run.

    python benchmarks/scale.py [--write]

``cost`` is a pure function of a model, a number of ranks and a machine. Sizes of parts, digests and entries come from
holdfast itself; times per entry were measured (``Measured``), bandwidths and limits of a store are assumed
(``Machine``). ``--write`` puts the tables into docs/scale.md, where a test compares them with what this gives.
"""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
from scale_models import MODELS, Model

from holdfast.runs.entries import ENTRIES_LIMIT
from holdfast.runs.lease import LEASE, RENEWED
from holdfast.spec import CHUNK, Entry, TensorSpec
from holdfast.storage.remote import store
from holdfast.storage.remote.store import PARALLEL, PART

PAGE = Path(__file__).resolve().parent.parent / "docs" / "scale.md"
RANKS = (8, 64, 512, 1024, 4096)


@dataclass(frozen=True)
class Measured:
    """What was measured on two cores of AMD EPYC; scale_constants.py does it again. Bytes a second, seconds an entry.

    Attributes:
        digest: verifying from memory, two cores (benchmarks/README.md, ``opening.py``).
        upload: the second reading of an upload, which one thread digests and cuts into blocks.
        call: of a background save, before it returns.
        told: bytes that a rank sends of each piece: what it could write, and what it wrote.
        hear: unpickling that, on every rank, and dealing it out, on rank 0.
        commit: making, checking and writing an entry, on rank 0.
        open: reading and checking an entry, on every rank.
        kept: bytes of memory that an entry takes in each process that has a checkpoint open.
        once: what decodes the entries in one call, during which no other thread of the process runs.
        record: bytes of the manifest for each file.
    """

    digest: float = 6.31e9
    upload: float = 0.8e9
    call: float = 0.009
    told: int = 222
    hear: float = 6e-6
    commit: float = 16e-6
    open: float = 21e-6
    kept: int = 1800
    once: float = 3.2e-6
    record: int = 138


@dataclass(frozen=True)
class Machine:
    """What is assumed of the machines and of the store; nothing here was measured. Bytes, seconds, bytes a second.

    Attributes:
        memory: of one accelerator; a state that does not fit is not calculated.
        copy: from one accelerator to the host, all of a host at once.
        disk: of one rank, reading or writing: one NVMe drive each.
        network: that one rank gathers with: gloo over TCP.
        latency: of a request, to its first byte.
        connection: of one request to the store.
        puts, gets: requests a second that one prefix of a bucket takes.
        measured: the rest.
    """

    memory: float = 80e9
    copy: float = 25e9
    disk: float = 3e9
    network: float = 1e9
    latency: float = 0.1
    connection: float = 85e6
    puts: float = 3500
    gets: float = 5500
    measured: Measured = Measured()

    def rate(self, part: int) -> float:
        """Bytes a second of one rank to or from the store: each of a few requests waits, and then moves a part."""
        return PARALLEL * part / (self.latency + part / self.connection)


@dataclass(frozen=True)
class Cost:
    """What one checkpoint costs. Bytes, seconds; the slowest rank where ranks differ.

    Attributes:
        ranks: processes.
        mean: bytes of a rank.
        largest: bytes of the rank that has most.
        files: in the checkpoint's folder.
        pieces: that the tensors are cut into.
        entries: of entries.json.
        metadata: bytes of entries.json and the manifest.
        gathered: bytes that each rank is told by the others.
        memory: bytes that the entries take in each process when they are read.
        coordinator: seconds in which all wait for rank 0 and for what it is told.
        puts, gets: requests of a save, and of a load on the same ranks.
        stall: seconds that the training stands still at most, if the state is copied off the accelerator at once.
        save_disk, load_disk, reshard_disk: seconds.
        save_store, load_store, reshard_store: seconds.
    """

    ranks: int
    mean: float
    largest: float
    files: int
    pieces: int
    entries: int
    metadata: int
    gathered: int
    memory: int
    coordinator: float
    puts: int
    gets: int
    stall: float
    save_disk: float
    load_disk: float
    reshard_disk: float
    save_store: float
    load_store: float
    reshard_store: float


def cost(model: Model, ranks: int, machine: Machine | None = None, *, cut: int | None = None, part: int = PART) -> Cost:
    """What a checkpoint of ``model`` costs on ``ranks`` ranks.

    Args:
        model: what is saved.
        ranks: processes; each tensor is cut along its rows over them, as FSDP2 does.
        machine: what is assumed.
        cut: ranks that a tensor is cut over, where the others have copies of it; all of them by default.
        part: bytes of a part of an upload.
    """
    machine = machine or Machine()
    known = machine.measured
    cut = min(ranks, cut or ranks)
    layout = _layout(model, ranks, cut, known)
    largest, metadata = layout.largest, layout.metadata
    waiting = (
        layout.pieces * (known.told / machine.network + known.hear)
        + layout.entries * known.commit
        + metadata / machine.disk
    )
    puts = layout.writers * upload_requests(model.bytes / layout.writers, part) + upload_requests(metadata, part) + 2
    rate = min(machine.rate(part), known.upload)
    sending = max(largest / rate, puts / machine.puts) + metadata / rate
    load = _load(layout, machine, largest, largest)
    wider = [_resharded(one, cut) for one in layout.plan]
    reshard = _load(layout, machine, *(sum(pair[i] for pair in wider) * cut / ranks for i in (0, 1)))
    return Cost(
        ranks=ranks,
        mean=model.bytes / ranks,
        largest=largest,
        files=layout.writers + 3,
        pieces=layout.pieces,
        entries=layout.entries,
        metadata=metadata,
        gathered=layout.pieces * known.told,
        memory=layout.entries * known.kept,
        coordinator=waiting,
        puts=puts,
        gets=load[2],
        stall=known.call + largest / machine.copy,
        save_disk=waiting + largest / min(machine.disk, known.digest),
        load_disk=load[0],
        reshard_disk=reshard[0],
        save_store=waiting + largest / known.digest + sending,
        load_store=load[1],
        reshard_store=reshard[1],
    )


def _load(layout: _Layout, machine: Machine, verified: float, wanted: float) -> tuple[float, float, int]:
    """Seconds from the disk and from the store, and requests: all is read to be verified, then into its place."""
    known, ranks, writers = machine.measured, layout.ranks, layout.writers
    opening = layout.entries * known.open
    disk = (layout.metadata + verified) / min(machine.disk, known.digest) + wanted / known.digest
    read = layout.metadata + verified + wanted
    gets = ranks * (2 * writers + 2 + -(-math.ceil(read) // PART))  # of each file its size is asked for, and its header
    slowest = 2 * writers / PARALLEL * machine.latency + read / min(machine.rate(PART), known.digest)
    return opening + disk, opening + max(slowest, gets / machine.gets), gets


def upload_requests(size: float, part: int = PART) -> int:
    """Requests of one upload: one for a small object, else its parts, and one to begin and one to end."""
    size = math.ceil(size)
    return 1 if size <= PART else 2 + -(-size // max(part, -(-size // store._MOST_PARTS)))


@dataclass(frozen=True)
class _Cut:
    """``tensors`` of one shape and dtype, each in ``pieces`` of ``height`` rows; the last one may have fewer."""

    tensors: int
    spec: TensorSpec
    height: int
    pieces: int

    @property
    def bytes(self) -> int:
        """Of a piece."""
        return self.height * self.spec.shape[1] * self.spec.itemsize


@dataclass(frozen=True)
class _Layout:
    """Who writes what; as in :class:`Cost`."""

    plan: list[_Cut]
    ranks: int
    writers: int
    pieces: int
    entries: int
    largest: float
    metadata: int


def _layout(model: Model, ranks: int, cut: int, measured: Measured) -> _Layout:
    plan = list(_plan(model, cut))
    pieces = sum(one.tensors * one.pieces for one in plan)
    wholes = sum(one.tensors for one in plan if one.pieces > 1)
    writers = min(ranks, max(one.pieces for one in plan) * (ranks // cut))
    first = sum(one.tensors * one.bytes for one in plan)  # of the first rank of each cut, spread over its copies
    metadata = sum(one.tensors * _entry_bytes(one, cut) for one in plan) + writers * measured.record
    return _Layout(plan, ranks, writers, pieces, pieces + wholes, first * cut / ranks, metadata)


def _plan(model: Model, cut: int) -> Iterator[_Cut]:
    for group in model.groups:
        height = -(-group.rows // cut)
        for dtype in model.dtypes:
            spec = TensorSpec(dtype, (group.rows, group.columns))
            yield _Cut(group.count, spec, height, -(-group.rows // height))


def _entry_bytes(one: _Cut, cut: int) -> int:
    """Bytes of the entries of one tensor, by encoding those of a piece in the middle and of the whole."""
    name = "model.layers.40.self_attn.q_proj.weight"
    at, digest = one.pieces // 2 * one.height, "0" * 32
    rows, columns = one.height, one.spec.shape[1]
    box = f"{at}:{at + rows},0:{columns}"
    chunks = (digest,) * -(-one.bytes // CHUNK)
    path = (*name.split(".", 1), box)
    spec = TensorSpec(one.spec.dtype, (rows, columns))
    piece = Entry(path, spec, f"rank-{cut // 2:05d}.safetensors", f"{name}[{box}]", 1 << 30, one.bytes, chunks)
    size = len(msgspec.json.encode(piece)) + 1
    if one.pieces == 1:
        return size
    whole = Entry(path[:2], one.spec, "", "", 0, one.spec.nbytes)
    rectangle = len(msgspec.json.encode((1_000_000, (at, 0)))) + 1
    return one.pieces * (size + rectangle) + len(msgspec.json.encode(whole)) + len(',"rectangles":[]')


def _resharded(one: _Cut, cut: int) -> tuple[int, int]:
    """Bytes that a rank of twice as many verifies and wants of tensors of one shape.

    Digests are of whole chunks, and a piece has chunks of its own. So half of a small piece costs all of it.
    """
    wanted = -(-one.spec.shape[0] // (2 * cut)) * one.spec.shape[1] * one.spec.itemsize
    unit = min(one.bytes, CHUNK)
    return one.tensors * min(-(-wanted // unit) * unit, one.bytes), one.tensors * wanted


# ---- what breaks ---------------------------------------------------------------------------------------------------


BREAKS: dict[str, Callable[[Cost], bool]] = {
    "entries.json is over the 512 MiB that a reader takes": lambda one: (
        one.metadata - one.files * Measured().record > ENTRIES_LIMIT
    ),
    "rank 0 takes longer than the writing": lambda one: one.coordinator > one.save_disk / 2,
    "opening takes each process a minute": lambda one: one.entries * Measured().open > 60,
    "eight processes of a host keep 64 GB of entries in memory": lambda one: 8 * one.memory > 64e9,
    f"one call outlasts what is left of the lease ({LEASE - RENEWED:.0f} s)": (
        lambda one: one.entries * Measured().once > LEASE - RENEWED
    ),
}


def first_ranks(model: Model, broken: Callable[[Cost], bool], most: int = 1 << 16) -> int | None:
    """The fewest ranks at which something is so; None when it is not at ``most``. What is so stays so with more."""
    low, high = 1, most
    if not broken(cost(model, high)):
        return None
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if broken(cost(model, middle)) else (middle + 1, high)
    return low


def slow_down(machine: Machine, part: int = PART) -> int:
    """Ranks whose uploads together send more requests a second than one prefix takes."""
    return math.ceil(machine.puts * part / min(machine.rate(part), machine.measured.upload))


def small_pieces(model: Model, ranks: int) -> tuple[float, float]:
    """Shares of the pieces that are smaller than their entries, and of the bytes that those have."""
    plan = list(_plan(model, ranks))
    small = [one for one in plan if one.bytes * one.pieces < _entry_bytes(one, ranks)]
    count = sum(one.tensors * one.pieces for one in small) / sum(one.tensors * one.pieces for one in plan)
    return count, sum(one.tensors * one.spec.nbytes for one in small) / model.bytes


# ---- the page ------------------------------------------------------------------------------------------------------


def _size(value: float) -> str:
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= scale:
            return f"{value / scale:.3g} {unit}"
    return f"{value:.0f} B"


def _time(value: float) -> str:
    return f"{value:,.0f} s" if value >= 10 else f"{value:.2g} s" if value >= 0.1 else f"{1000 * value:.2g} ms"


def _table(heads: list[str], lines: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(line) + " |" for line in [heads, ["---"] * len(heads), *lines])


def tables() -> dict[str, str]:
    """The tables of docs/scale.md, by the names of their marks."""
    fitting = [(m, cost(m, ranks)) for m in MODELS for ranks in RANKS]
    rows = [(m.name, f"{one.ranks:,}", one) for m, one in fitting if one.largest <= Machine().memory]
    times = ("stall", "coordinator", "save_disk", "load_disk", "reshard_disk", "save_store", "load_store")
    heads = ["stall", "rank 0", "save, disk", "load, disk", "twice the ranks", "save, store", "load, store"]
    sizes, counts = ("largest", "metadata", "gathered"), ("files", "entries", "puts", "gets")
    ways = {f"{ranks:,}": [cost(MODELS[-1], ranks), cost(MODELS[-1], ranks, cut=512)] for ranks in (1024, 4096)}
    return {
        "sizes": _table(
            ["model", "ranks", "largest rank", "metadata", "told to each", "files", "entries", "PUT", "GET, HEAD"],
            [
                [
                    name,
                    ranks,
                    *(_size(getattr(one, key)) for key in sizes),
                    *(f"{getattr(one, key):,}" for key in counts),
                ]
                for name, ranks, one in rows
            ],
        ),
        "times": _table(
            ["model", "ranks", *heads],
            [[name, ranks, *(_time(getattr(one, key)) for key in times)] for name, ranks, one in rows],
        ),
        "breaks": _table(
            ["from how many ranks on", *(model.name for model in MODELS)],
            [[what, *(_ranks(first_ranks(model, broken)) for model in MODELS)] for what, broken in BREAKS.items()]
            + [
                [
                    f"uploads pass 3,500 requests a second, parts of {part >> 20} MiB",
                    *[f"{slow_down(Machine(), part):,}"] * 3,
                ]
                for part in (PART, 8 * PART)
            ],
        ),
        "small": _table(
            ["model", "ranks", "of the pieces", "of the bytes"],
            [
                [model.name, f"{ranks:,}", *(f"{100 * share:.2g} %" for share in small_pieces(model, ranks))]
                for model in MODELS
                for ranks in (512, 4096)
            ],
        ),
        "copies": _table(
            ["400B on", "cut over", "entries", "metadata", "rank 0", "save, disk", "load, disk"],
            [
                [ranks, cut, f"{one.entries:,}", _size(one.metadata)]
                + [_time(value) for value in (one.coordinator, one.save_disk, one.load_disk)]
                for ranks, pair in ways.items()
                for cut, one in zip(("all", "512"), pair, strict=True)
            ],
        ),
    }


def _ranks(value: int | None) -> str:
    return "-" if value is None else f"{value:,}"


def page(text: str) -> str:
    """A page with the tables between their marks."""
    for name, table in tables().items():
        text, count = re.subn(
            rf"(<!-- table: {name} -->\n).*?(<!-- end -->)", rf"\1\n{table}\n\n\2", text, flags=re.DOTALL
        )
        if count != 1:
            raise SystemExit(f"{PAGE.name}: has {count} places for the table {name}")
    return text


def main() -> None:
    """Prints the tables, or writes them into the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write them into docs/scale.md")
    if parser.parse_args().write:
        PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    else:
        print("\n\n".join(tables().values()))


if __name__ == "__main__":
    main()

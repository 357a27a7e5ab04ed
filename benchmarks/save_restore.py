"""Saving and restoring GPT-2 with its AdamW moments: P1 and P2 of docs/promises.md.

    python benchmarks/save_restore.py [--pairs 5] [--layers 12] [--folder DIR] [--no-memory]

The state is 1.49 GB in 438 tensors and more. Every row is measured side by side with its peers in one run: one round
of each after the other, ``--pairs`` rounds, medians; packages beside torch and safetensors run two rounds. All files
are removed before each save; all sides write through the page cache (``durable=False``, as torch.save does), and all
read every byte into the live tensors. Our side always digests and verifies.

The machine's limits in the same run: pwrite and preadv of the same bytes from all cores, and one copy in memory.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import peers
from states import Live, gpt2
from table import Case, Row, Work, finish, measure, memcpy, missing, parser, peaks, promise, raw_read, raw_write, timed

RAW, COPY = "raw, all cores", "memcpy, one core"


def saving(live: Live, usable: dict[str, peers.Peer], folder: Path) -> dict[str, Case]:
    """What is timed for P1. Before each, all files are removed: its pages are those that the one before has let go of.

    Otherwise a page that the machine has never given out costs several times the write, and only the first few rows
    would not pay for it.
    """

    def prepare() -> None:
        for path in folder.iterdir():
            peers.removed(path)
        os.sync()

    blocks = live.blocks()
    room = memoryview(bytearray(sum(block.nbytes for block in blocks)))
    cases = {
        COPY: Case(lambda: memcpy(room, blocks)),
        RAW: Case(lambda: raw_write(folder / "raw", blocks), prepare),
    }
    for name, peer in usable.items():
        if peer.save:
            path = folder / peer.file
            cases[name] = Case(lambda save=peer.save, path=path: save(live, path), prepare, peer.rounds)
    return cases


def restoring(live: Live, usable: dict[str, peers.Peer], folder: Path) -> dict[str, Case]:
    """What is timed for P2: the files are in the page cache."""

    def there(save: Callable[[Live, Path], object] | None, path: Path) -> Work:
        return lambda: None if path.exists() or save is None else save(live, path)

    raw = folder / "raw"
    cases = {
        RAW: Case(lambda: raw_read(raw, live.blocks()), there(lambda _, path: raw_write(path, live.blocks()), raw))
    }
    writers = {peer.file: peer.save for peer in usable.values() if peer.save}
    for name, peer in usable.items():
        if peer.restore:
            path = folder / peer.file
            cases[name] = Case(
                lambda restore=peer.restore, path=path: restore(live, path),
                there(writers.get(peer.file), path),
                peer.rounds,
            )
    return cases


def remember(rows: dict[str, Row], verb: str, layers: int, folder: Path) -> None:
    """Fills in the memory that each way needs above the state."""
    names = [name for name in rows if name in peers.PEERS]
    works = {name: f"PEERS[{name!r}].{verb}(live, folder / PEERS[{name!r}].file)" for name in names}
    setup = f"from states import gpt2; from peers import PEERS, warm; warm(PEERS); live = gpt2({layers})"
    for name, found in peaks(folder, setup, works).items():
        rows[name].memory = found


def main() -> None:
    """Measures and prints one table."""
    options = parser(__doc__)
    options.add_argument("--layers", type=int, default=12, help="of the model; fewer for a quick look")
    options.add_argument("--no-memory", action="store_true", help="leave out the processes that measure memory")
    args = options.parse_args()
    live = gpt2(args.layers)
    usable, left_out = peers.usable()
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder = Path(name)
        against = {"torch": "torch", "safetensors": "safetensors"}
        saved = timed("save", measure(saving(live, usable, folder), args.pairs), against, RAW)
        loaded = timed("restore", measure(restoring(live, usable, folder), args.pairs), against, RAW)
        if not args.no_memory:
            remember(saved, "save", args.layers, folder)
            remember(loaded, "restore", args.layers, folder)
    promise(saved["ours .pt"], "P1", torch=0.5)
    promise(saved["ours .safetensors"], "P1", torch=0.33, safetensors=0.8)
    for key in peers.OURS:
        promise(loaded[key], "P2", torch=0.2, safetensors=0.7)
    size = sum(block.nbytes for block in live.blocks())
    rows = [*saved.values(), *missing("save", left_out), *loaded.values(), *missing("restore", left_out)]
    notes = ["Peak extra memory of mapped files holds their pages, which the kernel may take back."]
    finish(args, f"{size:,} bytes of GPT-2 and AdamW", rows, notes)


if __name__ == "__main__":
    main()

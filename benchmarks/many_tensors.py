"""Fifty thousand small tensors, where only what is done for each of them counts: P5 of docs/promises.md.

    python benchmarks/many_tensors.py [--pairs 5] [--count 50000] [--folder DIR] [--no-memory]

State M is 50,000 tensors of 64 floats. Saving and loading through the page cache, all sides in turns, medians of the
rounds' ratios; packages beside torch and safetensors run two rounds. ``ours, torch's .pt`` reads the file that
torch.save wrote. DCP and torchsnapshot know no loading without a state to load into; they are in save_restore.py.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import peers
from states import many_tensors
from table import Case, finish, measure, missing, parser, peaks, promise, timed


def main() -> None:
    """Measures and prints one table."""
    options = parser(__doc__)
    options.add_argument("--count", type=int, default=50_000, help="tensors; fewer for a quick look")
    options.add_argument("--no-memory", action="store_true", help="leave out the processes that measure memory")
    args = options.parse_args()
    state = many_tensors(args.count)
    usable, left_out = peers.usable()
    saving, loading = {}, {}
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder = Path(name)
        for key, peer in usable.items():
            path = folder / peer.file
            if peer.save_flat:
                try:
                    peer.save_flat(state, path)
                except Exception as error:  # a package that is not made for so many
                    left_out[key] = f"fails with {args.count:,} tensors: {type(error).__name__}: {error}"[:80]
                    continue

                def gone(path: Path = path) -> None:
                    peers.removed(path)
                    os.sync()

                saving[key] = Case(lambda save=peer.save_flat, path=path: save(state, path), gone, peer.rounds)
            if peer.load_flat:
                loading[key] = Case(lambda load=peer.load_flat, path=path: load(path), rounds=peer.rounds)
        against = {"torch": "torch", "safetensors": "safetensors"}
        saved = timed("save", measure(saving, args.pairs), against)
        loaded = timed("load", measure(loading, args.pairs), against)
        setup = "from states import many_tensors; from peers import PEERS, warm; warm(PEERS)\n"
        setup += f"state = many_tensors({args.count})"
        for rows, work in (
            (saved, "PEERS[{0!r}].save_flat(state, folder / PEERS[{0!r}].file)"),
            (loaded, "PEERS[{0!r}].load_flat(folder / PEERS[{0!r}].file)"),
        ):
            if args.no_memory:
                break
            for key, found in peaks(folder, setup, {key: work.format(key) for key in rows}).items():
                rows[key].memory = found
    for key in peers.OURS:
        if key in saved:
            promise(saved[key], "P5", torch=0.5)
        promise(loaded[key], "P5", torch=0.33)
    gone_rows = missing("save and load", {key: why for key, why in left_out.items() if peers.PEERS[key].load_flat})
    notes = [] if args.no_memory else ["peak extra memory of a load holds the tensors that it returns"]
    finish(args, f"{args.count:,} tensors of 64 floats", [*saved.values(), *loaded.values(), *gone_rows], notes)


if __name__ == "__main__":
    main()

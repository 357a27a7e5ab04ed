"""Sharded checkpoints on several processes, beside plain torch.distributed.checkpoint on the same ranks.

    python benchmarks/distributed.py [--ranks 2] [--megabytes 512] [--pairs 5] [--folder DIR]

Every rank holds its part of a model and its AdamW moments, sharded by rows as FSDP2 leaves them, in one process group
on gloo. The rows of a round run one after the other on all ranks; a time is that of the slowest rank, ratios are
medians of the rounds' ratios. ``durable`` fsyncs on both sides (torch's writer: ``sync_files``); the old checkpoint is
removed first for torch's side, ours keeps it until the new one is committed. Loads touch every byte; ours verifies all
digests, torch's has none. The first load after a save reads ours from the disk, since what is saved goes past the page
cache, and torch's from memory; the second reads both from memory. Reshard is a load into the same tensors cut by
columns.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
from table import Row, finish, parser

TENSORS = 24
WIDTH = 1024


def main() -> None:
    """Starts the ranks and prints what rank 0 measured."""
    options = parser(__doc__)
    options.add_argument("--ranks", type=int, default=2)
    options.add_argument("--megabytes", type=int, default=512)
    args = options.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        results = Path(folder) / "results.json"
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={args.ranks}"]
        numbers = [str(args.megabytes), str(args.pairs)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        subprocess.run([*launcher, __file__, "--worker", folder, *numbers], check=True, env=environment)
        rows = msgspec.json.decode(results.read_bytes(), type=list[Row])
    finish(args, f"{args.megabytes} MB on {args.ranks} processes", rows)


class Rank:
    """One process: its part of the state, and each way to save and load it."""

    def __init__(self, folder: Path, megabytes: int) -> None:
        import torch
        import torch.distributed as dist
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.tensor import Shard, distribute_tensor

        torch.set_num_threads(1)
        self.folder = folder
        self.background = dist.new_group(backend="gloo")  # its collectives must not mix with those of the clock
        rows = megabytes * (1 << 20) // (TENSORS * WIDTH * 4)
        mesh = init_device_mesh("cpu", (int(os.environ["WORLD_SIZE"]),))
        torch.manual_seed(0)

        def made(axis: int) -> dict[str, Any]:
            whole = torch.randn(rows, WIDTH)
            return {f"t{n}": distribute_tensor(whole + n, mesh, [Shard(axis)]) for n in range(TENSORS)}

        self.rows, self.columns = made(0), made(1)

    def theirs(self, name: str) -> Any:
        """Torch's writer."""
        from torch.distributed.checkpoint import FileSystemWriter

        return FileSystemWriter(self.folder / name, sync_files=True)

    def ours(self, name: str) -> Any:
        """Our writer."""
        from holdfast.distributed import HoldfastWriter

        return HoldfastWriter(self.folder / name)

    def save(self, writer: Any) -> None:
        import torch.distributed.checkpoint as dcp

        dcp.save(self.rows, storage_writer=writer)

    def save_async(self, writer: Any) -> Callable[[], object]:
        import torch.distributed.checkpoint as dcp

        found: Any = dcp.async_save(self.rows, storage_writer=writer, process_group=self.background)
        return found.result

    def load(self, reader: Any, state: dict[str, Any]) -> None:
        import torch.distributed.checkpoint as dcp

        dcp.load(dict(state), storage_reader=reader)


def timed(work: Callable[[], object]) -> float:
    """Seconds of the slowest rank, from a common start."""
    import torch
    import torch.distributed as dist

    dist.barrier()
    begin = time.perf_counter()
    work()
    spent = torch.tensor(time.perf_counter() - begin)
    dist.all_reduce(spent, op=dist.ReduceOp.MAX)
    return float(spent)


def measured(rank: Rank, pairs: int) -> dict[str, list[float]]:
    """Seconds of each row, by round."""
    from torch.distributed.checkpoint import FileSystemReader

    from holdfast.distributed import HoldfastReader

    found: dict[str, list[float]] = {}

    def note(what: str, work: Callable[[], object]) -> None:
        found.setdefault(what, []).append(timed(work))

    for _ in range(pairs):
        for side, writer, reader in (
            ("DCP", rank.theirs, FileSystemReader),
            ("ours", rank.ours, HoldfastReader),
        ):
            if side == "DCP" and int(os.environ["RANK"]) == 0:
                shutil.rmtree(rank.folder / side, ignore_errors=True)
            note(f"save, {side}", lambda writer=writer, side=side: rank.save(writer(side)))
            for what in ("first load", "load"):
                note(
                    f"{what}, {side}", lambda reader=reader, side=side: rank.load(reader(rank.folder / side), rank.rows)
                )
            note(
                f"reshard, {side}",
                lambda reader=reader, side=side: rank.load(reader(rank.folder / side), rank.columns),
            )
            waits: list[Callable[[], object]] = []
            note(
                f"async stall, {side}",
                lambda writer=writer, side=side, waits=waits: waits.append(rank.save_async(writer(f"{side}-async"))),
            )
            note(f"async rest, {side}", waits[0])
    return found


def work(folder: Path, megabytes: int, pairs: int) -> None:
    """What each rank does."""
    import torch.distributed as dist

    dist.init_process_group("cpu:gloo")
    found = measured(Rank(folder, megabytes), pairs)
    if dist.get_rank() == 0:
        rows = []
        for what in ("save", "async stall", "async rest", "first load", "load", "reshard"):
            theirs, ours = found[f"{what}, DCP"], found[f"{what}, ours"]
            ratio = statistics.median(b / a for a, b in zip(theirs, ours, strict=True))
            rows.append(Row(f"{what}, torch's writer and reader", statistics.median(theirs)))
            rows.append(Row(f"{what}, ours", statistics.median(ours), ratios={"DCP": ratio}))
        (folder / "results.json").write_bytes(msgspec.json.encode(rows))
    dist.barrier()
    sys.stdout.flush()
    os._exit(0)  # taking gloo's threads down at exit aborts now and then


if __name__ == "__main__":
    if "--worker" in sys.argv:
        warnings.simplefilter("ignore")
        place, *numbers = sys.argv[2:]
        work(Path(place), int(numbers[0]), int(numbers[1]))
    main()

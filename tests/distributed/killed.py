"""Kills one rank at one call that changes the disk, again and again. ``killed.py FOLDER EVERY``.

Two forked processes save a run that has step 1 and, with ``EVERY``, are killed at every so many calls of either. After
each kill the newest checkpoint must be step 1 or step 2, whole and to the bit, and a new writer must go on. Prints one
line of JSON: what was counted.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import warnings
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Shard, distribute_tensor

import holdfast
from holdfast.errors import StorageError
from holdfast.storage.syscalls import Syscalls

CALLS = ("open_new", "allocate", "pwritev", "fsync", "mkdir", "rename", "exchange", "unlink", "chmod", "fsync_folder")
RANKS = 2
_SHAPE = (7, 3)


class Table:
    """A state of one sharded and one whole tensor."""

    def __init__(self) -> None:
        self.state: dict[str, Any] = {}

    def fill(self, value: int, mesh: DeviceMesh | None) -> None:
        whole = torch.full(_SHAPE, float(value))
        sharded = whole if mesh is None else distribute_tensor(whole, mesh, [Shard(0)])
        self.state = {"sharded": sharded, "whole": torch.full((3,), value), "value": value}

    def state_dict(self) -> dict[str, Any]:
        return self.state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.state = state


def count_calls(kill_at: int | None) -> list[int]:
    """Counts the calls of this process from now on, and kills it at one."""
    count = [0]
    for name in CALLS:
        real = getattr(Syscalls, name)

        def counted(*args: Any, real: Any = real, **kwargs: Any) -> Any:
            if count[0] == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            count[0] += 1
            return real(*args, **kwargs)

        setattr(Syscalls, name, counted)
    return count


def rank_process(folder: Path, rank: int, guilty: int | None, point: int | None) -> None:
    """One rank: makes step 1, then step 2, in which the guilty one is killed."""
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=RANKS, timeout=timedelta(seconds=20)
    )
    mesh = DeviceMesh("cpu", list(range(RANKS)))
    table = Table()
    run = holdfast.Run(folder / "run", table=table, keep="last:1")
    table.fill(1, mesh)
    run.save(step=1)
    table.fill(2, mesh)
    calls = count_calls(point if rank == guilty else None)
    try:
        run.save(step=2)
    except StorageError:
        return
    (folder / f"calls-{rank}").write_text(str(calls[0]))


def forked(folder: Path, guilty: int | None, point: int | None) -> list[int]:
    """Both ranks; how they ended."""
    children = []
    for rank in range(RANKS):
        child = os.fork()
        if not child:
            try:
                rank_process(folder, rank, guilty, point)
            except BaseException:
                import traceback

                traceback.print_exc()
                os._exit(3)
            os._exit(0)
        children.append(child)
    return [os.waitpid(child, 0)[1] for child in children]


def newest(run: Path) -> int:
    """The value that the newest checkpoint holds, once all of it was compared."""
    tree = holdfast.load(run)["table"]
    value = tree["value"]
    assert torch.equal(tree["sharded"], torch.full(_SHAPE, float(value))), tree
    assert torch.equal(tree["whole"], torch.full((3,), value)), tree
    assert holdfast.verify(run).status == "OK"
    return int(value)


def main(folder: Path, every: int) -> dict[str, int]:
    """Counts what came of it."""
    place = folder / "free"
    place.mkdir()
    assert forked(place, None, None) == [0] * RANKS
    calls = [int((place / f"calls-{rank}").read_text()) for rank in range(RANKS)]
    found = {"calls": sum(calls), "kills": 0, "old": 0, "new": 0}
    for guilty in range(RANKS):
        for point in range(guilty % every, calls[guilty], every):
            place = folder / f"{guilty}-{point}"
            place.mkdir()
            ended = forked(place, guilty, point)
            assert ended[guilty] == signal.SIGKILL, ended
            assert ended[1 - guilty] == 0, ended
            found["kills"] += 1
            found["old" if newest(place / "run") == 1 else "new"] += 1
            table = Table()
            with holdfast.Run(place / "run", table=table) as run:  # alone: another number of ranks
                run.resume()
                table.fill(3, None)
                run.save(step=3)
            assert newest(place / "run") == 3
            assert not [name for name in os.listdir(place / "run") if name.endswith(".partial")]
            shutil.rmtree(place)
    return found


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    print(json.dumps(main(Path(sys.argv[1]), int(sys.argv[2]))), flush=True)
    os._exit(0)

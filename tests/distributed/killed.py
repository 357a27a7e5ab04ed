"""Kills one rank at one call that changes the disk, again and again. ``killed.py FOLDER EVERY HOW``.

Two forked processes save a state for the second time and are killed at every so many calls of either. ``run`` saves two
steps of a Run, ``dcp`` the same folder twice by ``dcp.save`` with HoldfastWriter. After each kill the newest checkpoint
must be the first or the second one, whole and to the bit, and a new writer must go on. Prints what was counted, as a
line of JSON.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import warnings
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Shard, distribute_tensor

import holdfast
from holdfast.distributed import HoldfastWriter
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


def saver(how: str, path: Path, table: Table) -> Callable[[int], None]:
    """What saves the table as the step that it is given; dcp has one folder for all."""
    if how == "run":
        run = holdfast.Run(path, table=table, keep="last:1")
        return lambda step: void(run.save(step=step))
    return lambda step: void(dcp.save({"table": table.state}, storage_writer=HoldfastWriter(path)))


def void(_: object) -> None:
    pass


def rank_process(folder: Path, how: str, rank: int, guilty: int | None, point: int | None) -> None:
    """One rank: makes step 1, then step 2, in which the guilty one is killed."""
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=RANKS, timeout=timedelta(seconds=20)
    )
    mesh = DeviceMesh("cpu", list(range(RANKS)))
    table = Table()
    table.fill(1, mesh)
    save = saver(how, folder / "run", table)
    save(1)
    table.fill(2, mesh)
    calls = count_calls(point if rank == guilty else None)
    try:
        save(2)
    except (StorageError, CheckpointException, RuntimeError):  # of torch, where the other rank is gone
        return
    (folder / f"calls-{rank}").write_text(str(calls[0]))


def forked(folder: Path, how: str, guilty: int | None, point: int | None) -> list[int]:
    """Both ranks; how they ended."""
    children = []
    for rank in range(RANKS):
        child = os.fork()
        if not child:
            try:
                rank_process(folder, how, rank, guilty, point)
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


def go_on(how: str, path: Path) -> None:
    """A writer alone: another number of ranks."""
    table = Table()
    table.fill(3, None)
    if how == "run":
        with holdfast.Run(path, table=table) as run:
            run.resume()
            table.fill(3, None)
            run.save(step=3)
    else:
        dcp.save({"table": table.state}, storage_writer=HoldfastWriter(path), no_dist=True)


def main(folder: Path, every: int, how: str) -> dict[str, int]:
    """Counts what came of it."""
    place = folder / "free"
    place.mkdir()
    assert forked(place, how, None, None) == [0] * RANKS
    calls = [int((place / f"calls-{rank}").read_text()) for rank in range(RANKS)]
    found = {"calls": sum(calls), "kills": 0, "old": 0, "new": 0}
    for guilty in range(RANKS):
        for point in range(guilty % every, calls[guilty], every):
            place = folder / f"{guilty}-{point}"
            place.mkdir()
            ended = forked(place, how, guilty, point)
            assert ended[guilty] == signal.SIGKILL, ended
            assert ended[1 - guilty] == 0, ended
            found["kills"] += 1
            found["old" if newest(place / "run") == 1 else "new"] += 1
            go_on(how, place / "run")
            assert newest(place / "run") == 3
            left = os.listdir(place / "run" if how == "run" else place)
            assert not [name for name in left if name.endswith(".partial")], left
            shutil.rmtree(place)
    return found


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    print(json.dumps(main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3])), flush=True)
    os._exit(0)

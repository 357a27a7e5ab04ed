"""Run by torchrun on four processes: saves under every wrapper, loads under others on fewer and more ranks.

``matrix.py FOLDER``. Rank 0 leaves the truth of each save beside it; every rank that sees a difference prints it and
ends with an error.
"""

from __future__ import annotations

import os
import sys
import warnings
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp

import holdfast
from holdfast.distributed import HoldfastReader, HoldfastWriter
from tests.distributed.wrapped import Part, differences, full, give, state_of, wrapped

SAVES = {"fsdp-4": 4, "ddp-4": 4, "fsdp-2": 2, "tp-4": 4, "fsdp+tp-4": 4, "single-1": 1, "tp-2": 2}
"""Each save and on how many ranks."""
LOADS = (
    ("fsdp-4", "fsdp", 2), ("fsdp-2", "fsdp", 4), ("fsdp-4", "single", 1), ("single-1", "fsdp", 3),
    ("fsdp-4", "tp", 2), ("tp-4", "fsdp", 3), ("tp-2", "tp", 4), ("ddp-4", "fsdp+tp", 4), ("fsdp+tp-4", "ddp", 2),
    ("fsdp+tp-4", "fsdp", 3), ("ddp-4", "ddp", 2), ("tp-4", "single", 1),
)  # fmt: skip


def main(folder: Path) -> list[str]:
    rank, problems = dist.get_rank(), list[str]()
    parts = {size: Part(size) for size in (1, 2, 3, 4)}
    for number, (name, size) in enumerate(SAVES.items()):
        if rank < size:
            net, optimizer = wrapped(name.rsplit("-", 1)[0], parts[size], seed=number)
            state = state_of(net, optimizer)
            dcp.save(state, storage_writer=HoldfastWriter(folder / name), process_group=parts[size].group)
            truth = full(state)
            if rank == 0:
                torch.save(truth, folder / f"{name}.truth")
    dist.barrier()
    for name, kind, size in LOADS:
        if rank < size:
            for how in ("dcp", "restore"):
                net, optimizer = wrapped(kind, parts[size], seed=100)
                try:
                    load_into(how, folder / name, net, optimizer, parts[size].group)
                except BaseException as reason:
                    problems.append(f"{name} -> {kind}-{size} by {how}: {type(reason).__name__} {reason}")
                    raise
                truth = torch.load(folder / f"{name}.truth")
                seen = full(state_of(net, optimizer))
                problems += [f"{name} -> {kind}-{size} by {how}: {one}" for one in differences(truth, seen)]
    dist.barrier()
    return problems


def load_into(how: str, path: Path, net: Any, optimizer: Any, group: Any) -> None:
    """Loads a save of :func:`state_of`, by torch's own engine or by ours."""
    if how == "dcp":
        state = state_of(net, optimizer)
        state |= {"step": 0, "args": {"name": "", "widths": ()}}
        dcp.load(state, storage_reader=HoldfastReader(path), process_group=group)
        give(net, optimizer, state)
    else:
        holdfast.restore(path, model=net, optim=optimizer)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    found = main(Path(sys.argv[1]))
    print("\n".join(found), flush=True)
    os._exit(bool(found))  # taking gloo's threads down at exit aborts now and then

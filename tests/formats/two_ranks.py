"""Two processes that save a sharded state with torch.distributed.checkpoint, and what it should be as one file.

Run by test_dcp.py: ``two_ranks.py RANK STORE FOLDER WHOLE``.
"""

from __future__ import annotations

import os
import sys
from datetime import timedelta

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

if __name__ == "__main__":
    rank, store, folder, whole = int(sys.argv[1]), *sys.argv[2:]
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=2, timeout=timedelta(seconds=60)
    )
    mesh = init_device_mesh("cpu", (2,))
    torch.manual_seed(0)
    full = {
        "rows": torch.randn(7, 5),
        "columns": torch.randn(6, 5).to(torch.bfloat16),
        "replicated": torch.arange(12).reshape(3, 4),
        "few": torch.randn(1, 3),
        "deep": torch.randn(3, 4, 5),
    }
    placed = {
        "rows": Shard(0), "columns": Shard(1), "replicated": Replicate(), "few": Shard(0), "deep": Shard(1),
    }  # fmt: skip
    model = {name: distribute_tensor(value, mesh, [placed[name]]) for name, value in full.items()}
    dcp.save({"model": model, "step": 7, "lists": [{"a": full["rows"]}, "text"]}, checkpoint_id=folder)
    if rank == 0:
        torch.save({"model": full, "step": 7, "lists": [{"a": full["rows"]}, "text"]}, whole)
    dist.barrier()
    os._exit(0)  # taking gloo's threads down at exit aborts now and then; all that is tested is on disk

"""What each process of a run has of its own: random states, its place in the data; on another number of them, too."""

from __future__ import annotations

import random
import sys
from typing import Any

import msgspec
import torch

from holdfast.formats.base import Document
from holdfast.objects.rng import capture_rng, restore_rng
from holdfast.runs.manifest import Manifest
from holdfast.serialization.reading import read_tree
from holdfast.state.flatten import child
from holdfast.storage.digest import digest_bytes
from holdfast.training.folder import RunFolder


class Own(msgspec.Struct, frozen=True):
    """What one process goes on with.

    Attributes:
        rng: the random state, or None where none was saved.
        loader: the place in the data, or None. With ``passed`` alone, how many items of a fresh pass are done.
        batch: items of the epoch that are done.
        notes: what is not as in a training that was not stopped.
    """

    rng: dict[str, Any] | None
    loader: dict[str, Any] | None
    batch: int
    notes: tuple[str, ...] = ()


def own_parts(document: Document, manifest: Manifest, folder: RunFolder, file: str) -> Own:
    """What a checkpoint has for this process.

    As many processes as saved it go on with what each had. Another number of them draws anew from the run's seed, and
    shares what is left of the epoch: the items that all of them had done are dealt out again.
    """
    ranks = child(document.tree, "ranks")
    saved = ranks if isinstance(ranks, list) else [document.tree]
    batch = manifest.batch or 0
    if len(saved) == folder.size:
        mine = saved[folder.rank]
        return Own(_read(mine, "rng", file), _read(mine, "loader", file), batch)
    rng, loader = _read(saved[0], "rng", file), _read(saved[0], "loader", file)
    done = batch * len(saved) // folder.size
    note = (
        f"step {manifest.step} was saved by {len(saved)} processes and goes on in {folder.size}: random states are "
        f"drawn anew from the run's seed, and of this epoch {done} items are done in each process; it is not "
        "bit-identical"
    )
    place = None if loader is None else {"passed": done}
    seed = int(digest_bytes(f"{manifest.run} {manifest.step} {folder.rank}".encode())[-15:], 16)
    return Own(None if rng is None else _seeded(seed), place, done, (note,))


def _read(tree: Any, name: str, file: str) -> dict[str, Any] | None:
    part = child(tree, name)
    state: dict[str, Any] | None = None if part is None else read_tree(part, file)
    return state


def _seeded(seed: int) -> dict[str, Any]:
    """The random state that a seed gives; the program's own is as it was."""
    before = capture_rng()
    try:
        random.seed(seed)
        torch.manual_seed(seed)
        numpy = sys.modules.get("numpy")
        if numpy is not None:
            numpy.random.seed(seed % 2**32)
        return capture_rng()
    finally:
        restore_rng(before)

"""Copy on step, block by block: what was read before the step, what is copied right before it, what tears it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from holdfast.errors import SnapshotTorn
from holdfast.formats.base import Document, StoredTensor
from holdfast.serialization.lowering import lower_state
from holdfast.serialization.memory import announce_write
from holdfast.state.flatten import leaves
from holdfast.storage.workers import BLOCK
from holdfast.training.snapshots.snapshot import Snapshot
from holdfast.training.snapshots.staging import SLAB, Staging

FLOATS = 3 * BLOCK // 4 + 100  # three blocks and a bit


class Trained:
    """One large parameter with momentum, one buffer, and a snapshot of both."""

    def __init__(self, *, digests: bool = False, optimizer: type = torch.optim.SGD) -> None:
        self.weight = nn.Parameter(torch.arange(float(FLOATS)))
        self.buffer = torch.zeros(BLOCK // 4)
        self.optimizer = optimizer([self.weight], lr=1.0)
        self.staging = Staging()
        tree = {"model": {"weight": self.weight.detach(), "buffer": self.buffer}}
        document = Document(lower_state(tree, row_major=True).tree)
        self.snapshot = Snapshot(document, self.staging, [self.optimizer], digests=digests)
        self.before = memory_of(self.weight)

    def source(self, name: str) -> Any:
        found = {path[-1]: leaf for path, leaf in leaves(self.snapshot.document.tree)}
        leaf = found[name]
        assert isinstance(leaf, StoredTensor)
        return leaf.segment.source

    def take(self, begin: int, end: int, name: str = "weight") -> bytes:
        data = bytearray(end - begin)
        self.source(name).take_into(begin, memoryview(data))
        return bytes(data)

    def step(self, *, grad: bool = True) -> None:
        if grad:
            self.weight.grad = torch.ones(FLOATS)
        self.snapshot.before_step(self.optimizer, closure=False)
        self.optimizer.step()


def memory_of(tensor: torch.Tensor) -> bytes:
    return tensor.detach().numpy().tobytes()


def test_what_was_read_is_not_copied_and_what_was_not_is() -> None:
    trained = Trained()
    assert trained.snapshot.copied == trained.buffer.nbytes  # nobody owns it
    first = trained.take(0, BLOCK)
    third = trained.take(2 * BLOCK, 3 * BLOCK)
    trained.step()
    assert memory_of(trained.weight) != trained.before
    assert trained.snapshot.copied == trained.buffer.nbytes + len(trained.before) - 2 * BLOCK
    rest = trained.take(BLOCK, 2 * BLOCK), trained.take(3 * BLOCK, len(trained.before))
    assert first + rest[0] + third + rest[1] == trained.before
    trained.snapshot.check()


def test_looking_is_not_taking() -> None:
    trained = Trained()
    data = bytearray(len(trained.before))
    trained.source("weight").read_into(0, memoryview(data))
    assert bytes(data) == trained.before == trained.source("weight").read(0, len(trained.before))
    trained.step()
    assert trained.source("weight").read(0, len(trained.before)) == trained.before
    assert trained.source("weight").read(BLOCK - 3, 7) == trained.before[BLOCK - 3 : BLOCK + 4]


def test_what_nobody_owns_is_copied_at_once() -> None:
    trained = Trained()
    trained.buffer.fill_(7)
    assert trained.take(0, BLOCK, "buffer") == bytes(BLOCK)
    trained.snapshot.check()


def test_a_step_that_changes_nothing_copies_nothing() -> None:
    """torch's optimizers leave a parameter without a gradient alone, so frozen ones in an optimizer cost nothing."""
    trained = Trained()
    trained.step(grad=False)
    assert trained.snapshot.copied == trained.buffer.nbytes
    trained.step()
    assert trained.take(0, len(trained.before)) == trained.before
    trained.snapshot.check()


def test_a_closure_and_a_strangers_optimizer_may_change_everything() -> None:
    class Mine(torch.optim.SGD):
        pass

    for trained, closure in ((Trained(), True), (Trained(optimizer=Mine), False)):
        trained.snapshot.before_step(trained.optimizer, closure=closure)
        assert trained.snapshot.copied == trained.buffer.nbytes + len(trained.before)


def test_a_write_behind_the_optimizer_tears_the_snapshot() -> None:
    trained = Trained()
    trained.take(0, BLOCK)
    with torch.no_grad():
        trained.weight.clamp_(max=5)
    with pytest.raises(SnapshotTorn, match=r"`model\.weight`: was written by the program while .* not committed"):
        trained.snapshot.check()
    with pytest.raises(SnapshotTorn):  # the writer stops at its next read, not at the end
        trained.take(BLOCK, 2 * BLOCK)


def test_a_write_that_the_step_would_hide_is_seen_before_it() -> None:
    trained = Trained()
    with torch.no_grad():
        trained.weight.mul_(2)
    trained.step()
    assert trained.snapshot.copied == trained.buffer.nbytes  # a torn snapshot is not worth a copy
    with pytest.raises(SnapshotTorn):
        trained.snapshot.check()


def test_a_write_after_everything_was_read_harms_nothing() -> None:
    trained = Trained()
    assert trained.take(0, len(trained.before)) == trained.before
    with torch.no_grad():
        trained.weight.mul_(2)
    trained.snapshot.check()


@pytest.mark.parametrize("digests", [False, True])
def test_a_write_through_data_is_seen_by_digests_only(digests: bool) -> None:
    trained = Trained(digests=digests)
    trained.weight.data.mul_(2)
    if digests:
        with pytest.raises(SnapshotTorn, match=r"`model\.weight`"):
            trained.take(0, BLOCK)
    else:
        assert trained.take(0, BLOCK) != trained.before[:BLOCK]
        trained.snapshot.check()


def test_a_restore_is_announced() -> None:
    trained = Trained()
    announce_write()
    with torch.no_grad():
        trained.weight.zero_()
    assert trained.take(0, len(trained.before)) == trained.before
    trained.snapshot.check()


def test_no_memory_for_the_copy_does_not_stop_the_training(monkeypatch: pytest.MonkeyPatch) -> None:
    trained = Trained()

    def refuse(_: int) -> memoryview:
        raise MemoryError("3 MB")

    monkeypatch.setattr(trained.staging, "take", refuse)
    trained.step()
    with pytest.raises(SnapshotTorn, match=r"there is no memory for a copy of what the next step changes \(3 MB\)"):
        trained.snapshot.check()


def test_staging_is_kept_and_given_back_whole() -> None:
    staging = Staging()
    first, second = staging.take(100), staging.take(SLAB - 200)
    first[:], second[:3] = b"x" * 100, b"abc"
    assert bytes(first[-3:]) == b"xxx"
    assert staging.size == SLAB
    assert staging.take(SLAB + 5).nbytes == SLAB + 5
    assert staging.size == 2 * SLAB + 5
    staging.give_back()
    assert {staging.take(SLAB // 2).nbytes for _ in range(4)} == {SLAB // 2}
    assert staging.size == 2 * SLAB + 5

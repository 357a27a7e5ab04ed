"""Copies off an accelerator, on a stand-in whose side stream does its work as late as it may."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from holdfast.errors import SnapshotTorn
from holdfast.formats.base import Document, Segment, StoredTensor
from holdfast.serialization.memory import TensorSource
from holdfast.serialization.side_stream import SideStream
from holdfast.spec import TensorSpec
from holdfast.state.flatten import leaves
from holdfast.storage.workers import BLOCK
from holdfast.training.snapshots import offloads as offloads_module
from holdfast.training.snapshots.offloads import Offloads
from holdfast.training.snapshots.snapshot import Snapshot
from holdfast.training.snapshots.staging import Staging, host_memory
from tests.training.late_stream import Api


class Trained:
    """A parameter that an optimizer owns and a buffer that nobody does, both "on the device"."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(offloads_module, "has_streams", lambda _: True)
        self.api = Api()
        self.offloads = Offloads(lambda device: SideStream(device, self.api), host_memory)
        self.weight = nn.Parameter(torch.arange(float(BLOCK // 2)))
        self.buffer = torch.ones(100, 7)
        self.optimizer = torch.optim.SGD([self.weight], lr=1.0)
        self.begin()

    def begin(self) -> None:
        tree = {name: stored(tensor) for name, tensor in (("weight", self.weight.detach()), ("buffer", self.buffer))}
        self.before = {"weight": self.weight.detach().clone(), "buffer": self.buffer.clone()}
        self.snapshot = Snapshot(Document(tree), Staging(), [self.optimizer], offloads=self.offloads)

    def read(self, name: str) -> torch.Tensor:
        leaf = {path[-1]: leaf for path, leaf in leaves(self.snapshot.document.tree)}[name]
        data = bytearray(leaf.segment.length)
        leaf.segment.source.take_into(0, memoryview(data))
        return torch.frombuffer(data, dtype=torch.float32).reshape(self.before[name].shape)

    def step(self) -> None:
        self.weight.grad = torch.ones_like(self.weight)
        self.snapshot.before_step(self.optimizer, closure=False)
        self.optimizer.step()


def stored(tensor: torch.Tensor) -> StoredTensor:
    source = TensorSource(tensor)
    return StoredTensor(TensorSpec("float32", tuple(tensor.shape)), Segment(source, 0, source.size))


def test_the_training_goes_on_and_the_copies_are_of_the_save(monkeypatch: pytest.MonkeyPatch) -> None:
    trained = Trained(monkeypatch)
    for _ in range(3):
        trained.step()
        trained.buffer.add_(1)
        assert torch.equal(trained.read("buffer"), trained.before["buffer"])
        assert torch.equal(trained.read("weight"), trained.before["weight"])
        assert not torch.equal(trained.weight.detach(), trained.before["weight"])
        trained.snapshot.check()
        trained.snapshot.close()
        assert trained.snapshot.copied == 0  # the processor copied nothing
        trained.begin()


def test_what_anything_may_change_is_waited_for_at_once_and_the_rest_before_the_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trained = Trained(monkeypatch)
    trained.buffer.zero_()  # the next thing the device does
    assert torch.equal(trained.read("buffer"), trained.before["buffer"])
    sources = [leaf.segment.source for _, leaf in leaves(trained.snapshot.document.tree)]
    weight = sources[0].event
    assert weight.waits == 0
    trained.step()
    assert weight.waits == 1


def test_the_stand_in_shows_a_missing_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SideStream, "hold_back", lambda *_: None)
    trained = Trained(monkeypatch)
    trained.step()
    trained.buffer.zero_()
    assert not torch.equal(trained.read("weight"), trained.before["weight"])
    assert not torch.equal(trained.read("buffer"), trained.before["buffer"])


def test_a_write_behind_the_optimizer_tears_it(monkeypatch: pytest.MonkeyPatch) -> None:
    trained = Trained(monkeypatch)
    with torch.no_grad():
        trained.weight.clamp_(max=3)
    trained.step()
    with pytest.raises(SnapshotTorn, match="`weight`: was written by the program"):
        trained.snapshot.check()


def test_the_side_stream_sees_what_was_started_before(monkeypatch: pytest.MonkeyPatch) -> None:
    trained = Trained(monkeypatch)
    (stream,) = trained.offloads._streams.values()
    assert stream._stream.waited_for == [trained.api.current]

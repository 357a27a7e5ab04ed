"""All or nothing: whatever goes wrong, live objects are as they were, bit for bit."""

from __future__ import annotations

import copy
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import holdfast
from holdfast.errors import CorruptFile, MismatchError, RestoreIncomplete, StorageError
from holdfast.storage.source import FileSource
from holdfast.transfer.apply import held_interrupts


class Scale(nn.Module):
    """Copies what it is given and then may refuse: the worst sort of loader."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.fc = nn.Linear(2, 3)
        self.register_buffer("seen", torch.zeros(3))
        self.version = seed
        self.cache: Any = None

    def get_extra_state(self) -> Any:
        return {"version": self.version}

    def set_extra_state(self, state: Any) -> None:
        self.version = state["version"]
        self.cache = object()
        self.register_buffer("late", torch.ones(1), persistent=False)
        if self.version == 666:
            raise ValueError("bad version")


class Counter:
    def __init__(self, count: int, fails: bool = False) -> None:
        self.count, self.fails = count, fails

    def state_dict(self) -> Any:
        return {"count": self.count, "seen": torch.full((3,), float(self.count))}

    def load_state_dict(self, state: Any) -> None:
        self.count = state["count"]
        if self.fails and self.count == 13:
            raise KeyError("thirteen")


class Program:
    """Everything a training has, and a picture of it."""

    def __init__(self, seed: int, fails: bool = False) -> None:
        torch.manual_seed(seed)
        self.model = nn.Sequential(nn.Linear(3, 40), nn.BatchNorm1d(40), nn.Linear(40, 2))
        self.scale = Scale(seed)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=0.1 * seed)
        self.scheduler = torch.optim.lr_scheduler.StepLR(self.optimizer, 2)
        for _ in range(seed):
            self.model(torch.randn(4, 3)).sum().backward()
            self.optimizer.step()
            self.scheduler.step()
        self.counter = Counter(13 if seed == 1 else seed, fails)
        self.generator = torch.Generator().manual_seed(seed)

    @property
    def objects(self) -> dict[str, Any]:
        return dict(vars(self))

    def picture(self) -> Any:
        picture = {name: one.state_dict() for name, one in self.objects.items() if name != "generator"}
        extra = [self.generator.get_state(), self.scale.version, self.scale.cache, sorted(self.scale._buffers)]
        return copy.deepcopy([picture, extra])


def equal(left: Any, right: Any) -> bool:
    if isinstance(left, torch.Tensor):
        return torch.equal(left, right)
    if isinstance(left, dict):
        return list(left) == list(right) and all(equal(left[key], right[key]) for key in left)
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(equal, left, right))
    return bool(left == right)


@pytest.fixture(params=["pt", "safetensors"])
def file(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / f"c.{request.param}"
    holdfast.save({**Program(1).objects, "epoch": 3}, path)
    return path


def test_everything_is_restored(file: Path) -> None:
    live, saved = Program(3), Program(1)
    report = holdfast.restore(file, **live.objects)
    assert equal(live.picture()[0], saved.picture()[0])
    assert torch.equal(live.generator.get_state(), saved.generator.get_state())
    assert report.values == {"epoch": 3}
    assert report.is_exact


def test_the_last_object_refuses(file: Path) -> None:
    live = Program(3, fails=True)
    before = live.picture()
    with pytest.raises(
        MismatchError, match=r"c\.\w+`: `counter` refused its state, nothing was changed: KeyError: 'thirteen'"
    ) as caught:
        holdfast.restore(file, **live.objects)
    assert caught.value.path == "counter"
    assert equal(live.picture(), before)


def test_a_module_refuses_half_way(tmp_path: Path) -> None:
    saved, live = Program(1), Program(3)
    saved.scale.version = 666
    holdfast.save(saved.objects, tmp_path / "c.pt")
    before = live.picture()
    parameter, moments = live.scale.fc.weight, live.optimizer.state[live.model[0].weight]["exp_avg"]
    with pytest.raises(MismatchError, match=r"`scale` refused its state, nothing was changed: ValueError: bad version"):
        holdfast.restore(tmp_path / "c.pt", **live.objects)
    assert equal(live.picture(), before)
    assert live.scale.fc.weight is parameter
    assert live.optimizer.state[live.model[0].weight]["exp_avg"] is moments
    live.scheduler.step()
    assert live.optimizer.param_groups[0]["lr"] == live.scheduler.get_last_lr()[0]


def test_a_module_that_torch_refuses(tmp_path: Path) -> None:
    live = Program(3)
    before = live.picture()
    tree = {
        **Program(1).objects,
        "scale": {"fc.weight": torch.ones(3, 2), "fc.bias": torch.ones(4), "x": torch.ones(1)},
    }
    holdfast.save(tree, tmp_path / "c.pt")
    with pytest.raises(
        MismatchError, match=r"`scale` refused its state, nothing was changed: RuntimeError: Error\(s\) in"
    ):
        holdfast.restore(tmp_path / "c.pt", **live.objects)
    assert equal(live.picture(), before)


def segments(file: Path) -> list[tuple[int, int]]:
    from holdfast.formats.detect import open_path

    with open_path(str(file)) as container:
        return [
            (segment.offset, segment.length)
            for segment in container.segments()
            if segment.length and not segment.name.startswith(".")
        ]


@pytest.mark.parametrize("spare", [False, True])
def test_one_bad_byte_in_any_tensor_changes_nothing(file: Path, spare: bool) -> None:
    live = Program(3)
    before, data = live.picture(), file.read_bytes()
    places = segments(file)
    assert len(places) > 15
    for offset, length in places:
        damaged = bytearray(data)
        damaged[offset + length // 2] ^= 0x10
        file.write_bytes(damaged)
        with pytest.raises(CorruptFile, match=r"at byte [\d,]+: .*corrupt. Nothing was loaded"):
            holdfast.restore(file, **live.objects, spare=spare)
        assert equal(live.picture(), before)
    file.write_bytes(data)
    holdfast.restore(file, **live.objects)


@pytest.fixture
def failing_reads(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, int]]:
    """Lets the disk fail at the n-th read of tensors after ``left`` was set."""
    state = {"left": -1}
    real = FileSource.read_into

    def read_into(self: FileSource, offset: int, buffer: memoryview) -> None:
        if state["left"] == 0:
            raise StorageError(f"`{self.name}`: can't be read at byte {offset}: Input/output error", file=self.name)
        state["left"] -= 1
        real(self, offset, buffer)

    monkeypatch.setattr(FileSource, "read_into", read_into)
    yield state
    state["left"] = -1


def reads_of(file: Path, state: dict[str, int], objects: dict[str, Any], *, spare: bool = False) -> int:
    state["left"] = 1_000_000
    holdfast.restore(file, **objects, spare=spare)
    return 1_000_000 - state["left"]


def test_a_disk_that_fails_at_any_read(file: Path, failing_reads: dict[str, int]) -> None:
    objects = {"model": nn.Sequential(nn.Linear(3, 40), nn.BatchNorm1d(40), nn.Linear(40, 2))}
    total = reads_of(file, failing_reads, objects)
    live = Program(3)
    before = live.picture()
    kinds = set()
    for left in range(total):
        failing_reads["left"] = left
        with pytest.raises(StorageError) as caught:
            holdfast.restore(file, model=live.model)
        kinds.add(type(caught.value))
        failing_reads["left"] = -1
        if type(caught.value) is RestoreIncomplete:
            assert "reading failed after all digests had been verified" in str(caught.value)
            assert "`model.0.weight`" in str(caught.value)
            assert "spare=True keeps a copy and rolls back" in str(caught.value)
            live = Program(3)
        else:
            assert equal(live.picture(), before)
    assert kinds == {StorageError, RestoreIncomplete}


def test_with_a_spare_a_failing_disk_changes_nothing(file: Path, failing_reads: dict[str, int]) -> None:
    total = reads_of(file, failing_reads, Program(2).objects, spare=True)
    live = Program(3)
    before = live.picture()
    for left in range(0, total, 3):
        failing_reads["left"] = left
        with pytest.raises(StorageError) as caught:
            holdfast.restore(file, **live.objects, spare=True)
        failing_reads["left"] = -1
        assert type(caught.value) is StorageError
        assert equal(live.picture(), before), left
    holdfast.restore(file, **live.objects)
    assert equal(live.picture()[0]["model"], Program(1).picture()[0]["model"])


class Slow(Counter):
    """Presses Ctrl-C in the middle of its own load."""

    def load_state_dict(self, state: Any) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        for _ in range(10_000):
            pass
        super().load_state_dict(state)


def test_ctrl_c_waits_for_the_end(file: Path) -> None:
    live, saved = Program(3), Program(1)
    live.counter = Slow(5)
    with pytest.raises(KeyboardInterrupt):
        holdfast.restore(file, **live.objects)
    assert live.counter.count == 13
    assert equal(live.picture()[0]["model"], saved.picture()[0]["model"])
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_another_thread_leaves_signals_alone(file: Path) -> None:
    live, errors = Program(3), []

    def work() -> None:
        try:
            holdfast.restore(file, **live.objects)
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert errors == []
    assert live.counter.count == 13


def test_an_ignored_ctrl_c_stays_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with held_interrupts():
            os.kill(os.getpid(), signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


class Adjacent(nn.Module):
    """Its weight is sparse."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.eye(3).to_sparse())


def test_a_sparse_parameter_takes_no_dense_values(tmp_path: Path) -> None:
    holdfast.save({"weight": torch.ones(3, 3)}, tmp_path / "w.pt")
    live = Adjacent()
    with pytest.raises(MismatchError, match="is sparse in the program and dense in the file; convert one of them"):
        holdfast.restore(tmp_path / "w.pt", model=live)
    assert live.weight.to_dense().equal(torch.eye(3))

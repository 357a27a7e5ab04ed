"""Run by torchrun: what a run does under a process group. ``run_together.py SCENE FOLDER``.

Each scene is a function; a rank that finds something wrong raises, and torchrun ends with an error.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.fsdp import fully_shard
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.data.distributed import DistributedSampler

import holdfast
from holdfast.distributed import HoldfastWriter, rank_file, saving
from holdfast.errors import StorageError
from holdfast.serialization.sharded import here
from holdfast.storage import joined
from tests.distributed.matrix import load_into
from tests.distributed.wrapped import Net, Part, differences, full, state_of, wrapped

PATIENCE = 6 if "absent" in sys.argv else 40
"""Seconds after which the group gives up on a rank."""


class Training:
    """A small training that draws random numbers on every rank and reads its own share of the data."""

    def __init__(self, folder: Path | str, kind: str, **options: Any) -> None:
        torch.manual_seed(3)
        net: nn.Module = Net()
        if kind == "ddp":
            net = nn.parallel.DistributedDataParallel(net)
        elif kind == "fsdp":
            fully_shard(net.up)
            fully_shard(net)
        torch.manual_seed(50 + dist.get_rank())
        random.seed(50 + dist.get_rank())
        self.net = net
        self.optimizer = torch.optim.AdamW(net.parameters(), lr=0.01, foreach=False)
        self.scheduler = torch.optim.lr_scheduler.StepLR(self.optimizer, 2, 0.5)
        data = TensorDataset(torch.arange(240.0).reshape(48, 5) / 100)
        self.sampler = DistributedSampler(data, shuffle=True, seed=1)
        self.loader = DataLoader(data, batch_size=2, sampler=self.sampler)
        self.run = holdfast.Run(
            folder, model=net, optimizer=self.optimizer, scheduler=self.scheduler, loader=self.loader,
            best="loss:min", **options,
        )  # fmt: skip
        self.seen: list[list[float]] = []

    def train(self, epochs: int = 2, stop_at: int | None = None) -> None:
        """Trains; ``stop_at`` leaves in the middle, right after the save of that step."""
        for epoch in self.run.epochs(epochs):
            self.sampler.set_epoch(epoch)
            for (x,) in self.run.batches(self.loader):
                self.seen.append(x.flatten().tolist())
                loss = self.net(x + torch.rand(1) * 0.1 + random.random() * 0.1)
                self.optimizer.zero_grad()
                loss.backward()
                self.optimizer.step()
                if stop_at is not None and self.run.position.step + 1 == stop_at:
                    self.run.save()
                    return
            self.scheduler.step()
            self.run.end(epoch, loss=float(epoch + dist.get_rank()))  # another number on every rank

    def state(self) -> Any:
        """What must be the same after a resume, with what this rank would draw next."""
        state = full({"m": self.net.state_dict(), "o": self.optimizer.state_dict(), "s": self.scheduler.state_dict()})
        return state | {"draws": [torch.rand(2), random.random()], "seen": self.seen[-3:]}


def resume(folder: Path) -> None:
    """A training that was left amid an epoch and goes on is the one that was not, to the bit, on every rank."""
    for kind in ("ddp", "fsdp"):
        for background in (False, True):
            at = folder / f"{kind}-{background}"
            whole = Training(at / "whole", kind, save="1ep", background=background)
            whole.train()
            wanted = whole.state()
            whole.run.close()
            first = Training(at / "stopped", kind, save="1ep", background=background)
            first.train(stop_at=9)
            first.run.close()
            second = Training(at / "stopped", kind, save="1ep", background=background)
            second.train()
            assert second.seen, kind
            found = differences(wanted, second.state())
            assert not found, (kind, background, found)
            second.run.close()
            newest = holdfast.open(at / "stopped")
            assert newest.format == "run-checkpoint"
            newest.close()
            assert holdfast.verify(at / "stopped").status == "OK"
            if dist.get_rank() == 0:
                manifest = json.loads((at / "stopped" / "step-00000009" / "manifest.json").read_text())
                assert manifest["environment"]["world_size"] == dist.get_world_size()
                assert manifest["objects"]["model"]["class"] == "tests.distributed.wrapped.Net"
                assert second.run.best.metrics["loss"] == 0.0
                _check_who_wrote_what(at / "stopped" / "step-00000009", kind)
            dist.barrier()


def _check_who_wrote_what(step: Path, kind: str) -> None:
    """What DDP keeps alike is spread and written once; buffers are rank 0's, and each rank has its own numbers."""
    by_file = {file.name: set(load_file(file)) for file in sorted(step.glob("rank-*"))}
    first, second = by_file.values()
    assert {"model.mean", "model.count"} <= first
    assert any(name.startswith("ranks.1.rng") for name in second)
    assert not any(name.startswith("ranks.1.") for name in first)
    assert not first & second
    for part in ("model.", "optimizer."):
        assert any(name.startswith(part) for name in first), kind
        assert any(name.startswith(part) for name in second), kind


def leave(folder: Path) -> None:
    """Leaves a run amid its first epoch, for another number of processes."""
    training = Training(folder / "run", "fsdp", save="1ep")
    training.train(stop_at=6)
    truth = full(training.net.state_dict())
    if dist.get_rank() == 0:
        torch.save(truth, folder / "truth")
    training.run.close()


def go_on(folder: Path) -> None:
    """Goes on with it, sharded otherwise."""
    training = Training(folder / "run", "fsdp", save="1ep")
    at = training.run.resume()
    assert at is not None
    assert at.step == 6
    assert at.batch == 6 * int((folder / "before").read_text()) // dist.get_world_size()
    assert not differences(torch.load(folder / "truth"), full(training.net.state_dict()))
    mine = [torch.rand(1).item()]
    drawn: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(drawn, mine)
    assert len({one[0] for one in drawn}) == len(drawn), "ranks draw the same numbers"
    training.train()
    assert training.run.position.epoch == 2
    training.run.close()


def failing(folder: Path) -> None:
    """What one rank raises in a save, all do; the newest checkpoint stays, and the next save works."""
    training = Training(folder / "run", "fsdp", save="1ep")
    training.run.save(step=1)
    last, real = dist.get_world_size() - 1, joined.new_file
    for guilty in (0, last):
        begin = time.monotonic()
        if dist.get_rank() == guilty:
            joined.new_file = _full  # type: ignore[assignment]
        try:
            training.run.save(step=2)
            raise SystemExit("the save did not fail")
        except StorageError as reason:
            text = str(reason)
        joined.new_file = real  # type: ignore[assignment]
        assert "No space left" in text, text
        assert dist.get_rank() == guilty or f"rank {guilty}: " in text, text
        assert time.monotonic() - begin < PATIENCE / 2
        dist.barrier()  # rank 0 has cleared up by then
        assert sorted(name for name in os.listdir(folder / "run") if "step" in name) == ["step-00000001"]
        dist.barrier()
    training.run.save(step=2)
    training.run.close()
    assert holdfast.verify(folder / "run").status == "OK"
    dist.barrier()


def _full(*_: Any, **__: Any) -> Any:
    raise StorageError("`disk`: No space left on device")


def absent(folder: Path) -> None:
    """A rank that does not come to a save at all: the others give up in bounded time."""
    training = Training(folder / "run", "ddp", save="1ep")
    training.run.save(step=1)
    if dist.get_rank() == 1:
        time.sleep(PATIENCE * 1.5)
        os._exit(0)
    begin = time.monotonic()
    with pytest.raises(StorageError, match="did not answer"):
        training.run.save(step=2)
    assert time.monotonic() - begin < PATIENCE * 1.4
    assert holdfast.verify(folder / "run").status == "OK"


def damaged(folder: Path) -> None:
    """Damage that only one rank reads: all of them fall back to the checkpoint before."""
    training = Training(folder / "run", "fsdp", save="1ep")
    training.run.save(step=1)
    training.run.save(step=2)
    training.run.close()
    dist.barrier()
    if dist.get_rank() == 0:
        name = rank_file.rank_file(dist.get_world_size() - 1)
        file = folder / "run" / "step-00000002" / name
        file.chmod(0o644)
        data = bytearray(file.read_bytes())
        with holdfast.open(folder / "run" / "step-00000002") as ckpt:
            assert "model.up.weight" in ckpt
        data[-1] ^= 1
        file.write_bytes(data)
    dist.barrier()
    again = Training(folder / "run", "fsdp", save="1ep")
    at = again.run.resume()
    assert at is not None
    assert at.step == 1, at
    again.run.close()
    assert "step-00000002" in os.listdir(folder / "run" / "quarantine")


def told(folder: Path) -> None:
    """A signal to one rank: all save at the same item and leave."""
    training = Training(folder / "run", "ddp", save="1ep signal")
    with pytest.raises(SystemExit) as left:
        _train_until_told(training)
    assert left.value.code == 128 + signal.SIGTERM
    assert training.run.last.step == 4, training.run.last.step
    training.run.close()


def _train_until_told(training: Training) -> None:
    for epoch in training.run.epochs(2):
        for number, (x,) in enumerate(training.run.batches(training.loader)):
            training.net(x).backward()
            training.optimizer.step()
            if dist.get_rank() == 1 and (epoch, number) == (0, 3):
                os.kill(os.getpid(), signal.SIGTERM)
        training.run.end(epoch)


def mixed(folder: Path) -> None:
    """``holdfast.restore`` gives each wrapper its own part, model and optimizer, old and new state."""
    part = Part(dist.get_world_size())
    net, optimizer = wrapped("fsdp", part, seed=1)
    run = holdfast.Run(folder / "run", model=net, optimizer=optimizer)
    run.save(step=1)
    run.close()
    truth = full(state_of(net, optimizer))
    for kind in ("tp", "fsdp", "ddp", "fsdp+tp"):
        for fresh in (False, True):
            other, moments = wrapped(kind, part, seed=2)
            if fresh:
                moments = torch.optim.AdamW(other.parameters(), lr=0.5, foreach=False)
            holdfast.restore(folder / "run", model=other, optimizer=moments)
            found = differences(truth, full(state_of(other, moments)))
            assert not found, (kind, fresh, found)
    dist.barrier()


def converted(folder: Path) -> None:
    """What ``convert`` made of a sharded checkpoint goes back onto any number of ranks, by DCP and by restore."""
    part = Part(dist.get_world_size())
    truth = torch.load(folder / "truth")
    for name in ("shards", "one.safetensors"):
        for kind in ("fsdp", "tp", "ddp"):
            for how in ("dcp", "restore"):
                net, optimizer = wrapped(kind, part, seed=100)
                load_into(how, folder / name, net, optimizer, part.group)
                found = differences(truth, full(state_of(net, optimizer)))
                assert not found, (name, kind, how, found)


def dcp_failing(folder: Path) -> None:
    """What one rank raises in ``dcp.save`` or ``async_save``, all hear; the old one stays, and the next save works."""
    part = Part(dist.get_world_size())
    net, _ = wrapped("fsdp", part, seed=1)
    path, real = folder / "c", joined.new_file

    def save(how: str) -> None:
        state = {"model": net.state_dict(), "note": "new"}
        if how == "save":
            dcp.save(state, storage_writer=HoldfastWriter(path))
        else:
            dcp.async_save(state, storage_writer=HoldfastWriter(path)).result()  # type: ignore[union-attr]

    dcp.save({"model": net.state_dict(), "note": "old"}, storage_writer=HoldfastWriter(path))
    for how in ("save", "async_save"):
        for guilty in range(dist.get_world_size()):
            begin = time.monotonic()
            if dist.get_rank() == guilty:
                joined.new_file = _full  # type: ignore[assignment]
            with pytest.raises(CheckpointException) as failed:
                save(how)
            joined.new_file = real  # type: ignore[assignment]
            assert list(failed.value.failures) == [guilty], failed.value.failures
            assert time.monotonic() - begin < PATIENCE / 2
            dist.barrier()
            assert holdfast.load(path)["note"] == "old"
            assert holdfast.verify(path).status == "OK"
            dist.barrier()
    save("save")
    assert holdfast.load(path)["note"] == "new"
    dist.barrier()
    save("async_save")
    assert holdfast.verify(path).status == "OK"
    dist.barrier()
    assert os.listdir(folder) == ["c"]


def erring(folder: Path) -> None:
    """An error on one rank: nothing is saved, which it says."""
    training = Training(folder / "run", "ddp", save="1ep exception")
    training.run.save(step=1)
    error = ValueError("bad file")
    sys.excepthook(ValueError, error, None)
    assert "save='exception' saves nothing where several processes train" in error.__notes__[0]
    training.run.close()
    assert [name for name in os.listdir(folder / "run") if "step" in name] == ["step-00000001"]


class Held:
    """Holds the thread that saves right before it writes what was dealt to this rank."""

    def __init__(self) -> None:
        self.reached, self.go, self._real = threading.Event(), threading.Event(), saving.write_rank_file

    def __enter__(self) -> Held:
        def held(*given: Any, **named: Any) -> Any:
            self.reached.set()
            assert self.go.wait(PATIENCE)
            return self._real(*given, **named)

        saving.write_rank_file = held
        return self

    def __exit__(self, *_: object) -> None:
        saving.write_rank_file = self._real
        self.go.set()


def step_of(training: Training) -> None:
    training.optimizer.zero_grad()
    training.net(torch.ones(2, 5)).backward()
    training.optimizer.step()


def copy_on_step(folder: Path) -> None:
    """A background save keeps the state of its moment while training goes on; a rank copies only what it writes."""
    for kind in ("ddp", "fsdp"):
        training = Training(folder / kind, kind, background=True)
        step_of(training)
        net = getattr(training.net, "module", training.net)
        truth = full({"model": net.state_dict(), "optimizer": training.optimizer.state_dict()})
        mine = sum(here(p).nbytes for p in training.net.parameters())
        with Held() as held:
            committed = training.run.save(step=1)
            assert held.reached.wait(PATIENCE)
            snapshot = training.run._commits._saver._snapshot
            assert snapshot is not None
            before = snapshot.copied
            step_of(training)
            copied = snapshot.copied - before
        committed.wait()
        assert 0 < copied < 3 * mine * (0.9 if kind == "ddp" else 1.1), (kind, copied, mine)
        total = torch.tensor([copied])
        dist.all_reduce(total)
        assert total.item() < 1.5 * sum(t.nbytes for t in _all_tensors(truth)), "each rank copied what all write"
        saved = holdfast.load(folder / kind)
        assert not differences(truth["model"], saved["model"]), (kind, differences(truth["model"], saved["model"]))
        found = {str(at): one for at, one in saved["optimizer"]["state"].items()}
        wanted = {str(at): one for at, one in truth["optimizer"]["state"].items()}
        assert not differences(wanted, found), kind
        training.run.close()
        dist.barrier()


def _all_tensors(tree: Any) -> list[torch.Tensor]:
    if isinstance(tree, dict):
        return [one for value in tree.values() for one in _all_tensors(value)]
    return [tree] if isinstance(tree, torch.Tensor) else []


def torn(folder: Path) -> None:
    """One rank writes into its parameters during a background save: all save again, and nothing is mixed."""
    training = Training(folder / "run", "fsdp", background=True)
    step_of(training)
    with Held() as held:
        training.run.save(step=1)
        assert held.reached.wait(PATIENCE)
        if dist.get_rank() == 1:
            with torch.no_grad():
                training.net.down.weight.mul_(2)
    training.run.wait()
    truth = full(training.net.state_dict())
    assert not differences(truth, holdfast.load(folder / "run")["model"])
    assert holdfast.verify(folder / "run").status == "OK"
    step_of(training)
    training.run.save(step=2).wait()
    training.run.close()
    dist.barrier()
    assert not differences(full(training.net.state_dict()), holdfast.load(folder / "run")["model"])
    dist.barrier()


SCENES: dict[str, Callable[[Path], None]] = {
    one.__name__: one
    for one in [
        *(resume, leave, go_on, failing, absent, damaged, told, mixed, converted),
        *(dcp_failing, copy_on_step, torn, erring),
    ]
}

if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=timedelta(seconds=PATIENCE))
    try:
        for scene in sys.argv[1].split(","):
            place = Path(sys.argv[2]) / ("world" if scene in ("leave", "go_on") else scene)
            place.mkdir(parents=True, exist_ok=True)
            SCENES[scene](place)
            print(f"rank {dist.get_rank()}: {scene} done", flush=True)
    except BaseException:
        import traceback

        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    os._exit(0)  # taking gloo's threads down at exit aborts now and then; all that is tested is on disk

"""Background saves through Run: what is committed is the state of the save, whatever the training does meanwhile."""

from __future__ import annotations

import copy
import logging
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import holdfast
from holdfast.errors import SnapshotTorn, StorageError
from holdfast.runs.catalog import scan
from holdfast.storage.syscalls import Syscalls
from tests.training import small_training
from tests.training.slow_disk import SlowDisk

WIDE = 700  # a weight of almost two blocks


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, WIDE), nn.BatchNorm1d(WIDE), nn.ReLU(), nn.Linear(WIDE, WIDE), nn.Linear(WIDE, 1))


def loss_of(model: nn.Module) -> torch.Tensor:
    return model(torch.randn(16, 8)).square().mean()


def train(model: nn.Module, *optimizers: torch.optim.Optimizer) -> None:
    for optimizer in optimizers:
        optimizer.zero_grad()
    loss_of(model).backward()
    for optimizer in optimizers:
        optimizer.step()


def state_of(*objects: Any) -> list[Any]:
    return [copy.deepcopy(one.state_dict()) for one in objects]


def same(left: Any, right: Any) -> bool:
    if isinstance(left, torch.Tensor):
        return isinstance(right, torch.Tensor) and torch.equal(left, right)
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(same, left, right))
    return bool(left == right)


def saved(root: Path, step: int, *names: str) -> list[Any]:
    tree = holdfast.load(f"{root}@step={step}")
    return [tree[name] for name in names]


OPTIMIZERS: dict[str, Callable[[nn.Module], torch.optim.Optimizer]] = {
    "SGD": lambda m: torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9),
    "AdamW": lambda m: torch.optim.AdamW(m.parameters(), lr=torch.tensor(0.01)),
    "Adam fused": lambda m: torch.optim.Adam(m.parameters(), fused=True),
    "Adam foreach": lambda m: torch.optim.Adam(m.parameters(), foreach=True, amsgrad=True),
    "RMSprop": lambda m: torch.optim.RMSprop(m.parameters(), centered=True),
    "Adagrad": lambda m: torch.optim.Adagrad(m.parameters()),
    "Adafactor": lambda m: torch.optim.Adafactor(m.parameters()),
    "Rprop": lambda m: torch.optim.Rprop(m.parameters()),
    "NAdam": lambda m: torch.optim.NAdam(m.parameters()),
    "ASGD": lambda m: torch.optim.ASGD(m.parameters()),
}


@pytest.mark.parametrize("background", [True, "copy"])
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_the_state_of_the_save_is_committed(
    kind: str, background: bool | str, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = net()
    optimizer = OPTIMIZERS[kind](model)
    train(model, optimizer)
    with holdfast.Run(run_dir, model=model, optimizer=optimizer, background=background) as run:
        for step in (1, 2):
            before = state_of(model, optimizer)
            with SlowDisk().held(monkeypatch) as disk:
                committed = run.save(step=step)
                assert disk.reached.wait(60)
                for _ in range(3):
                    train(model, optimizer)
                assert not committed.done
            assert committed.wait().done
            assert same(saved(run_dir, step, "model", "optimizer"), before)
            assert not same(before, state_of(model, optimizer))


def test_lbfgs_with_its_closure(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Linear(8, WIDE)
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=3)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = model(torch.ones(4, 8)).square().mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    optimizer.zero_grad()  # no gradients now: the closure makes them inside the step
    with holdfast.Run(run_dir, model=model, optimizer=optimizer, background=True) as run:
        before = state_of(model, optimizer)
        with SlowDisk().held(monkeypatch) as disk:
            run.save(step=1)
            assert disk.reached.wait(60)
            optimizer.step(closure)
        run.wait()
        assert same(saved(run_dir, 1, "model", "optimizer"), before)
        assert not same(before, state_of(model, optimizer))


def test_two_optimizers_a_scaler_an_average_and_a_scheduler(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    generator, critic = net(), net()
    opt_g = torch.optim.Adam(generator.parameters(), lr=torch.tensor(0.01))
    opt_d = torch.optim.SGD(critic.parameters(), lr=0.1, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(opt_g, 0.5)  # fills the tensor learning rate in place
    average = torch.optim.swa_utils.AveragedModel(generator)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    objects = {"G": generator, "D": critic, "opt_G": opt_g, "opt_D": opt_d, "scheduler": scheduler, "ema": average}
    with holdfast.Run(run_dir, **objects, scaler=scaler, background=True) as run:
        scaler.scale(loss_of(generator)).backward()
        scaler.step(opt_g)
        scaler.update()
        train(critic, opt_d)
        before = state_of(*objects.values())
        with SlowDisk().held(monkeypatch) as disk:
            run.save(step=1)
            assert disk.reached.wait(60)
            train(critic, opt_d)  # one of the two steps
            scheduler.step()
            average.update_parameters(generator)
            generator[0].weight.grad.fill_(float("inf"))
            scaler.step(opt_g)  # skipped by the scaler: no step, no copy
            scaler.update()
            train(generator, opt_g)
        run.wait()
        assert same(saved(run_dir, 1, *objects), before)


def test_batches_resume_where_they_were_saved(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = net()
    optimizer = torch.optim.AdamW(model.parameters())
    items = [torch.randn(16, 8) for _ in range(6)]
    seen: dict[int, list[Any]] = {}
    with holdfast.Run(run_dir, model=model, optimizer=optimizer, save="2step", background=True) as run:
        for _ in run.epochs(1):
            for item in run.batches(items):
                optimizer.zero_grad()
                model(item).square().mean().backward()
                optimizer.step()
                seen[len(seen) + 1] = state_of(model, optimizer)
    assert [one.step for one in scan(run_dir).checkpoints] == [2, 4, 6]
    for step in (2, 4, 6):
        assert same(saved(run_dir, step, "model", "optimizer"), seen[step])


@pytest.mark.parametrize("loop", ["own", "batches"])
def test_a_write_behind_the_optimizer_is_saved_again(
    loop: str, run_dir: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    train(model, optimizer)
    clipped: list[Any] = []

    def clip() -> None:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.clamp_(-0.01, 0.01)
        clipped[:] = state_of(model)

    with holdfast.Run(run_dir, model=model, optimizer=optimizer, background=True, save="2step") as run:
        if loop == "own":
            with SlowDisk().held(monkeypatch) as disk:
                committed = run.save(step=2, metrics={"loss": 0.5})
                assert disk.reached.wait(60)
                clip()
            with pytest.raises(SnapshotTorn, match=r"`model\.\d\.(weight|bias)`: was written by the program while"):
                committed.wait()
            run.wait()  # makes it again
            assert same(saved(run_dir, 2, "model"), clipped)
            assert run.last.metrics == {"loss": 0.5}
        else:
            disk = SlowDisk()
            for _ in run.epochs(1):
                with disk.held(monkeypatch):
                    for number, _ in enumerate(run.batches(range(6))):
                        if number == 2:  # the save of step 2 is on its way
                            assert disk.reached.wait(60)
                            clip()
                            disk.go()
                            wait_for_saves()
                        train(model, optimizer)
            assert [one.step for one in scan(run_dir).checkpoints] == [3, 4, 6]
        text = "It is saved again, and from now on everything is copied first"
        assert [text in one.getMessage() for one in caplog.records if one.levelno == logging.WARNING] == [True]
        with SlowDisk().held(monkeypatch) as disk:
            before = state_of(model)
            run.save(step=20)
            assert disk.reached.wait(60)
            clip()
        run.wait()
        assert same(saved(run_dir, 20, "model"), before)


def test_check_finds_a_program_that_writes_through_data(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with holdfast.Run(run_dir, model=model, optimizer=optimizer, background="check") as run:
        run.save(step=1).wait()
        train(model, optimizer)
        with SlowDisk().held(monkeypatch) as disk:
            run.save(step=2)
            assert disk.reached.wait(60)
            for parameter in model.parameters():
                parameter.data.clamp_(-0.001, 0.001)
        with pytest.raises(SnapshotTorn, match=r"give the run background='copy'"):
            run.wait()
        assert [one.step for one in scan(run_dir).checkpoints] == [1]


def test_a_restore_into_the_model_waits_for_what_is_still_read(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with holdfast.Run(run_dir, model=model, optimizer=optimizer, background=True) as run:
        run.save(step=1).wait()
        train(model, optimizer)
        before = state_of(model)
        with SlowDisk().held(monkeypatch) as disk:
            run.save(step=2)
            assert disk.reached.wait(60)
            holdfast.restore(f"{run_dir}@step=1", model=model)
        run.wait()
        assert same(saved(run_dir, 2, "model"), before)
        assert not same(state_of(model), before)


@pytest.mark.parametrize(("words", "steps"), [("wait", [2, 4, 6, 8]), ("skip", [2, 6, 8]), ("coalesce", [2, 5, 6, 8])])
def test_what_a_save_does_while_another_is_under_way(
    words: str, steps: list[int], run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That of step 2 is on its way until after step 4: that of step 4 waits for it, is left out, or comes at step 5."""
    disk = SlowDisk()
    with holdfast.Run(run_dir, model=net(), background=words, save="2step") as run, disk.held(monkeypatch):
        if words == "wait":
            disk.go()
        for _ in run.epochs(1):
            for number, _ in enumerate(run.batches(range(8)), 1):
                if number == 3:
                    assert disk.reached.wait(60)
                if number >= 5:
                    disk.go()
                    wait_for_saves()
    assert [one.step for one in scan(run_dir).checkpoints] == steps


def wait_for_saves() -> None:
    for thread in [one for one in threading.enumerate() if one.name == "holdfast save"]:
        thread.join()


def test_an_error_comes_up_at_the_next_call(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    with holdfast.Run(run_dir, model=net(), background=True) as run:
        run.save(step=1).wait()
        with monkeypatch.context() as patch:
            patch.setattr(Syscalls, "pwritev", full)
            committed = run.save(step=2)
            while committed.error is None:
                threading.Event().wait(0.01)
        assert "failed: " in repr(committed)
        with pytest.raises(StorageError, match="No space left on device") as caught:
            run.save(step=3)
        assert caught.value.__notes__ == [f"in the background, while step 2 of run {run_dir} was saved"]
        assert run.save(step=3).wait().done  # said once; there is room now
        assert [one.step for one in scan(run_dir).checkpoints] == [1, 3]


def test_what_a_save_says_of_itself(run_dir: Path) -> None:
    with holdfast.Run(run_dir, model=net(), background=True) as run:
        committed = run.save(step=1)
        assert committed.bytes == committed.changed > 2_000_000
        assert 0 < committed.stall < committed.seconds
        assert committed.gb_per_second == committed.changed / committed.seconds / 1e9
        assert committed.pruned == []
        assert repr(committed).startswith(f"Committed(step=1, {committed.bytes:,} bytes, {committed.changed:,} written")


def test_memory_is_bounded_by_one_copy(run_dir: Path) -> None:
    model = net()
    optimizer = torch.optim.Adam(model.parameters())
    train(model, optimizer)
    with holdfast.Run(run_dir, model=model, optimizer=optimizer, background=True, keep="last:1") as run:
        sizes = []
        for step in range(1, 8):
            run.save(step=step)
            train(model, optimizer)
            sizes.append(run._commits._saver._staging.size)
        assert len(set(sizes)) == 1  # one slab, reused


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # the compiler itself imports what it calls old
@pytest.mark.parametrize("how", [True, "copy"])
def test_a_compiled_step(how: bool | str, run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hook stays outside of the graph, and is called all the same."""
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    with holdfast.Run(run_dir, model=model, optimizer=optimizer, background=how) as run:
        step = torch.compile(optimizer.step, backend="eager")
        loss_of(model).backward()
        step()
        for number in (1, 2):
            before = state_of(model, optimizer)
            with SlowDisk().held(monkeypatch) as disk:
                run.save(step=number)
                assert disk.reached.wait(60)
                loss_of(model).backward()
                step()
            run.wait()
            assert same(saved(run_dir, number, "model", "optimizer"), before)


SCRIPT = """
import sys, torch, holdfast
from holdfast.storage.syscalls import Syscalls
net = torch.nn.Linear(700, 700)
run = holdfast.Run(sys.argv[1], model=net, background=True)
if sys.argv[2] == "full":
    def full(*_):
        raise OSError(28, "No space left on device")
    Syscalls.pwritev = full
run.save(step=1)
"""


def test_a_program_that_ends_waits_for_its_save(run_dir: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(run_dir), "well"], check=False, capture_output=True, text=True, timeout=100
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert holdfast.verify(run_dir).status == "OK"
    assert [one.step for one in scan(run_dir).checkpoints] == [1]


def test_an_error_that_nobody_asked_for_is_said_at_the_end(run_dir: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(run_dir), "full"], check=False, capture_output=True, text=True, timeout=100
    )
    assert "StorageError" in done.stderr
    assert "No space left on device" in done.stderr
    assert scan(run_dir).checkpoints == ()


@pytest.mark.parametrize("kind", ["shuffle", "own state"])
def test_a_resume_from_a_background_save_is_exact(kind: str, tmp_path: Path, seeded: int) -> None:
    order: list[str] = []
    whole = small_training.train(None, kind, order=order)

    def stop(done: int) -> None:
        if done == 9:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        small_training.train(tmp_path / "run", kind, stop=stop, background=True)
    after: list[str] = []
    assert small_training.train(tmp_path / "run", kind, order=after, background=True) == whole
    assert after == order[8:]

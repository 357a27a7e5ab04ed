"""What goes wrong when checkpoints are saved, one lesson a test: first what torch alone does, then holdfast."""

from __future__ import annotations

import argparse
import enum
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

import holdfast
from holdfast.errors import StorageError
from holdfast.storage.syscalls import Syscalls
from tests.training.slow_disk import SlowDisk

KILLED = """
import resource, signal, sys
import torch, holdfast
save = {"torch": torch.save, "holdfast": holdfast.save}[sys.argv[1]]
save({"epoch": 1, "weights": torch.ones(500_000)}, sys.argv[2])
signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
save({"epoch": 2, "weights": torch.ones(500_000)}, sys.argv[2])
"""
"""Saves twice over one path; the system kills it inside the second save."""


@pytest.mark.parametrize("by", ["torch", "holdfast"])
def test_lesson_01_a_kill_while_saving_over_a_file_leaves_the_old_one(by: str, tmp_path: Path) -> None:
    """Saving in place destroys the last good file first: a kill in the middle leaves nothing readable."""
    file = tmp_path / "ckpt.pt"
    killed = subprocess.run([sys.executable, "-c", KILLED, by, str(file)], check=False, timeout=100)
    assert killed.returncode == -signal.SIGXFSZ
    if by == "torch":
        with pytest.raises(RuntimeError):
            torch.load(file)
    else:
        tree = torch.load(file)
        assert tree["epoch"] == 1
        assert bool(tree["weights"].all())
        assert holdfast.verify(file).status == "OK"


def test_lesson_01_what_is_acknowledged_survives_a_power_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, net: Callable[..., nn.Module]
) -> None:
    """A rename without fsync may reach the medium before the bytes do, and a new name without fsync may not at all."""
    calls: list[str] = []

    def noted(name: str) -> Callable[..., Any]:
        original = getattr(Syscalls, name)

        def call(self: Syscalls, *arguments: Any) -> Any:
            calls.append(name)
            return original(self, *arguments)

        return call

    for name in ("pwritev", "fsync", "rename", "link", "fsync_folder"):
        monkeypatch.setattr(Syscalls, name, noted(name))
    for _ in range(2):
        calls.clear()
        holdfast.save(net(), tmp_path / "net.pt")
        commit = next(index for index, name in enumerate(calls) if name in ("rename", "link"))
        assert "pwritev" not in calls[commit:]
        assert "fsync" in calls[:commit]
        assert max(index for index, name in enumerate(calls[:commit]) if name == "pwritev") < calls.index("fsync")
        assert "fsync_folder" in calls[commit:]


def test_lesson_02_a_full_disk_leaves_the_old_checkpoint(
    run_dir: Path, small_disk: Callable[..., Any], same: Callable[..., bool]
) -> None:
    """With room for one checkpoint, those who delete the old one first end with none."""
    net = nn.Linear(500, 500)
    with holdfast.Run(run_dir, model=net, keep="last:1") as run:
        run.save(step=1)
        first = holdfast.snapshot(net)
        with torch.no_grad():
            net.weight.add_(1)
        with small_disk(100_000), pytest.raises(StorageError):
            run.save(step=2)
        assert same(holdfast.load(f"{run_dir}@last")["model"], first)
        assert holdfast.verify(run_dir).status == "OK"
        run.save(step=3)  # there is room again: now, and not before, the old one goes
        assert [path.name for path in sorted(run_dir.glob("step-*"))] == ["step-00000003"]


def test_lesson_02_in_the_background_there_is_always_a_whole_checkpoint(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who hands the deletion and the save to different threads has moments without any file, or never deletes."""
    net = nn.Linear(500, 500)
    with holdfast.Run(run_dir, model=net, keep="last:1", background=True) as run:
        run.save(step=1).wait()
        for step in (2, 3):
            with torch.no_grad():
                net.weight.add_(1)
            with SlowDisk().held(monkeypatch) as disk:
                saved = run.save(step=step)
                assert disk.reached.wait(60)
                assert [path.name for path in run_dir.glob("step-*")] == [f"step-{step - 1:08d}"]
                assert holdfast.verify(run_dir).status == "OK"
            assert saved.pruned == [step - 1]
            assert [path.name for path in run_dir.glob("step-*")] == [f"step-{step:08d}"]


def test_lesson_03_nothing_is_staged_in_the_system_temp_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, net: Callable[..., nn.Module], run_dir: Path
) -> None:
    """A move from /tmp to another file system is a copy, and /tmp fills up: staging belongs beside the target."""
    monkeypatch.setattr(tempfile, "tempdir", "/proc/no/such/folder")
    monkeypatch.setenv("TMPDIR", "/proc/no/such/folder")
    with pytest.raises(FileNotFoundError):
        tempfile.mkstemp()
    folders: set[str] = set()
    original = Syscalls.open_new

    def noted(self: Syscalls, path: str, mode: int) -> int:
        folders.add(os.path.dirname(os.path.abspath(path)))
        return original(self, path, mode)

    monkeypatch.setattr(Syscalls, "open_new", noted)
    holdfast.save(net(), tmp_path / "files" / "net.pt")
    assert folders == {str(tmp_path / "files")}
    with holdfast.Run(run_dir, model=net()) as run:
        run.save(step=1)
    assert all(Path(folder).is_relative_to(tmp_path) for folder in folders)
    assert os.listdir(tmp_path / "files") == ["net.pt"]


def test_lesson_04_the_best_weights_are_not_the_last_ones(
    net: Callable[..., nn.Module], same: Callable[..., bool], run_dir: Path
) -> None:
    """``state_dict().copy()`` copies names, not numbers: training on changes "best" too."""
    model = net()
    true = {name: value.clone() for name, value in model.state_dict().items()}
    aliased, best = model.state_dict().copy(), holdfast.snapshot(model)
    with holdfast.Run(run_dir, model=model, best="loss:min") as run:
        run.save(step=1, metrics={"loss": 1.0})
        with torch.no_grad():
            for value in model.state_dict().values():
                value.add_(1)
        run.save(step=2, metrics={"loss": 2.0})
        assert same(aliased, model)
        assert same(best, true)
        assert same(run.best.build(), true)


@pytest.mark.parametrize("by", ["torch", "holdfast"])
def test_lesson_05_a_background_save_holds_one_step(
    by: str, run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thread that saves the live state_dict writes what the training makes of it: later values, or two mixed."""
    net = nn.Linear(600, 600)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)

    def step() -> None:
        net(torch.ones(2, 600)).square().mean().backward()
        optimizer.step()

    step()
    before = net.weight.detach().clone()
    if by == "torch":
        ready = threading.Event()
        state = net.state_dict()
        thread = threading.Thread(target=lambda: (ready.wait(60), torch.save(state, tmp_path / "net.pt")))
        thread.start()
        step()
        ready.set()
        thread.join()
        assert not torch.equal(torch.load(tmp_path / "net.pt")["weight"], before)
        return
    with holdfast.Run(run_dir, model=net, optimizer=optimizer, background=True) as run:
        with SlowDisk().held(monkeypatch) as disk:
            run.save(step=1)
            assert disk.reached.wait(60)
            step()
        run.wait()
        assert torch.equal(holdfast.load(run_dir)["model"]["weight"], before)
        assert not torch.equal(net.weight, before)


def test_lesson_06_a_slice_is_saved_without_the_rest_of_its_storage(tmp_path: Path) -> None:
    """Ten numbers out of a million drag the million into the file."""
    few = torch.arange(1_000_000, dtype=torch.float32)[10:20]
    torch.save(few, tmp_path / "theirs.pt")
    assert (tmp_path / "theirs.pt").stat().st_size > 4_000_000
    for file in (tmp_path / "ours.pt", tmp_path / "ours.safetensors"):
        holdfast.save({"few": few}, file)
        assert file.stat().st_size < 10_000
        assert torch.equal(holdfast.load(file)["few"], few)


def test_lesson_06_tied_weights_are_neither_refused_nor_doubled(tmp_path: Path) -> None:
    """safetensors refuses tensors that share memory; breaking the tie doubles file and model."""
    model = nn.ModuleDict({"embed": nn.Embedding(500, 8), "head": nn.Linear(8, 500, bias=False)})
    model["head"].weight = model["embed"].weight
    with pytest.raises(RuntimeError, match="share memory"):
        safetensors.torch.save_file(model.state_dict(), tmp_path / "theirs.safetensors")
    for file in (tmp_path / "ours.pt", tmp_path / "ours.safetensors"):
        holdfast.save(model, file)
        assert file.stat().st_size < 500 * 8 * 4 * 1.5
        tree = holdfast.load(file)
        assert tree["head.weight"].data_ptr() == tree["embed.weight"].data_ptr()


class Phase(enum.Enum):
    WARMUP = "warmup"


def test_lesson_07_a_checkpoint_with_everyday_values_stays_readable(tmp_path: Path) -> None:
    """A numpy scalar, a Namespace, a Path or an Enum shuts the whole file to ``weights_only=True``."""
    values = {
        "loss": np.float64(0.25),
        "args": argparse.Namespace(lr=0.1, data=Path("data")),
        "best": np.arange(3),
        "phase": Phase.WARMUP,
    }
    torch.save({"w": torch.ones(2), **values}, tmp_path / "theirs.pt")
    with pytest.raises(Exception, match="Weights only load failed"):
        torch.load(tmp_path / "theirs.pt")
    holdfast.save({"w": torch.ones(2), **values}, tmp_path / "ours.pt")
    assert torch.load(tmp_path / "ours.pt")["loss"] == 0.25
    tree = holdfast.load(tmp_path / "ours.pt")
    assert (type(tree["loss"]), tree["args"], tree["best"].tolist()) == (np.float64, values["args"], [0, 1, 2])
    assert isinstance(tree["phase"], holdfast.Record)
    trusted = {f"{Phase.__module__}.{Phase.__qualname__}"}
    assert holdfast.load(tmp_path / "ours.pt", trusted=trusted)["phase"] is Phase.WARMUP


class Migrating(nn.Module):
    """A module whose second version stores its scale as a tenth of what the first did."""

    _version = 2

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def _load_from_state_dict(self, state: dict[str, Any], prefix: str, about: dict[str, Any], *rest: Any) -> None:
        if about.get("version", 1) < 2:
            state[f"{prefix}scale"] = state[f"{prefix}scale"] / 10
        super()._load_from_state_dict(state, prefix, about, *rest)


def test_lesson_08_the_versions_of_modules_survive_new_names(tmp_path: Path) -> None:
    """A dict comprehension drops ``_metadata``: a module takes its own file for an old one and migrates it again."""
    wrapped = nn.ModuleDict({"backbone": Migrating()})
    torch.save(wrapped.state_dict(), tmp_path / "net.pt")
    by_hand = Migrating()
    by_hand.load_state_dict({name.removeprefix("backbone."): v for name, v in torch.load(tmp_path / "net.pt").items()})
    assert by_hand.scale.item() == pytest.approx(0.1)
    ours = Migrating()
    holdfast.restore(tmp_path / "net.pt", model=ours, match=holdfast.Warm(strip_prefix="backbone"))
    assert ours.scale.item() == 1.0
    torch.save(ours.state_dict(), tmp_path / "inner.pt")
    outer = nn.ModuleDict({"backbone": Migrating()})
    holdfast.restore(tmp_path / "inner.pt", model=outer, match=holdfast.Warm(add_prefix="backbone"))
    holdfast.restore(nn.DataParallel(ours).state_dict(), model=by_hand)
    assert (outer["backbone"].scale.item(), by_hand.scale.item()) == (1.0, 1.0)
    assert holdfast.load(tmp_path / "net.pt")._metadata["backbone"] == {"version": 2}

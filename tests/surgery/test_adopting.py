"""adopt: folders of old checkpoints as tutorials write them become runs that resume."""

from __future__ import annotations

import argparse
import collections
import copy
import hashlib
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import holdfast
from holdfast.errors import ArgumentError, MissingPart, NotFound, RunLocked, StorageError
from holdfast.formats.lost import Lost
from holdfast.runs.lock import RunLock
from holdfast.runs.manifest import read_manifest
from holdfast.storage.atomic import StagedFolder
from holdfast.surgery import AdoptReport, adopt
from holdfast.surgery.adoption import writing
from holdfast.training.resuming import Position
from tests.surgery.old_trainings import BATCHES, Net, Training, batches, train, training


@pytest.fixture
def old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path / "old"


def refused(error: type[Exception], text: str) -> Any:
    return pytest.raises(error, match=re.escape(text))


def steps(report: AdoptReport) -> list[tuple[str, int, int | None]]:
    return [(one.file, one.step, one.epoch) for one in report.steps]


def reasons(report: AdoptReport) -> dict[str, str]:
    return {one.file: one.reason for one in report.left_out}


def contents(folder: Path) -> dict[str, tuple[str, int]]:
    """Digests and times of a folder's files."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path): (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns) for path in files}


def each_epoch(done: Training, epoch: int) -> tuple[str, Any]:
    return f"checkpoint_epoch_{epoch}.pth", done.state(epoch=epoch, loss=1.0 / (epoch + 1))


# ---- going on -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("convention", ["done", "next"])
@pytest.mark.parametrize("kind", ["Adam", "SGD"])
def test_a_run_goes_on_as_the_tutorial_would(old: Path, convention: str, kind: str) -> None:
    """Trained for 12 epochs at once, or for 9 and then on from the last file, by either way to count epochs."""
    later = convention == "next"
    train(old, 9, lambda done, epoch: (f"epoch_{epoch}.pth", done.state(epoch=epoch + later)), kind)
    through = training(kind)
    for epoch in range(12):
        through.epoch(epoch)
    before = contents(old)
    report = adopt("old", "runs/a", steps_per_epoch=BATCHES)
    assert contents(old) == before
    assert steps(report)[-1] == ("epoch_8.pth", 9 * BATCHES, 9)
    assert {"done": "the epoch just done", "next": "the number of epochs done"}[convention] in report.notes[0]
    last = torch.load("old/epoch_8.pth", weights_only=True)
    tutorial = training(kind)
    tutorial.net.load_state_dict(last["model_state_dict"])
    tutorial.optimizer.load_state_dict(last["optimizer_state_dict"])
    tutorial.scheduler.load_state_dict(last["scheduler_state_dict"])
    for epoch in range(last["epoch"] + (0 if later else 1), 12):
        tutorial.epoch(epoch)
    ours = training(kind)
    with holdfast.Run("runs/a", model=ours.net, optimizer=ours.optimizer, scheduler=ours.scheduler) as run:
        assert run.resume() == Position(9, 9 * BATCHES, 0)
        for epoch in run.epochs(12):
            for x in run.batches(batches(epoch)):
                ours.optimizer.zero_grad()
                ours.net(x).square().mean().backward()
                ours.optimizer.step()
            ours.scheduler.step()
        assert run.position == Position(12, 12 * BATCHES, 0)
    assert ours.values() == tutorial.values() == through.values()


def test_every_step_restores_what_its_file_holds(old: Path) -> None:
    train(old, 3, each_epoch)
    report = adopt(old, "runs/a", best="loss:min")
    for one in report.steps:
        file = torch.load(old / one.file, weights_only=True)
        net = Net()
        found = holdfast.restore(f"runs/a@step={one.step}", model=net)
        assert all(torch.equal(net.state_dict()[key], file["model_state_dict"][key]) for key in net.state_dict())
        assert found.values["epoch"] == file["epoch"]
        assert one.metrics == {"loss": file["loss"]}
    last = report.steps[-1]
    assert read_manifest(f"runs/a/step-{last.step:08d}").environment["adopted"]["file"] == last.file


def test_numbers_are_numbers_and_times_say_nothing(old: Path) -> None:
    train(old, 12, lambda done, epoch: (f"epoch_{epoch}.pt", done.state()) if epoch >= 8 else None, "SGD")
    os.utime(old / "epoch_9.pt", (2_000_000_000, 2_000_000_000))
    report = adopt(old, "a")
    assert steps(report) == [(f"epoch_{at}.pt", at + 1, at + 1) for at in (8, 9, 10, 11)]
    assert any("numbered by epoch" in note for note in report.notes)
    assert "the epoch is by the name" in report.steps[0].notes
    assert "nothing" not in report.notes[0]  # the scheduler tells
    assert steps(adopt(old, "b", epoch_is="next", steps_per_epoch=10, dry_run=True))[0] == ("epoch_8.pt", 80, 8)


def test_contents_win_over_names(old: Path) -> None:
    names = {0: "epoch_7.pth", 1: "epoch_1.pth"}
    train(old, 2, lambda done, epoch: (names[epoch], done.state(epoch=epoch, global_step=(epoch + 1) * 100)))
    report = adopt(old, "runs/a")
    assert steps(report) == [("epoch_7.pth", 100, 1), ("epoch_1.pth", 200, 2)]
    assert report.steps[0].notes == ["`epoch` is 0, the name says 7: the contents count"]
    assert "as the files say (100 an epoch)" in report.notes[1]


def test_without_evidence_the_choice_is_said(old: Path) -> None:
    old.mkdir()
    done = training("SGD")
    torch.save({"net": done.net.state_dict(), "opt": done.optimizer.state_dict(), "epoch": 5}, old / "ckpt.pth")
    report = adopt(old, "a")
    assert steps(report) == [("ckpt.pth", 6, 6)]
    assert "nothing in the files tells" in report.notes[0]
    assert steps(adopt(old, "b", epoch_is="next")) == [("ckpt.pth", 5, 5)]
    assert "as asked for" in adopt(old, "c", epoch_is="done").notes[0]


# ---- kinds of files -------------------------------------------------------------------------------------------------


def test_values_of_every_kind(old: Path) -> None:
    """Namespace, numpy scalars, tensors, nested metrics, DataParallel, and keys that a run has for itself."""
    old.mkdir()
    done = training()
    done.epoch(0)
    state = {
        "state_dict": nn.DataParallel(done.net).state_dict(),
        "optimizer": done.optimizer.state_dict(),
        "sched": done.scheduler.state_dict(),
        "state": {"epoch": torch.tensor(0), "iteration": np.int64(4)},
        "metrics": {"val": {"loss": np.float32(0.25)}, "acc1": torch.tensor(87.5, dtype=torch.float16)},
        "best_acc1": torch.tensor(90.0, dtype=torch.bfloat16),
        "args": argparse.Namespace(lr=0.05, loss_weight=2.0, epochs=90, start_epoch=7),
        "rng": torch.get_rng_state(),
        "loader": {"state": 3},
    }
    torch.save(state, old / "checkpoint.pth.tar")
    report = adopt(old, "runs/a", best="val_loss:min")
    assert steps(report) == [("checkpoint.pth.tar", 4, 1)]
    assert report.steps[0].metrics == {"val_loss": 0.25, "acc1": 87.5, "best_acc1": 90.0}
    assert report.steps[0].holds == ["state_dict", "optimizer", "scheduler"]
    assert {"`rng` is `rng_of_file` in the run", "`sched` is `scheduler` in the run"} <= set(report.steps[0].notes)
    assert report.resume == "holdfast.Run('runs/a', model=..., optimizer=..., scheduler=...)"
    fresh = training()
    with holdfast.Run("runs/a", model=fresh.net, optimizer=fresh.optimizer, scheduler=fresh.scheduler) as run:
        assert run.resume() == Position(1, 4, 0)
    assert fresh.values() == done.values()
    found = holdfast.load("runs/a@last")
    assert found["args"] == state["args"]
    assert found["loader_of_file"] == {"state": 3}
    assert torch.equal(found["rng_of_file"], state["rng"])


def test_files_of_holdfast_keep_what_they_recorded(old: Path) -> None:
    old.mkdir()
    done = training()
    done.epoch(0)
    scaler = {"scale": 65536.0, "growth_factor": 2.0, "backoff_factor": 0.5, "growth_interval": 9, "_growth_tracker": 0}
    state = {"net": done.net, "opt": done.optimizer, "scaler": scaler, "epoch": 0}
    holdfast.save({"state": state, "note": "x"}, old / "epoch_0.pt", metadata={"by": "me"})
    report = adopt(old, "runs/a")
    assert report.resume == "holdfast.Run('runs/a', model=..., opt=..., scaler=...)"
    manifest = read_manifest("runs/a/step-00000004")
    assert manifest.objects["opt"]["param_names"] == [name for name, _ in done.net.named_parameters()]
    assert manifest.metadata == {"by": "me"}
    fresh = training()
    with holdfast.Run("runs/a", model=fresh.net, opt=fresh.optimizer, scaler=torch.amp.GradScaler("cpu")) as run:
        assert run.resume() == Position(1, 4, 0)
    assert fresh.values()[:-2] == done.values()[:-2]


def test_weights_that_differ_in_the_middle_are_others(old: Path) -> None:
    old.mkdir()
    net = nn.Linear(200, 200)
    optimizer = torch.optim.SGD(net.parameters())
    torch.save({"model": net.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 3}, old / "epoch_3.pth")
    net.weight.data[100, 100] += 1
    torch.save(net.state_dict(), old / "best.pth")
    assert [(one.file, one.pins) for one in adopt(old, "runs/a").steps] == [("best.pth", ["best"]), ("epoch_3.pth", [])]


def test_odd_values_stop_nothing(old: Path) -> None:
    old.mkdir()
    done = training("SGD")
    state = {"model": done.net.state_dict(), "optimizer": done.optimizer.state_dict()}
    odd: dict[str, Any] = {
        "huge_1.pth": {"epoch": 10**400, "acc": 10**400},
        "nan_2.pth": {"epoch": float("nan"), "loss": float("nan")},
        "minus_3.pth": {"epoch": -1},
        "array_4.pth": {"epoch": np.array(4), "acc": np.array([0.5])},
        "marked_5.pth": {"epoch": 5, "$tensor": 1, "\ud800": 2, "wide": torch.ones(3).expand(4, 3)},
        "sparse_6.pth": {"epoch": torch.tensor([6]), "sp": torch.eye(3).to_sparse(), "step": torch.empty(0)},
        "true_7.pth": {"epoch": 7, "best_acc": torch.tensor(True), "acc": np.bool_(True), "f1": 0.5},
    }
    for name, values in odd.items():
        torch.save(collections.OrderedDict({**state, **values}), old / name)
    report = adopt(old, "runs/a")
    assert steps(report) == [(name, at, at) for at, name in enumerate(odd, 2)]
    assert [one.metrics for one in report.steps if one.step != 3] == [{}, {}, {"acc": 0.5}, {}, {}, {"f1": 0.5}]
    for at in range(2, 9):
        assert holdfast.restore(f"runs/a@step={at}", model=Net(), optimizer=training("SGD").optimizer).is_exact


class Gone(nn.Module):
    """A class that no longer exists when the file is read."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 3)


def test_a_whole_module_whose_class_is_gone(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old.mkdir()
    net = Gone()
    optimizer = torch.optim.Adam(net.parameters())
    net.fc(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    torch.save({"model": net, "optimizer": optimizer.state_dict(), "epoch": 1}, old / "epoch_1.pth")
    torch.save({"model": net.state_dict(), "optimizer": optimizer, "epoch": 2}, old / "epoch_2.pth")
    monkeypatch.delitem(globals(), "Gone")
    report = adopt(old, "runs/a")
    assert [one.file for one in report.steps] == ["epoch_1.pth"]
    assert "`model`: its weights were taken" in report.steps[0].notes[0]
    assert "holds weights and no optimizer" in reasons(report)["epoch_2.pth"]
    fresh = nn.ModuleDict({"fc": nn.Linear(3, 3)})
    with holdfast.Run("runs/a", model=fresh, optimizer=torch.optim.Adam(fresh.parameters())) as run:
        assert run.resume() == Position(2, 1, 0)
    assert torch.equal(fresh["fc"].weight, net.fc.weight)


def lightning(done: Training, epoch: int, *, processed: int, batch: int, step: int) -> dict[str, Any]:
    current = {"ready": batch, "started": batch, "processed": batch, "completed": batch}
    progress = {"total": {**current, "processed": step}, "current": current, "is_last_batch": batch == BATCHES}
    epochs = {"ready": epoch + 1, "started": epoch + 1, "processed": processed, "completed": epoch}
    watch = {
        "monitor": "val_loss",
        "current_score": torch.tensor(1.0 / step),
        "best_model_path": "/x/epoch=0-step=4.ckpt",
    }
    return {
        "epoch": epoch,
        "global_step": step,
        "pytorch-lightning_version": "2.6.0",
        "state_dict": done.net.state_dict(),
        "loops": {"fit_loop": {"epoch_loop.batch_progress": progress, "epoch_progress": {"current": epochs}}},
        "callbacks": {"ModelCheckpoint{'monitor': 'val_loss'}": watch},
        "optimizer_states": [done.optimizer.state_dict()],
        "lr_schedulers": [done.scheduler.state_dict()],
        "hyper_parameters": {"loss": 3.0, "epoch": 99},
    }


def test_files_of_lightning(old: Path) -> None:
    old.mkdir()
    done = training()
    done.epoch(0)
    torch.save(lightning(done, 0, processed=0, batch=4, step=4), old / "epoch=0-step=4.ckpt")
    done.epoch(1)
    torch.save(lightning(done, 1, processed=1, batch=3, step=7), old / "epoch=1-step=7.ckpt")
    torch.save(lightning(done, 1, processed=2, batch=4, step=8), old / "last.ckpt")
    report = adopt(old, "runs/a", best="val_loss:min")
    assert [(one.file, one.step, one.epoch, one.batch) for one in report.steps] == [
        ("epoch=0-step=4.ckpt", 4, 1, 0),
        ("epoch=1-step=7.ckpt", 7, 1, 3),
        ("last.ckpt", 8, 2, 0),
    ]
    assert report.steps[0].pins == ["best"]
    assert report.steps[0].metrics == {"val_loss": 0.25}
    assert any("in the middle of epoch 1, after 3 batches" in note for note in report.steps[1].notes)
    assert report.notes[0] == "the epochs of Lightning's files are where its loops stood"
    fresh = training()
    with holdfast.Run("runs/a", model=fresh.net, optimizer=fresh.optimizer, scheduler=fresh.scheduler) as run:
        assert run.resume() == Position(2, 8, 0)
    assert fresh.values() == done.values()


def test_two_models_and_a_level_in_between(old: Path) -> None:
    old.mkdir()
    G, D = nn.Linear(2, 2), nn.Linear(2, 1)
    opts = [torch.optim.Adam(net.parameters()) for net in (G, D)]
    inner = {"netG": G.state_dict(), "netD": D.state_dict(), "optG": opts[0].state_dict(), "optD": opts[1].state_dict()}
    torch.save({"training": inner, "epoch": 3, "steps": 40}, old / "gan_3.pth")
    report = adopt(old, "runs/gan")
    assert steps(report) == [("gan_3.pth", 40, 4)]
    assert report.resume == "holdfast.Run('runs/gan', netG=..., netD=..., optG=..., optD=...)"
    assert "holds several models: give the run each under its key, netG=, netD=" in report.steps[0].notes
    fresh = nn.Linear(2, 2)
    assert holdfast.restore("runs/gan@last", netG=fresh, netD=nn.Linear(2, 1)).is_exact
    assert torch.equal(fresh.weight, G.weight)


# ---- the best one ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["copy", "weights", "whole", "parallel"])
def test_the_best_is_one_of_the_epochs(old: Path, form: str) -> None:
    train(old, 3, each_epoch)
    state = torch.load(old / "checkpoint_epoch_1.pth", weights_only=True)
    net = Net()
    net.load_state_dict(state["model_state_dict"])
    forms = {"copy": state, "weights": net.state_dict(), "whole": net, "parallel": nn.DataParallel(net).state_dict()}
    torch.save(forms[form], old / "best_model.pth")
    report = adopt(old, "runs/a")
    assert [one.pins for one in report.steps] == [[], ["best"], []]
    assert reasons(report)["best_model.pth"] == (
        "has the same weights as checkpoint_epoch_1.pth: step 8 is pinned as best"
    )
    with holdfast.Run("runs/a", model=Net(), keep="last:1") as run:
        run.resume()
        run.save(step=100)
    assert sorted(name for name in os.listdir("runs/a") if name.startswith("step")) == [
        "step-00000008",
        "step-00000100",
    ]


def test_the_best_is_a_step_of_its_own(old: Path) -> None:
    train(old, 3, each_epoch)
    other = copy.deepcopy(training()).net
    torch.save(other.state_dict(), old / "model_best.pth.tar")
    report = adopt(old, "a")
    assert steps(report)[0] == ("model_best.pth.tar", 0, None)
    assert report.steps[0].pins == ["best"]
    assert "where it stood in the training is not known: kept as step 0" in report.steps[0].notes
    os.rename(
        old / "model_best.pth.tar", old / "model_best_epoch_2.pth"
    )  # its place is taken: before it, not the newest
    report = adopt(old, "b")
    assert [(one.step, one.pins) for one in report.steps] == [(4, []), (8, []), (11, ["best"]), (12, [])]
    assert "step 12 is taken or too late: kept as step 11" in report.steps[2].notes
    fresh = training()
    with holdfast.Run("b", model=fresh.net, optimizer=fresh.optimizer) as run:
        assert run.resume() == Position(3, 12, 0)
    assert holdfast.restore("a@pin:best", model=fresh.net).is_exact
    assert fresh.net.state_dict()["head.weight"].equal(other.state_dict()["head.weight"])


def test_a_best_so_far_belongs_to_the_step_that_reached_it(old: Path) -> None:
    bests = [0.5, 0.8, 0.8, 0.8]
    train(old, 4, lambda done, epoch: (f"{epoch}.pth", done.state(epoch=epoch, best_acc=bests[epoch])))
    report = adopt(old, "runs/a", best="best_acc:max")
    assert [one.metrics for one in report.steps] == [{"best_acc": 0.5}, {"best_acc": 0.8}, {}, {}]
    assert holdfast.load("runs/a@best")["epoch"] == 1
    with refused(ArgumentError, "no file has a metric `val_loss`; there are `best_acc`"):
        adopt(old, "runs/b", best="val_loss:min")
    assert not os.path.exists("runs/b")


def test_a_second_name_of_the_same_is_no_second_step(old: Path) -> None:
    last = train(old, 3, each_epoch)
    torch.save(last.state(epoch=2), old / "latest.pth")
    last.net.head.weight.data += 1
    torch.save(last.state(epoch=2), old / "later_2.pth")
    report = adopt(old, "runs/a")
    assert [one.file for one in report.steps] == [f"checkpoint_epoch_{epoch}.pth" for epoch in range(3)]
    assert reasons(report) == {
        "latest.pth": "has the same weights at the same place as checkpoint_epoch_2.pth",
        "later_2.pth": "stands at step 12 like checkpoint_epoch_2.pth, with other weights; adopt it from a folder of "
        "its own",
    }


# ---- what can't be taken over ---------------------------------------------------------------------------------------


class Marker:
    """A pickle that would write a file, if it were run."""

    def __reduce__(self) -> Any:
        return os.system, ("touch was_run",)


def test_what_is_wrong_is_said_one_by_one(old: Path) -> None:
    train(old, 3, each_epoch)
    whole = (old / "checkpoint_epoch_1.pth").read_bytes()
    (old / "checkpoint_epoch_1.pth").write_bytes(whole[:-2000])
    flipped = bytearray((old / "checkpoint_epoch_2.pth").read_bytes())
    weights = torch.load(old / "checkpoint_epoch_2.pth")["model_state_dict"]["head.weight"].numpy().tobytes()
    flipped[flipped.index(weights)] ^= 1
    (old / "flipped_5.pth").write_bytes(flipped)
    torch.save({**training().state(epoch=3), "x": Marker()}, old / "hostile_3.pth")
    torch.save(Net().state_dict(), old / "weights_4.pth")
    torch.save([1, 2], old / "list.pth")
    torch.save(training().optimizer.state_dict(), old / "optimizer.pt")
    torch.save({"epoch": 3, "note": "x"}, old / "values.pth")
    torch.save({"optimizer": training().optimizer.state_dict(), "model": Marker.__name__}, old / "nothing.pth")
    (old / "events.out.tfevents.1").write_bytes(b"\x18\0\0\0")
    (old / "empty.pth").write_bytes(b"")
    os.mkfifo(old / "pipe.pth")
    (old / "folder").mkdir()
    os.symlink("nowhere", old / "link.pth")
    with holdfast.Run(old / "run", model=Net()) as run:
        run.save(step=1)
    report = adopt(old, "runs/a")
    assert [one.file for one in report.steps] == ["checkpoint_epoch_0.pth", "checkpoint_epoch_2.pth"]
    expected = {
        "checkpoint_epoch_1.pth": "cut short",
        "flipped_5.pth": "corrupt",
        "hostile_3.pth": "would run code if it were unpickled (posix.system)",
        "weights_4.pth": "start_from= begins a run with its weights",
        "list.pth": "is no dict with names for keys",
        "optimizer.pt": "holds an optimizer and no model",
        "nothing.pth": "holds an optimizer and no model",
        "values.pth": "holds no state_dict of a model",
        "events.out.tfevents.1": "begins with 18",
        "empty.pth": "is empty (0 bytes)",
        "pipe.pth": "is a FIFO, socket or device",
        "folder": "It is empty",
        "link.pth": "can't be read: No such file or directory",
        "run": "is a run of holdfast",
    }
    found = reasons(report)
    assert found.keys() == expected.keys()
    for name, text in expected.items():
        assert text in found[name], (name, found[name])
    assert not os.path.exists("was_run")
    assert not os.path.exists(old / "was_run")


def test_nothing_to_adopt_leaves_no_run(old: Path) -> None:
    with refused(NotFound, "no such folder"):
        adopt(old, "runs/a")
    old.mkdir()
    with refused(MissingPart, "holds no checkpoint that a training can go on from, and no run was made. It is empty"):
        adopt(old, "runs/a")
    torch.save(Net().state_dict(), old / "epoch_3.pth")
    torch.save(Net().state_dict(), old / "best_model.pth")
    with refused(MissingPart, "best_model.pth: holds weights and no optimizer"):
        adopt(old, "runs/a")
    assert not os.path.exists("runs")
    report = adopt(old, "runs/a", weights_only=True)
    assert [one.file for one in report.steps] == ["best_model.pth", "epoch_3.pth"]
    with holdfast.Run("runs/a", model=Net()) as run:
        assert run.resume() == Position(4, 4, 0)


def test_a_file_without_a_place_says_how_to_give_it_one(old: Path) -> None:
    train(old, 2, lambda done, epoch: (f"{'checkpoint' if epoch else 'epoch_1'}.pth", done.state()), "SGD")
    assert "give a copy of it a name such as NAME_epoch_10" in reasons(adopt(old, "runs/a"))["checkpoint.pth"]


# ---- targets and interruptions --------------------------------------------------------------------------------------


def test_targets_that_are_refused_by_name(old: Path) -> None:
    train(old, 2, each_epoch)
    Path("file").touch()
    with refused(ArgumentError, "`file`: is a file, a run needs a folder"):
        adopt(old, "file")
    with refused(ArgumentError, "lies in the old folder"):
        adopt(old, old / "run")
    with refused(ArgumentError, "lies in the old folder"):
        adopt(old, old)
    adopt(old, "runs/a")
    with refused(ArgumentError, "`runs/a`: is a run already, with 2 checkpoints; adopt into a new folder"):
        adopt(old, "runs/a")
    with refused(ArgumentError, "`runs/a`: is a run of holdfast already; it needs no adoption"):
        adopt("runs/a", "runs/b")
    with refused(ArgumentError, "epoch_is is 'last'; it takes 'done', 'next' or None"):
        adopt(old, "runs/b", epoch_is="last")  # type: ignore[arg-type]
    with refused(ArgumentError, "steps_per_epoch is 0; it takes a whole number of at least 1"):
        adopt(old, "runs/b", steps_per_epoch=0)
    with RunLock("runs/b"), refused(RunLocked, "writes the run already"):
        adopt(old, "runs/b")
    assert steps(adopt(old, "runs/b")) == [("checkpoint_epoch_0.pth", 4, 1), ("checkpoint_epoch_1.pth", 8, 2)]


def test_a_dry_run_writes_nothing(old: Path) -> None:
    train(old, 2, each_epoch)
    report = adopt(old, "runs/a", dry_run=True)
    assert len(report.steps) == 2
    assert "nothing was written" in str(report)
    assert os.listdir() == ["old"]


KILLED = """
import os, sys
from holdfast.surgery import adopt
from holdfast.training.resuming import Position
seen = []
def tell(name):
    seen.append(name)
    if len(seen) == int(sys.argv[1]):
        os.kill(os.getpid(), 9)
adopt("old", "run", tell=tell)
"""


@pytest.mark.parametrize("at", [2, 5, 6, 7])
def test_a_killed_adoption_goes_on(old: Path, at: int) -> None:
    """Killed while reading, before the first step, and between steps."""
    train(old, 4, each_epoch)
    environment = {**os.environ, "PYTHONPATH": str(Path(holdfast.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", KILLED, str(at)], env=environment, check=False, timeout=60)
    assert done.returncode == -9
    there = sorted(name for name in os.listdir("run") if name.startswith("step")) if os.path.isdir("run") else []
    assert len(there) == max(at - 5, 0)
    kept = {name: os.stat(f"run/{name}").st_ino for name in there}
    report = adopt(old, "run")
    assert len(report.steps) == 4
    assert {name: os.stat(f"run/{name}").st_ino for name in there} == kept
    assert len({read_manifest(f"run/step-{one.step:08d}").run for one in report.steps}) == 1


def test_an_adoption_that_was_cut_off_is_not_mixed_with_another(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(old, 3, each_epoch)
    commit = StagedFolder.commit

    def fails(folder: StagedFolder) -> None:
        if folder.path.endswith("8"):
            raise StorageError("the disk is full")
        commit(folder)

    with monkeypatch.context() as patch, refused(StorageError, "the disk is full"):
        patch.setattr(StagedFolder, "commit", fails)
        adopt(old, "run")
    assert [name for name in os.listdir("run") if "step" in name] == ["step-00000004"]
    with refused(ArgumentError, "step 4 is of an adoption that was cut off and said otherwise"):
        adopt(old, "run", epoch_is="next")
    manifest = Path("run/step-00000004/manifest.json")
    whole = manifest.read_bytes()
    manifest.write_bytes(whole[:-9])
    with refused(ArgumentError, "; remove the folder, or adopt into another"):
        adopt(old, "run")
    manifest.write_bytes(whole)
    assert len(adopt(old, "run").steps) == 3


def test_bytes_that_read_back_otherwise_are_not_committed(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(old, 2, each_epoch)
    monkeypatch.setattr(writing, "differences", lambda *_: [Lost("model.w", "its bytes differ")])
    with refused(MissingPart, "`model.w` reads back otherwise than it was written: memory or disk failed"):
        adopt(old, "runs/a")
    monkeypatch.setattr(writing, "lay_out", lambda *_: None)
    with refused(MissingPart, "was changed while it was adopted"):
        adopt(old, "runs/a")
    assert os.listdir("runs") == []


def test_what_reads_back_otherwise_is_not_committed(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(old, 2, each_epoch)
    write = writing.write_checkpoint

    def lies(folder: StagedFolder, document: Any, manifest: Any) -> Any:
        if manifest.step == 4:
            document.tree["epoch"] = 99
        written = write(folder, document, manifest)
        if manifest.step == 4:
            document.tree["epoch"] = 0
        return written

    monkeypatch.setattr(writing, "write_checkpoint", lies)
    report = adopt(old, "run")
    assert [one.step for one in report.steps] == [8]
    assert "`epoch` can't be kept in a run" in reasons(report)["checkpoint_epoch_0.pth"]
    assert sorted(name for name in os.listdir("run") if "step" in name) == ["step-00000008"]

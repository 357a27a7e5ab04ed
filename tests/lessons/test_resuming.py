"""What goes wrong when training is resumed, one lesson a test: first what torch alone does, then holdfast."""

from __future__ import annotations

import copy
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim import lr_scheduler as schedulers
from torch.utils.data import DataLoader

import holdfast
from holdfast.errors import CorruptFile, MismatchError, MissingPart
from holdfast.objects.rng import capture_rng
from holdfast.runs.catalog import scan

Net = Callable[..., nn.Sequential]
Same = Callable[[Any, Any], bool]


def order_of(run_dir: Path, epochs: int, *, seed: int = 0) -> list[list[int]]:
    """One process: trains up to ``epochs`` and says in which order it saw the data."""
    torch.manual_seed(seed)
    loader = DataLoader(range(20), batch_size=5, shuffle=True)
    seen = []
    with holdfast.Run(run_dir, model=nn.Linear(1, 1), loader=loader) as run:
        for epoch in run.epochs(epochs):
            seen.append([number for batch in run.batches(loader) for number in batch.tolist()])
            run.end(epoch)
    return seen


@pytest.mark.usefixtures("seeded")
def test_lesson_12_a_resumed_run_does_not_see_the_first_order_again(tmp_path: Path) -> None:
    """Without the generators' states a restart shuffles as the first epoch did, again and again."""
    torch.manual_seed(0)
    first, second = ([n for batch in DataLoader(range(20), shuffle=True) for n in batch.tolist()] for _ in range(2))
    torch.manual_seed(0)
    assert [n for batch in DataLoader(range(20), shuffle=True) for n in batch.tolist()] == first != second
    whole = order_of(tmp_path / "whole", 2)
    assert whole[0] != whole[1]
    assert order_of(tmp_path / "parts", 1) + order_of(tmp_path / "parts", 2) == whole


@pytest.mark.usefixtures("seeded")
def test_lesson_12_the_rest_of_an_epoch_is_the_rest(tmp_path: Path) -> None:
    """A restart in the middle of an epoch that shuffles anew sees some items twice in it, and others never."""

    def part(root: Path, items: int) -> list[int]:
        torch.manual_seed(0)
        loader = DataLoader(range(20), batch_size=5, shuffle=True)
        with holdfast.Run(root, model=nn.Linear(1, 1), save="1step") as run:
            return [n for batch in islice(run.batches(loader), items) for n in batch.tolist()]

    whole = part(tmp_path / "whole", 4)
    assert sorted(whole) == list(range(20))
    assert part(tmp_path / "parts", 3) == whole[:15]  # two of the three are committed, the third was being worked on
    assert part(tmp_path / "parts", 4) == whole[10:]


@pytest.mark.usefixtures("seeded")
def test_lesson_12_every_generator_goes_on(run_dir: Path) -> None:
    """Torch's generator alone is not enough: augmentation draws from python's and numpy's."""

    def draw() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), torch.rand(1).item()

    with holdfast.Run(run_dir, model=nn.Linear(1, 1)) as run:
        run.save(step=1)
        wanted = draw()
    draw()
    with holdfast.Run(run_dir, model=nn.Linear(1, 1)) as run:
        run.resume()
        assert draw() == wanted


def damage(file: Path, *, offset: int = -3) -> None:
    """Flips one bit."""
    with file.open("r+b") as opened:
        opened.seek(offset, os.SEEK_END if offset < 0 else os.SEEK_SET)
        byte = opened.read(1)[0]
        opened.seek(-1, os.SEEK_CUR)
        opened.write(bytes([byte ^ 1]))


@pytest.mark.usefixtures("seeded")
def test_lesson_12_a_damaged_random_state_is_no_success(run_dir: Path) -> None:
    """A resume that skips what it can't read of the generators reports success and trains another run."""
    with holdfast.Run(run_dir, model=nn.Linear(1, 1)) as run:
        for step in (1, 2):
            run.save(step=step)
    damage(run_dir / "step-00000002" / "rng.safetensors")
    with holdfast.Run(run_dir, model=nn.Linear(1, 1)) as run:
        position = run.resume()
        assert position is not None
        assert position.step == 1
    assert any((run_dir / "quarantine").iterdir())
    damage(run_dir / "step-00000001" / "rng.safetensors")
    with (
        holdfast.Run(run_dir, model=nn.Linear(1, 1)) as run,
        pytest.raises(CorruptFile, match="every checkpoint is damaged"),
    ):
        run.resume()


@pytest.mark.parametrize("damaged", [{"torch": torch.zeros(5056, dtype=torch.uint8)}, {"python": (3, (0,), None)}])
@pytest.mark.usefixtures("seeded")
def test_lesson_12_a_random_state_that_is_none_is_no_success(
    damaged: dict[str, Any], run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole on the disk and still no state of a generator: the digests are right, and only the generator knows."""
    state = {**capture_rng(), **damaged}
    with holdfast.Run(run_dir, model=nn.Linear(1, 1)) as run, monkeypatch.context() as patched:
        patched.setattr("holdfast.training.commits.capture_rng", lambda: state)
        run.save(step=1)
    assert holdfast.verify(run_dir).status == "OK"
    with (
        holdfast.Run(run_dir, model=nn.Linear(1, 1)) as run,
        pytest.raises(CorruptFile, match="its random state can't be restored"),
    ):
        run.resume()


def test_lesson_13_the_next_position_is_stored(run_dir: Path) -> None:
    """``start_epoch = checkpoint["epoch"]`` trains an epoch twice, ``+ 1`` in two places skips one."""
    seen: list[tuple[int, int]] = []
    for stop in (7, 12, None):
        with holdfast.Run(run_dir, model=nn.Linear(1, 1), save="1step") as run:
            for epoch in run.epochs(3):
                for item in run.batches(range(5)):
                    seen.append((epoch, item))
                    if run.position.step + 1 == stop:
                        run.save()
                        break
                else:
                    run.end(epoch)
                    continue
                break
    assert seen == [(epoch, item) for epoch in range(3) for item in range(5)]
    newest = scan(run_dir).readable[-1].manifest
    assert newest is not None
    assert (newest.epoch, newest.batch, newest.step) == (3, 0, 15)


@pytest.mark.parametrize("stop", [None, (0, "after"), (1, "before"), (1, "after")])
def test_lesson_13_an_own_loop_does_each_epoch_once(stop: tuple[int, str] | None, run_dir: Path) -> None:
    """Which epoch a number means is said where it is saved: the one to go on with."""
    seen = []
    for process in range(2):
        with holdfast.Run(run_dir, model=nn.Linear(1, 1)) as run:
            at = run.resume()
            for epoch in range(at.epoch if at else 0, 3):
                if process == 0 and stop == (epoch, "before"):
                    break
                seen.append(epoch)
                run.save(step=(epoch + 1) * 10, epoch=epoch + 1)
                if process == 0 and stop == (epoch, "after"):
                    break
    assert seen == [0, 1, 2]


SCHEDULERS: dict[str, Callable[[Optimizer], Any]] = {
    "StepLR": lambda opt: schedulers.StepLR(opt, 3),
    "MultiStepLR": lambda opt: schedulers.MultiStepLR(opt, [2, 4]),
    "LambdaLR": lambda opt: schedulers.LambdaLR(opt, lambda epoch: 0.9**epoch),
    "ExponentialLR": lambda opt: schedulers.ExponentialLR(opt, 0.9),
    "CosineAnnealingLR": lambda opt: schedulers.CosineAnnealingLR(opt, 20),
    "CosineAnnealingWarmRestarts": lambda opt: schedulers.CosineAnnealingWarmRestarts(opt, 4),
    "OneCycleLR": lambda opt: schedulers.OneCycleLR(opt, 0.1, total_steps=30),
    "CyclicLR": lambda opt: schedulers.CyclicLR(opt, 0.01, 0.1),
    "LinearLR": lambda opt: schedulers.LinearLR(opt, total_iters=8),
}
WRONG = {"LambdaLR", "CosineAnnealingWarmRestarts", "OneCycleLR", "CyclicLR", "LinearLR"}


def sgd(lr: float = 0.1) -> Optimizer:
    return SGD([nn.Parameter(torch.ones(1))], lr=lr, momentum=0.9)


def rates(optimizer: Optimizer, scheduler: Any) -> Iterator[float]:
    """The learning rates from here on."""
    for _ in range(6):
        yield optimizer.param_groups[0]["lr"]
        optimizer.step()
        scheduler.step()


def stepped(name: str) -> tuple[Optimizer, Any]:
    optimizer = sgd()
    scheduler = SCHEDULERS[name](optimizer)
    for _ in range(5):
        optimizer.step()
        scheduler.step()
    return optimizer, scheduler


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("order", [("opt", "sched"), ("sched", "opt")])
def test_lesson_14_a_scheduler_goes_on_with_its_learning_rate(
    name: str, order: tuple[str, str], tmp_path: Path
) -> None:
    """Constructed after its optimizer was loaded, a scheduler takes its first step again: the rate is wrong."""
    optimizer, scheduler = stepped(name)
    saved = copy.deepcopy({"opt": optimizer.state_dict(), "sched": scheduler.state_dict()})
    holdfast.save({"opt": optimizer, "sched": scheduler}, tmp_path / "f.pt")
    wanted = list(rates(optimizer, scheduler))

    by_hand = sgd()
    by_hand.load_state_dict(saved["opt"])
    late = SCHEDULERS[name](by_hand)
    late.load_state_dict(saved["sched"])
    assert (list(rates(by_hand, late)) != wanted) == (name in WRONG)

    optimizer = sgd()
    live = {"opt": optimizer, "sched": SCHEDULERS[name](optimizer)}
    report = holdfast.restore(tmp_path / "f.pt", **{key: live[key] for key in order})
    assert list(rates(live["opt"], live["sched"])) == wanted
    assert not any("construct both" in note for note in report.notes)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_lesson_14_a_scheduler_that_came_too_late_is_told_apart(name: str, tmp_path: Path) -> None:
    """The same mistake with two calls of restore: it can't be undone from there, so it is said."""
    optimizer, scheduler = stepped(name)
    holdfast.save({"opt": optimizer, "sched": scheduler}, tmp_path / "f.pt")
    wanted, optimizer = list(rates(optimizer, scheduler)), sgd()
    holdfast.restore(tmp_path / "f.pt", opt=optimizer)
    scheduler = SCHEDULERS[name](optimizer)
    notes = holdfast.restore(tmp_path / "f.pt", sched=scheduler).notes
    said = any("`sched`: its optimizer's learning rate is [" in n and "restore both in one call" in n for n in notes)
    assert said == (list(rates(optimizer, scheduler)) != wanted)


def test_lesson_15_another_learning_rate_is_shown_and_the_user_decides(tmp_path: Path) -> None:
    """``--lr`` of the command line is overwritten by the file without a word."""
    holdfast.save({"optimizer": sgd(0.1)}, tmp_path / "f.pt")
    theirs = sgd(0.5)
    theirs.load_state_dict(sgd(0.1).state_dict())
    assert theirs.param_groups[0]["lr"] == 0.1
    for hyper, lr, words in (("file", 0.1, "the file's is used"), ("mine", 0.5, "the program's is used")):
        ours = sgd(0.5)
        report = holdfast.restore(tmp_path / "f.pt", optimizer=ours, hyper=hyper)
        assert ours.param_groups[0]["lr"] == lr
        assert f"`optimizer` group 0: lr is 0.1 in the file, 0.5 in the program: {words}" in report.notes


@pytest.mark.parametrize("scheduled", [False, True])
def test_lesson_15_a_run_says_what_it_sets_otherwise(
    scheduled: bool, run_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The same script with another ``--lr`` goes on with the old one; a rate that only a scheduler changed is none."""

    def objects(lr: float) -> dict[str, Any]:
        optimizer = sgd(lr)
        more = {"scheduler": schedulers.StepLR(optimizer, 1)} if scheduled else {}
        return {"optimizer": optimizer, **more}

    with holdfast.Run(run_dir, **(first := objects(0.1))) as run:
        if scheduled:
            first["optimizer"].step()
            first["scheduler"].step()
        run.save(step=1)
    with holdfast.Run(run_dir, **objects(0.1)) as run:
        run.resume()
    assert "as the program has it" not in caplog.text
    with holdfast.Run(run_dir, **(other := objects(0.5))) as run:
        run.resume()
        key = "initial_lr" if scheduled else "lr"
        assert f"`optimizer` group 0: {key} is 0.1 as in the checkpoint, not 0.5 as the program has it" in caplog.text
        other["optimizer"].param_groups[0]["lr"] = 0.5  # the user says which wins
        run.save(step=2)
    with holdfast.Run(run_dir, **(third := objects(0.5))) as run:
        run.resume()
    assert third["optimizer"].param_groups[0]["lr"] == 0.5


class Two(nn.Module):
    """Two layers of one shape, so that a swap of their moments shows nowhere but in the numbers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.a, self.b = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)

    def moments(self, optimizer: Optimizer) -> dict[str, torch.Tensor]:
        return {
            name: optimizer.state[parameter]["exp_avg"].clone()
            for name, parameter in self.named_parameters()
            if parameter in optimizer.state
        }


def trained(make: Callable[[Two], Optimizer]) -> tuple[Two, Optimizer]:
    model = Two()
    optimizer = make(model)
    (model.a(torch.ones(3)).sum() + 5 * model.b(torch.arange(3.0)).sum()).backward()
    optimizer.step()
    return model, optimizer


def in_order(model: Two) -> Optimizer:
    return AdamW(model.parameters(), lr=0.1)


def reversed_order(model: Two) -> Optimizer:
    return AdamW([model.b.weight, model.a.weight], lr=0.1)


def test_lesson_16_moments_find_their_parameters_in_another_order(tmp_path: Path, same: Same) -> None:
    """Optimizer state is numbered: parameters in another order get someone else's moments."""
    model, optimizer = trained(in_order)
    wanted = model.moments(optimizer)
    holdfast.save({"model": model, "optimizer": optimizer}, tmp_path / "f.pt")
    other = Two()
    theirs = reversed_order(other)
    theirs.load_state_dict(optimizer.state_dict())
    assert torch.equal(other.moments(theirs)["a.weight"], wanted["b.weight"])
    ours = reversed_order(other)
    holdfast.restore(tmp_path / "f.pt", model=other, optimizer=ours)
    assert same(other.moments(ours), wanted)


def test_lesson_16_names_given_to_torch_do_not_help_but_do_here(tmp_path: Path, same: Same) -> None:
    """torch stores the names of ``named_parameters()`` and ignores them when it loads."""
    model, optimizer = trained(lambda model: AdamW(model.named_parameters(), lr=0.1))
    wanted = model.moments(optimizer)
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "f.pt")
    other = Two()
    backwards = [*other.named_parameters()][::-1]
    theirs = AdamW(backwards, lr=0.1)
    theirs.load_state_dict(torch.load(tmp_path / "f.pt")["optimizer"])
    assert not same(other.moments(theirs), wanted)
    ours = AdamW(backwards, lr=0.1)
    holdfast.restore(tmp_path / "f.pt", model=other, optimizer=ours)
    assert same(other.moments(ours), wanted)


def test_lesson_16_swapped_groups_keep_their_weight_decay(tmp_path: Path, same: Same) -> None:
    """Groups are numbered too: swapped, the layer that must not decay decays."""

    def groups(model: Two, first: str, second: str) -> Optimizer:
        decay = {"a": 0.0, "b": 0.5}
        wanted = [{"params": [getattr(model, n).weight], "weight_decay": decay[n]} for n in (first, second)]
        return AdamW(wanted, lr=0.1)

    model, optimizer = trained(lambda model: groups(model, "a", "b"))
    wanted = model.moments(optimizer)
    holdfast.save({"model": model, "optimizer": optimizer}, tmp_path / "f.pt")
    other = Two()
    theirs, ours = groups(other, "b", "a"), groups(other, "b", "a")
    theirs.load_state_dict(optimizer.state_dict())
    assert [group["weight_decay"] for group in theirs.param_groups] == [0.0, 0.5]
    holdfast.restore(tmp_path / "f.pt", model=other, optimizer=ours)
    assert [group["weight_decay"] for group in ours.param_groups] == [0.5, 0.0]
    assert same(other.moments(ours), wanted)


def test_lesson_16_other_groups_take_their_moments_along_and_say_whose_options_hold(tmp_path: Path, same: Same) -> None:
    """torch refuses other groups; by hand, they get the options of whichever group had their number."""

    def regrouped(model: Two) -> Optimizer:
        return AdamW([{"params": [model.b.weight], "weight_decay": 0.0}, {"params": [model.a.weight]}], lr=0.1)

    model, optimizer = trained(in_order)
    holdfast.save({"model": model, "optimizer": optimizer}, tmp_path / "f.pt")
    other = Two()
    with pytest.raises(ValueError, match="different number of parameter groups"):
        regrouped(other).load_state_dict(optimizer.state_dict())
    for hyper, decay, words in (("file", 0.01, "the file's is used"), ("mine", 0.0, "the program's is used")):
        ours = regrouped(other)
        report = holdfast.restore(tmp_path / "f.pt", model=other, optimizer=ours, hyper=hyper)
        assert same(other.moments(ours), model.moments(optimizer))
        assert ours.param_groups[0]["weight_decay"] == decay
        said = f"`optimizer` group 0: weight_decay is 0.01 in the file, 0.0 in the program: {words}"
        assert said in report.notes


def test_lesson_16_a_partly_frozen_model(tmp_path: Path) -> None:
    """With the first layer frozen, the second one is number 0 and gets the first one's moments."""
    model, optimizer = trained(in_order)
    wanted = model.moments(optimizer)
    holdfast.save({"model": model, "optimizer": optimizer}, tmp_path / "f.pt")
    other = Two()
    ours = AdamW(other.b.parameters(), lr=0.1)
    with pytest.raises(MismatchError, match=r"the program lacks `a.weight`; nothing was changed"):
        holdfast.restore(tmp_path / "f.pt", model=other, optimizer=ours)
    report = holdfast.restore(tmp_path / "f.pt", model=other, optimizer=ours, match=holdfast.Warm())
    assert torch.equal(other.moments(ours)["b.weight"], wanted["b.weight"])
    assert report.unexpected == ["optimizer.state.a.weight"]


STOPPED = """
import os, signal, sys
import torch, holdfast
model = torch.nn.Linear(1, 1)
with holdfast.Run(sys.argv[1], model=model, save="1000ep signal") as run:
    for epoch in run.epochs(2):
        for item in run.batches(range(4)):
            if sys.argv[2] == "training" and item == 2:
                os.kill(os.getpid(), signal.SIGTERM)
        if sys.argv[2] == "evaluation":
            os.kill(os.getpid(), signal.SIGTERM)
            torch.rand(3)
        run.end(epoch)
print("finished")
"""


def test_lesson_17_what_is_not_in_the_run_is_told(net: Net, run_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A scaler, an average or a second model that was never registered is lost at the first restart."""
    model, other, scaler = net(), net(1), torch.amp.GradScaler("cpu")
    optimizer = SGD([*model.parameters(), *other.parameters()], lr=0.1)
    with holdfast.Run(run_dir, model=model, optimizer=optimizer, scaler=scaler) as run:
        run.save(step=1)
    assert "`optimizer` trains parameters of no model given to the run: they are not saved" in caplog.text
    with holdfast.Run(run_dir, model=net(2)) as run:
        run.resume()
    assert "step 1 holds `optimizer`, which the program does not give" in caplog.text
    assert "step 1 holds `scaler`, which the program does not give" in caplog.text
    assert {"optimizer", "scaler"} <= set(holdfast.restore(f"{run_dir}@last", model=net(3)).unused)
    with holdfast.Run(run_dir, model=net(2), ema=net(4)) as run, pytest.raises(MissingPart, match="no part for `ema`"):
        run.resume()


class EarlyStopping:
    def __init__(self) -> None:
        self.best, self.counter = 0.0, 0


def test_lesson_17_the_audit_names_what_was_never_registered(net: Net, run_dir: Path) -> None:
    """The weights come back, and the loss scale, the average, the patience and the order of the data begin anew."""
    model = net()
    optimizer = SGD(model.parameters(), lr=0.1)
    alive = {
        "scaler": torch.amp.GradScaler("cpu"),
        "ema": torch.optim.swa_utils.AveragedModel(model),
        "stopping": EarlyStopping(),
        "loader": DataLoader(range(8), shuffle=True),
    }
    with holdfast.Run(run_dir, model=model, optimizer=optimizer) as run:
        found = {one.name: one for one in run.audit().findings}
        for word in alive:
            assert f"alive['{word}']" in found, f"{word} is lost at the next restart, and nobody said so"
        assert found["alive['scaler']"].line == "holdfast.Run(..., scaler=alive['scaler'])"
        run.save(step=1)
    given = {word: alive[word] for word in ("scaler", "ema", "loader")}
    with holdfast.Run(run_dir.with_name("b"), model=model, optimizer=optimizer, **given) as run:
        told = {one.name for one in run.audit().findings}
    assert not {f"alive['{word}']" for word in given} & told


@pytest.mark.parametrize(("where", "position"), [("training", (3, 0, 3)), ("evaluation", (4, 0, 4))])
def test_lesson_18_sigterm_saves_and_says_so(where: str, position: tuple[int, int, int], run_dir: Path) -> None:
    """A cluster that sends SIGTERM finds exit code 0 and no checkpoint, or none while the evaluation runs."""
    command = [sys.executable, "-c", STOPPED, str(run_dir), where]
    told = subprocess.run(command, capture_output=True, text=True, check=False, timeout=100)
    assert told.returncode == 128 + signal.SIGTERM, told.stderr
    assert "finished" not in told.stdout
    newest = scan(run_dir).readable[-1].manifest
    assert newest is not None
    assert (newest.step, newest.epoch, newest.batch) == position

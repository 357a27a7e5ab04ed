"""What goes wrong when the best, the newest or the superfluous checkpoint is chosen, one lesson a test."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

import holdfast
from holdfast.cli.main import main
from holdfast.runs.catalog import scan
from holdfast.training.resuming import Position


def numbered(value: float = 0.0) -> nn.Linear:
    """A model whose weights say which step they are of."""
    model = nn.Linear(1, 1)
    nn.init.constant_(model.weight, value)
    return model


def set_to(model: nn.Linear, value: float) -> None:
    nn.init.constant_(model.weight, value)


def steps(run_dir: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("step-")) for path in run_dir.glob("step-*"))


NAN = float("nan")


@pytest.mark.parametrize(
    ("rule", "metrics", "best"),
    [
        ("loss:min", [NAN, 0.5, 0.7], 2),  # nothing is smaller than NaN, so NaN would stay best
        ("acc:max", [NAN, 0.1, NAN], 2),
        ("loss:min", [0.5, 0.0, 0.3], 2),  # 0.0 is a metric; `if best and ...` takes it for none
        ("acc:max", [0.0, NAN, -1.0], 1),
        ("acc:max", [-3.0, -2.0, -2.5], 2),  # a best that starts at 0 is never reached
    ],
)
def test_lesson_09_nan_and_zero_are_judged_as_numbers(
    rule: str, metrics: list[float], best: int, run_dir: Path
) -> None:
    """NaN as the first metric stays best for ever, and 0.0 passes for "no metric"."""
    name = rule.partition(":")[0]
    model = numbered()
    with holdfast.Run(run_dir, model=model, best=rule) as run:
        for step, value in enumerate(metrics, 1):
            set_to(model, step)
            run.save(step=step, metrics={name: value})
        assert run.best.step == best
        assert run.best.build().weight.item() == best  # the metric and the weights are of one step


def test_lesson_09_a_restart_does_not_forget_the_best(run_dir: Path) -> None:
    """A best that lives in memory starts from nothing after a restart, and a worse value overwrites it."""
    for process, losses in enumerate(([0.9, 0.2], [0.8, 0.7])):
        model = numbered()
        with holdfast.Run(run_dir, model=model, best="loss:min", keep="last:1 best:1") as run:
            run.resume()
            for number, loss in enumerate(losses):
                step = process * 10 + number + 1
                set_to(model, step)
                run.save(step=step, metrics={"loss": loss})
    assert steps(run_dir) == [2, 12]
    live = numbered()
    holdfast.restore(f"{run_dir}@best", model=live)
    assert live.weight.item() == 2


@pytest.mark.parametrize("save", ["3step 100ep", "1ep", "100ep", "7step"])
def test_lesson_09_a_metric_stays_with_the_weights_that_it_was_measured_on(save: str, run_dir: Path) -> None:
    """Written into whatever file was saved last, the metric of an epoch's end describes weights from its middle."""
    losses = [0.5, 0.7, 0.2, 0.9]
    model = numbered()
    with holdfast.Run(run_dir, model=model, best="loss:min", save=save) as run:
        for epoch in run.epochs(len(losses)):
            for _ in run.batches(range(4)):
                set_to(model, run.position.step + 1)
            run.end(epoch, loss=losses[epoch])
        assert (run.best.step, run.best.metrics, run.best.build().weight.item()) == (12, {"loss": 0.2}, 12)
    for one in scan(run_dir).readable:
        assert one.manifest is not None
        assert holdfast.load(one.path)["model"]["weight"].item() == one.step
        measured = {"loss": losses[one.step // 4 - 1]} if one.step % 4 == 0 else {}
        none = one.step == 16 and not one.manifest.metrics  # the commit at the training's end, which no rule asked for
        assert none or one.manifest.metrics == measured


def test_lesson_10_the_newest_is_neither_the_youngest_file_nor_the_last_in_the_alphabet(run_dir: Path) -> None:
    """By text ``epoch_9`` comes after ``epoch_10``; a copy or a backup gives every file a new time."""
    assert sorted(["epoch_9.pt", "epoch_10.pt"])[-1] == "epoch_9.pt"
    with holdfast.Run(run_dir, model=(model := numbered())) as run:
        for step in (9, 10, 100):
            set_to(model, step)
            run.save(step=step)
    for age, path in enumerate(sorted(run_dir.glob("step-*"), reverse=True)):  # the oldest step was touched last
        os.utime(path, (2_000_000_000 + age, 2_000_000_000 + age))
        os.utime(path / "manifest.json", (2_000_000_000 + age, 2_000_000_000 + age))
    with holdfast.Run(run_dir, model=(live := numbered())) as run:
        assert run.resume() == Position(epoch=0, step=100, batch=0)
        assert live.weight.item() == 100


def test_lesson_10_strangers_in_the_folder_are_not_picked_up(run_dir: Path) -> None:
    """Editors, syncing tools and people leave files beside checkpoints, some with tempting names."""
    with holdfast.Run(run_dir, model=numbered(7.0)) as run:
        run.save(step=7)
    torch.save(numbered(99.0).state_dict(), run_dir / "step-00000099.pt")
    (run_dir / "step-00000098").mkdir()
    (run_dir / "epoch_100.pt").write_bytes(b"not a checkpoint")
    shutil.copytree(run_dir / "step-00000007", run_dir / "step-00000097 (copy)")
    with holdfast.Run(run_dir, model=(live := numbered())) as run:
        position = run.resume()
        assert position is not None
        assert (position.step, live.weight.item()) == (7, 7.0)


def test_lesson_10_numbering_goes_on_after_a_restart(run_dir: Path) -> None:
    """Counting from 0 again writes new weights under old numbers, and "the newest" is one of the first process."""
    seen = []
    for _ in range(2):
        with holdfast.Run(run_dir, model=numbered(), save="1ep") as run:
            for epoch in run.epochs(4 if seen else 2):
                for _ in run.batches(range(5)):
                    pass
                run.end(epoch)
                seen.append(epoch)
    assert seen == [0, 1, 2, 3]
    assert steps(run_dir) == [5, 10, 15, 20]


def test_lesson_11_retention_remembers_across_restarts(run_dir: Path) -> None:
    """Rules that count in memory keep twice as many after a restart, or lose sight of the old ones for ever."""
    for process in range(3):
        with holdfast.Run(run_dir, model=numbered(), keep="last:2") as run:
            run.resume()
            for number in range(3):
                run.save(step=process * 3 + number + 1)
    assert steps(run_dir) == [8, 9]


def test_lesson_11_the_newest_is_never_deleted_and_never_all(run_dir: Path) -> None:
    """ "Keep the best three" alone deletes what a resume needs; a rule that fits nothing deletes everything."""
    with holdfast.Run(run_dir, model=numbered(), best="loss:min", keep="best:1") as run:
        for step, loss in enumerate([0.1, 0.9, 0.8], 1):
            committed = run.save(step=step, metrics={"loss": loss})
            assert step in steps(run_dir)
        assert committed.pruned == [2]
    assert steps(run_dir) == [1, 3]
    with holdfast.Run(run_dir, model=numbered(), keep="every:1000ep") as run:
        run.resume()
        run.save(step=4)
    assert 4 in steps(run_dir)


def test_lesson_11_nothing_is_deleted_for_a_newest_that_is_not_good(run_dir: Path) -> None:
    """Old checkpoints that go for the sake of one that can't be read leave nothing at all."""
    with holdfast.Run(run_dir, model=(model := numbered())) as run:
        for step in (1, 2, 3):
            set_to(model, step)
            run.save(step=step)
    os.truncate(run_dir / "step-00000003" / "model.safetensors", 10)  # its manifest is still good
    with pytest.raises(SystemExit) as left:
        main(["prune", str(run_dir), "--keep", "last:1"])
    assert (left.value.code, steps(run_dir)) == (2, [1, 2, 3])
    with holdfast.Run(run_dir, model=numbered(), keep="last:1") as run:
        assert run.resume() == Position(epoch=0, step=2, batch=0)
        assert run.save(step=3).pruned == [1, 2]  # by now there is a newer one that this process wrote itself
    assert holdfast.verify(run_dir).status == "OK"

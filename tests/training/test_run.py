"""What Run does between the first line of a training and the last."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import holdfast
from holdfast.errors import (
    ArgumentError,
    CorruptFile,
    MismatchError,
    MissingPart,
    RunLocked,
    StorageError,
    UnsupportedValue,
)
from holdfast.runs.catalog import scan
from holdfast.runs.run_file import read_run_file
from holdfast.training.resuming import Position

ITEMS = [torch.full((2,), float(number)) for number in range(5)]


def parts(seed: int = 0) -> dict[str, Any]:
    torch.manual_seed(seed)
    net = nn.Linear(2, 1)
    return {"model": net, "optimizer": torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)}


def step(objects: dict[str, Any], item: torch.Tensor) -> None:
    objects["optimizer"].zero_grad()
    objects["model"](item).square().mean().backward()
    objects["optimizer"].step()


def train(root: Path, epochs: int, *, metrics: list[float] | None = None, **options: Any) -> dict[str, Any]:
    objects = parts()
    with holdfast.Run(root, **objects, **options) as run:
        for epoch in run.epochs(epochs):
            for item in run.batches(ITEMS):
                step(objects, item)
            run.end(epoch, **({} if metrics is None else {"loss": metrics[epoch]}))
    return objects


def steps(root: Path) -> list[int]:
    return [one.step for one in scan(root).checkpoints]


def equal(left: nn.Module, right: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(left.state_dict().values(), right.state_dict().values(), strict=True))


def test_an_empty_folder_starts_fresh_and_is_made(run_dir: Path) -> None:
    with holdfast.Run(run_dir, **parts()) as run:
        assert run.resume() is None
        assert run.position == Position(epoch=0, step=0, batch=0)
    assert run_dir.is_dir()


def test_a_second_process_goes_on_where_the_first_ended(run_dir: Path) -> None:
    first = train(run_dir, 2)
    fresh = parts(seed=9)
    with holdfast.Run(run_dir, **fresh) as run:
        assert run.resume() == Position(epoch=2, step=10, batch=0)
        assert list(run.epochs(2)) == []
    assert equal(fresh["model"], first["model"])
    momentum = [next(iter(objects["optimizer"].state.values()))["momentum_buffer"] for objects in (fresh, first)]
    assert torch.equal(*momentum)


def test_save_rules_count_steps_and_epochs(run_dir: Path) -> None:
    train(run_dir, 3, save="4step")
    assert steps(run_dir) == [4, 8, 12, 15]  # and the end, which no rule asked for


def test_a_save_behind_the_last_item_is_left_to_the_end_of_the_epoch(run_dir: Path) -> None:
    train(run_dir, 1, save="5step", metrics=[0.5])
    (one,) = scan(run_dir).readable
    assert (one.manifest.step, one.manifest.epoch, one.manifest.batch) == (5, 1, 0)
    assert one.manifest.metrics == {"loss": 0.5}


def test_time_rules_ask_the_clock(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr("holdfast.training.run.time.monotonic", lambda: now)
    objects = parts()
    with holdfast.Run(run_dir, save="1min", **objects) as run:
        for _ in run.epochs(1):
            for number, item in enumerate(run.batches(ITEMS)):
                step(objects, item)
                now += 61 if number == 1 else 1
    assert steps(run_dir) == [2, 5]


def test_a_save_waits_for_the_optimizer_step_of_an_accumulation(run_dir: Path) -> None:
    objects = parts()
    with holdfast.Run(run_dir, save="3step", **objects) as run:
        for _ in run.epochs(1):
            for number, item in enumerate(run.batches(ITEMS)):
                objects["model"](item).sum().backward()
                if number % 2 == 1:  # after items 2 and 4
                    objects["optimizer"].step()
                    objects["optimizer"].zero_grad()
    assert steps(run_dir) == [4, 5]


def test_a_new_best_is_committed_at_once_and_survives_a_restart(run_dir: Path) -> None:
    train(run_dir, 4, metrics=[0.5, float("nan"), 0.0, 0.7], best="loss:min", save="100ep", keep="last:1 best:1")
    with holdfast.Run(run_dir, best="loss:min", save="100ep", **parts()) as run:
        assert run.best.metrics == {"loss": 0.0}
        assert run.best.step == 15
    lost = read_run_file(run_dir)
    assert lost is not None
    assert [line.epoch for line in lost.uncommitted] == [1, 3]


@pytest.mark.parametrize("background", [False, True])
def test_metrics_outlive_the_checkpoints_that_are_pruned(run_dir: Path, background: bool) -> None:
    metrics = [5.0, 4.0, 3.0, 2.0]
    train(run_dir, 4, metrics=metrics, best="loss:min", save="2ep", keep="last:1", background=background)
    found = read_run_file(run_dir)
    assert found is not None
    (newest,) = scan(run_dir).readable
    assert newest.manifest is not None
    told = {line.epoch: line.metrics["loss"] for line in (*found.pruned, *found.uncommitted)}
    assert told == {0: 5.0, 1: 4.0, 2: 3.0}
    assert newest.manifest.metrics == {"loss": 2.0}


def test_epochs_whose_items_the_run_does_not_see_are_saved_at_their_ends(
    run_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with holdfast.Run(run_dir, **parts()) as run:
        for epoch in run.epochs(3):
            for _ in ITEMS:
                pass
            run.end(epoch, loss=float(epoch))
    assert steps(run_dir) == [0, 1, 2]
    assert caplog.text.count("no item of this epoch went through run.batches: a training that is killed inside") == 1
    with holdfast.Run(run_dir, **parts()) as run:
        assert list(run.epochs(4)) == [3]
        assert run.position == Position(4, 0, 0)
    assert steps(run_dir) == [0, 1, 2, 3]


@pytest.mark.parametrize("background", [False, True])
def test_the_end_of_an_epoch_is_saved_after_a_save_behind_its_last_item(run_dir: Path, background: bool) -> None:
    with holdfast.Run(run_dir, background=background, **parts()) as run:
        for _ in run.batches(ITEMS):
            if run.position.batch == len(ITEMS) - 1:
                run.save()
        assert run.end(0, loss=1.0).step == 6
        assert run.position == Position(1, 5, 0)
        with pytest.raises(ArgumentError, match="step 5 is saved already"):
            run.save()
    assert steps(run_dir) == [5, 6]
    train(run_dir, 3)
    assert steps(run_dir) == [5, 6, 10, 15]
    (newest,) = [one.manifest for one in scan(run_dir).readable if one.step == 6]
    assert newest is not None
    assert (newest.items, newest.items_done, newest.metrics) == (5, 5, {"loss": 1.0})


def test_a_training_that_was_stopped_in_the_evaluation_goes_on_to_the_end_of_the_epoch(run_dir: Path) -> None:
    """The save lies behind the last item and before the end, which is another place of the same step."""

    def preempted() -> None:
        with holdfast.Run(run_dir, save="1ep exception", **parts()) as run:
            for _ in run.epochs(2):
                assert list(run.batches(ITEMS))
                raise InterruptedError("in the evaluation")

    with pytest.raises(InterruptedError):
        preempted()
    assert steps(run_dir) == [5]
    with holdfast.Run(run_dir, save="1ep exception", **parts()) as run:
        seen = []
        for epoch in run.epochs(2):
            seen += list(run.batches(ITEMS))
            run.end(epoch, loss=2.0)
    assert len(seen) == len(ITEMS), "the first epoch was done"
    assert steps(run_dir) == [5, 6, 10]
    assert run.position == Position(2, 10, 0)


def test_the_commit_at_the_end_has_the_metrics_of_its_epoch(run_dir: Path) -> None:
    train(run_dir, 2, metrics=[3.0, 2.0], save="100ep")
    assert [one.manifest.metrics for one in scan(run_dir).readable if one.manifest] == [{"loss": 2.0}]


def test_keep_deletes_the_rest_after_each_commit(run_dir: Path) -> None:
    train(run_dir, 5, metrics=[3, 1, 2, 5, 4], best="loss:min", keep="last:2 best:1", save="1ep")
    assert steps(run_dir) == [10, 20, 25]


def test_the_best_stays_also_when_no_rule_says_so(run_dir: Path) -> None:
    train(run_dir, 4, metrics=[1, 3, 4, 5], best="loss:min", keep="last:1")
    assert steps(run_dir) == [5, 20]


def test_best_builds_a_fresh_copy_in_eval_mode(run_dir: Path) -> None:
    objects = parts()
    with holdfast.Run(run_dir, best="loss:min", **objects) as run:
        run.save(step=1, metrics={"loss": 1.0})
        wanted = holdfast.snapshot(objects["model"])
        with torch.no_grad():
            objects["model"].weight.zero_()
        made = run.best.build()
        assert made is not objects["model"]
        assert not made.training
        assert torch.equal(made.weight, wanted["weight"])
        assert not objects["model"].weight.any()
        assert run.last.step == run.best.step == 1


def test_build_asks_which_of_several_models(run_dir: Path) -> None:
    objects = {"G": nn.Linear(2, 2), "D": nn.Linear(3, 1)}
    with holdfast.Run(run_dir, best="loss:min", **objects) as run:
        run.save(step=1, metrics={"loss": 1.0})
        assert run.best.build("D").in_features == 3
        with pytest.raises(ArgumentError, match="build needs the name of a module of the run: G, D"):
            run.best.build()


def test_several_models_and_optimizers(run_dir: Path) -> None:
    def gan(seed: int) -> dict[str, Any]:
        torch.manual_seed(seed)
        g, d = nn.Linear(2, 2), nn.Linear(2, 1)
        return {"G": g, "D": d, "opt_G": torch.optim.Adam(g.parameters()), "opt_D": torch.optim.SGD(d.parameters())}

    first, second = gan(1), gan(2)
    with holdfast.Run(run_dir, **first) as run:
        run.save(step=3)
    with holdfast.Run(run_dir, **second) as run:
        assert run.resume() == Position(epoch=0, step=3, batch=0)
    assert equal(first["G"], second["G"])
    assert equal(first["D"], second["D"])


def test_an_own_loop_says_where_it_is(run_dir: Path) -> None:
    with holdfast.Run(run_dir, **parts()) as run:
        committed = run.save(step=100, epoch=2, metrics={"loss": torch.tensor(0.25)})
        assert committed.path.endswith("step-00000100")
        assert run.position == Position(epoch=2, step=100, batch=0)
    manifest = json.loads((run_dir / "step-00000100" / "manifest.json").read_text())
    assert manifest["metrics"] == {"loss": 0.25}
    assert {"holdfast", "torch", "python", "host"} <= manifest["environment"].keys()


def test_a_save_in_the_body_counts_its_item(run_dir: Path) -> None:
    objects = parts()
    with holdfast.Run(run_dir, save="100ep", **objects) as run:
        for item in run.batches(ITEMS):
            step(objects, item)
            if run.position.batch == 1:
                run.save()
                assert run.position.batch == 2
                break
    with holdfast.Run(run_dir, **parts(seed=4)) as run:
        run.resume()
        assert [float(item[0]) for item in run.batches(ITEMS)] == [2.0, 3.0, 4.0]


def test_args_are_recorded_with_their_type(run_dir: Path) -> None:
    import argparse

    with holdfast.Run(run_dir, args=argparse.Namespace(lr=0.1, out=Path("x")), **parts()) as run:
        run.save(step=1)
    assert holdfast.load(f"{run_dir}@last")["args"] == argparse.Namespace(lr=0.1, out=Path("x"))


def test_references_find_checkpoints(run_dir: Path) -> None:
    train(run_dir, 3, metrics=[2.0, 1.0, 3.0], best="loss:min")
    for reference, expected in {"@last": 15, "@best": 10, "@step=5": 5, "@-2": 10}.items():
        net = parts(seed=7)["model"]
        report = holdfast.restore(f"{run_dir}{reference}", model=net, mode="eval")
        assert not net.training
        assert torch.equal(net.weight, holdfast.load(f"{run_dir}/step-{expected:08d}")["model"]["weight"])
        assert {"optimizer", "rng"} <= set(report.unused)


def flip_byte(file: Path, offset: int = -1) -> None:
    data = bytearray(file.read_bytes())
    data[offset] ^= 1
    file.chmod(0o644)
    file.write_bytes(data)


@pytest.mark.parametrize(
    ("file", "damage"),
    [
        ("model.safetensors", flip_byte),
        ("rng.safetensors", flip_byte),
        ("optimizer.safetensors", lambda file: os.truncate(file, file.stat().st_size - 1)),
        ("manifest.json", lambda file: os.truncate(file, 40)),
        ("manifest.json", flip_byte),
        ("entries.json", lambda file: flip_byte(file, 30)),
        ("state.json", lambda file: flip_byte(file, 30)),
        ("model.safetensors", Path.unlink),
    ],
)
def test_a_damaged_newest_checkpoint_is_set_aside_loudly(
    file: str, damage: Any, run_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train(run_dir, 2)
    good = holdfast.load(f"{run_dir}@step=5")["model"]["weight"]
    damage(run_dir / "step-00000010" / file)
    fresh = parts(seed=3)
    with caplog.at_level(logging.WARNING, "holdfast"), holdfast.Run(run_dir, **fresh) as run:
        assert run.resume() == Position(epoch=1, step=5, batch=0)
    assert torch.equal(fresh["model"].weight, good)
    assert "step 10 is damaged and was set aside in quarantine/" in caplog.text
    assert json.loads((run_dir / "quarantine" / "step-00000010" / "reason.json").read_text())["reason"]


def test_every_checkpoint_damaged_is_an_error_not_a_fresh_start(run_dir: Path) -> None:
    train(run_dir, 2)
    for folder in run_dir.glob("step-*"):
        flip_byte(folder / "model.safetensors")
    for _ in range(2):  # also in the next process, when they are in quarantine already
        with (
            holdfast.Run(run_dir, **parts()) as run,
            pytest.raises(CorruptFile, match="every checkpoint is damaged; they are in quarantine/"),
        ):
            run.resume()


def test_a_step_folder_without_a_manifest_is_set_aside(run_dir: Path) -> None:
    train(run_dir, 1)
    (run_dir / "step-00000099").mkdir()
    with holdfast.Run(run_dir, **parts()) as run:
        assert run.resume() == Position(epoch=1, step=5, batch=0)


def test_a_partial_is_never_loaded_and_cleaned_by_the_next_writer(run_dir: Path) -> None:
    train(run_dir, 1)
    shutil.copytree(run_dir / "step-00000005", run_dir / ".step-00000007.partial")
    with holdfast.Run(run_dir, **parts()) as run:
        assert run.resume() == Position(epoch=1, step=5, batch=0)
    assert not (run_dir / ".step-00000007.partial").exists()


def test_a_checkpoint_that_does_not_fit_is_refused_and_kept(run_dir: Path) -> None:
    train(run_dir, 1)
    net = nn.Linear(3, 1)
    wanted = r"`weight`: file has \(1, 2\) float32, object wants \(1, 3\) float32"
    with holdfast.Run(run_dir, model=net) as run, pytest.raises(MismatchError, match=wanted):
        run.resume()
    assert steps(run_dir) == [5]


def test_a_new_object_is_named(run_dir: Path) -> None:
    train(run_dir, 1)
    extra = nn.Linear(4, 4)
    with (
        holdfast.Run(run_dir, **parts(), ema=extra) as run,
        pytest.raises(
            MissingPart, match=r"no part for `ema`.* The run's checkpoints were saved without it: leave it out"
        ),
    ):
        run.resume()


def test_an_object_left_out_is_said(run_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    train(run_dir, 1)
    with holdfast.Run(run_dir, model=parts()["model"]) as run:
        run.resume()
    assert "step 5 holds `optimizer`, which the program does not give" in caplog.text


def test_an_object_without_state_dict_is_refused_at_the_start(run_dir: Path) -> None:
    with pytest.raises(ArgumentError, match="`stopper` is a int, which has no state_dict"):
        holdfast.Run(run_dir, **parts(), stopper=3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"save": "often"}, "a number above 0 and a unit are wanted"),
        ({"save": " "}, "save= has no rule"),
        ({"keep": "latest"}, "latest"),
        ({"best": "loss"}, "does not say which value is best"),
        ({"background": "fast"}, "'fast' is none of copy, check, wait, skip and coalesce"),
        ({"background": "skip wait"}, "one of wait, skip and coalesce"),
        ({"rng": 3, "args": nn.Linear}, "`args`: a value of type type can't be stored"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], message: str, run_dir: Path) -> None:
    with pytest.raises(holdfast.HoldfastError, match=message):
        train(run_dir, 1, **options)


def test_names_of_the_runs_own_parts_are_taken(run_dir: Path) -> None:
    with pytest.raises(ArgumentError, match="metric 'loss' is str 'low'; a number is wanted"):
        train(run_dir, 1, metrics=["low"])  # type: ignore[list-item]


def test_end_of_another_epoch_is_refused(run_dir: Path) -> None:
    with holdfast.Run(run_dir, **parts()) as run, pytest.raises(ArgumentError, match=r"end\(3\) during epoch 0"):
        run.end(3)


def test_a_step_is_saved_once(run_dir: Path) -> None:
    with holdfast.Run(run_dir, **parts()) as run:
        run.save(step=4)
        with pytest.raises(ArgumentError, match="step 4 is saved already"):
            run.save(step=4)


def test_best_and_last_before_there_is_one(run_dir: Path) -> None:
    with holdfast.Run(run_dir, best="loss:min", **parts()) as run:
        with pytest.raises(MissingPart, match="no checkpoint has a number for the best= rule yet"):
            _ = run.best
        with pytest.raises(MissingPart, match="no checkpoint yet"):
            _ = run.last
    with holdfast.Run(run_dir, **parts()) as run, pytest.raises(ArgumentError, match="the run has no best= rule"):
        _ = run.best


def test_a_path_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(StorageError, match="is a file, a run needs a folder"):
        holdfast.Run(tmp_path / "file", **parts())
    assert (tmp_path / "file").read_text() == "mine"


def test_one_writer_at_a_time(run_dir: Path) -> None:
    with holdfast.Run(run_dir, **parts()), pytest.raises(RunLocked, match=str(os.getpid())):
        holdfast.Run(run_dir, **parts())
    holdfast.Run(run_dir, **parts()).close()


def test_a_failing_save_keeps_the_last_checkpoint(run_dir: Path) -> None:
    objects = parts()
    wanted = r"`args\.bad\.1`: a value of type object can't be stored"
    bad = {"bad": [1, object()]}
    with holdfast.Run(run_dir, **objects, args=bad) as run, pytest.raises(UnsupportedValue, match=wanted):
        run.save(step=2)
    train_again = parts()
    with holdfast.Run(run_dir, **train_again) as run:
        assert run.resume() is None
        run.save(step=3)
    assert steps(run_dir) == [3]
    assert [name for name in os.listdir(run_dir) if "partial" in name] == []


def test_a_damaged_run_file_does_not_stop_a_resume(run_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    train(run_dir, 1)
    run_id = scan(run_dir).readable[0].manifest.run
    (run_dir / "run.json").write_text("{")
    with holdfast.Run(run_dir, **parts()) as run:
        assert run.resume() == Position(epoch=1, step=5, batch=0)
    assert "it is written anew" in caplog.text
    found = read_run_file(run_dir)
    assert found is not None
    assert found.run == run_id


def test_a_forked_child_does_not_hold_the_run(run_dir: Path) -> None:
    context = multiprocessing.get_context("fork")
    with holdfast.Run(run_dir, **parts()):
        release = context.Event()
        child = context.Process(target=release.wait, args=(30,))
        child.start()
    try:
        holdfast.Run(run_dir, **parts()).close()  # while a child of the first writer lives on
    finally:
        release.set()
        child.join()

"""The decisions of an adoption, from facts alone: names, conventions, numbers of steps, places."""

from __future__ import annotations

from typing import Any

import pytest

from holdfast.formats.base import Document
from holdfast.surgery.adoption.facts import OldFile
from holdfast.surgery.adoption.names import Named, is_best_so_far, is_metric, natural_key, read_name
from holdfast.surgery.adoption.parts import lay_out
from holdfast.surgery.adoption.planning import Plan, Wishes, plan_adoption
from holdfast.surgery.adoption.values import Loops, Said, Values


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("checkpoint_epoch_10.pth", Named(epoch=10)),
        ("epoch_9.pt", Named(epoch=9)),
        ("Epoch-009.PTH", Named(epoch=9)),
        ("ckpt_ep12.pt", Named(epoch=12)),
        ("10_epochs.pth", Named(epoch=10)),
        ("epoch=3-step=1000.ckpt", Named(epoch=3, step=1000)),
        ("epoch=3-val_loss=0.25-v1.ckpt", Named(epoch=3, metrics={"val_loss": 0.25})),
        ("resnet_val_acc_0.91_epoch7.pth", Named(epoch=7, metrics={"val_acc": 0.91})),
        ("iter_20000.pth", Named(step=20000)),
        ("checkpoint-500", Named(number=500)),
        ("model_9.pth", Named(number=9)),
        ("checkpoint12.pt", Named(number=12)),
        ("10.pth", Named(number=10)),
        ("resnet18.pth", Named()),
        ("yolov5_v2.pt", Named()),
        ("fold_3_seed42_lr0.1_epoch_7.pth", Named(epoch=7)),
        ("run_2024-01-05_12-30.pth", Named()),
        ("best_model.pth", Named(role="best")),
        ("model_best.pth.tar", Named(role="best")),
        ("BestModel.pth", Named(role="best")),
        ("last.ckpt", Named(role="last")),
        ("model_latest.pt", Named(role="last")),
        ("model-00001-of-00002.safetensors", Named(number=2, shard=True)),
        ("epoch_99999999999999999999.pth", Named()),
        ("epoch_\u0663.pth", Named()),
        ("epoch_1.5.pth", Named()),
        ("linear.pt.7110c6e9.pt", Named()),
        ("", Named()),
    ],
)
def test_names(name: str, said: Named) -> None:
    assert read_name(name) == said


def test_names_in_order() -> None:
    names = ["9.pt", "10.pt", "best.pt", "epoch_9.pt", "epoch_10.pt", "\u0663.pt", "\ud800.pt"]
    assert sorted(set(names), key=natural_key) == names


@pytest.mark.parametrize(
    "key", ["acc", "val_loss", "best_acc1", "top5", "f1", "valLoss", "mIoU", "best", "test/accuracy"]
)
def test_metrics(key: str) -> None:
    assert is_metric(key)


@pytest.mark.parametrize("key", ["loss_scale", "loss_fn", "lr", "epoch", "account", "metric_name", "score_threshold"])
def test_what_is_no_metric(key: str) -> None:
    assert not is_metric(key)


def test_best_so_far() -> None:
    assert is_best_so_far("best_acc")
    assert is_best_so_far("val_loss_min")
    assert not is_best_so_far("val_loss")


def file(name: str, epoch: int | None = None, **facts: Any) -> OldFile:
    """A checkpoint that resumes; its weights are its own."""
    said = None if epoch is None else Said(epoch, "epoch", means=facts.pop("means", None))
    step = facts.pop("step", None)
    values = Values(said, step, facts.pop("metrics", {}))
    whole = {"modules": ("model",), "optimizers": ("optimizer",), "weights": name, "trained": True}
    return OldFile(name, named=read_name(name), values=values, **{**whole, **facts})


def planned(*files: OldFile, **wishes: Any) -> Plan:
    return plan_adoption(files, Wishes(**wishes))


def places(plan: Plan) -> list[tuple[str, int, int | None, int]]:
    return [(one.file.name, one.step, one.epoch, one.batch) for one in plan.steps]


@pytest.mark.parametrize(
    ("files", "epoch", "why"),
    [
        ([file("a", 4, optimizer_step=50), file("b", 9, optimizer_step=100)], 10, "optimizer counts 10 steps an epoch"),
        (
            [file("a", 5, optimizer_step=50), file("b", 10, optimizer_step=100)],
            10,
            "optimizer counts 10 steps an epoch",
        ),
        (
            [file("a", 8, step=Said(90, "global_step", overall=True)), file("b", 9, step=Said(100, "i"))],
            10,
            "the step in",
        ),
        ([file("a", 9, scheduler_epoch=10)], 10, "stepped once more"),
        ([file("a", 10, scheduler_epoch=10)], 10, "stepped as often"),
        ([file("ckpt_9.pth", 10)], 10, "names of the files are one lower"),
        ([file("ckpt_10.pth", 9)], 10, "names of the files are one higher"),
        ([file("a", 0), file("b", 9)], 10, "epoch 0 with a trained optimizer"),
        ([file("a", 9)], 10, "nothing in the files tells"),
        ([file("a", 9, optimizer_step=7), file("b", 9, optimizer_step=3)], 10, "nothing in the files tells"),
    ],
)
def test_what_an_epoch_in_the_files_is(files: list[OldFile], epoch: int, why: str) -> None:
    plan = planned(*files)
    assert max(one.epoch or 0 for one in plan.steps) == epoch
    assert why in plan.notes[0]


def test_one_file_and_the_steps_of_an_epoch_tell_too() -> None:
    assert places(planned(file("a", 9, optimizer_step=90), steps_per_epoch=10)) == [("a", 90, 9, 0)]
    assert places(planned(file("a", 9, optimizer_step=100), steps_per_epoch=10)) == [("a", 100, 10, 0)]


def test_keys_that_say_what_they_are() -> None:
    plan = planned(file("a", 9, means="next"), file("b", 9, means="done"))
    assert [one.epoch for one in plan.steps] == [9, 10]
    assert not any("an epoch in the files" in note for note in plan.notes)


def test_a_step_inside_an_epoch_is_none_of_the_training() -> None:
    inside = [file(f"{at}", at, step=Said(390, "step")) for at in (1, 2)]
    assert [one.step for one in planned(*inside).steps] == [2, 3]
    own = file("a", 3, step=Said(390, "step"), optimizer_step=1560)
    assert [one.step for one in planned(own).steps] == [1560]


def test_a_file_without_a_step_gets_that_of_its_epoch() -> None:
    counted = [file(str(at), at, optimizer_step=10 * (at + 1)) for at in (0, 1)]
    assert [one.step for one in planned(*counted, file("2", 2)).steps] == [10, 20, 30]


def test_steps_out_of_order_are_not_taken() -> None:
    plan = planned(file("a", 1, optimizer_step=500), file("b", 2, optimizer_step=100))
    assert places(plan) == [("a", 2, 2, 0), ("b", 3, 3, 0)]
    assert "numbered by epoch" in plan.notes[-1]


def test_the_middle_of_an_epoch_by_its_step() -> None:
    said = [file(f"epoch=1-step={at}.ckpt", 1, step=Said(at, "global_step", overall=True)) for at in (100, 150, 200)]
    assert [(one.epoch, one.batch) for one in planned(*said, steps_per_epoch=100).steps] == [(2, 0), (1, 50), (2, 0)]


def test_a_number_that_is_the_step_is_no_epoch() -> None:
    plan = planned(file("checkpoint-500", optimizer_step=500), file("checkpoint-1000", optimizer_step=1000))
    assert places(plan) == [("checkpoint-500", 500, None, 0), ("checkpoint-1000", 1000, None, 0)]
    assert "the epoch is not known: a run counts from 0" in plan.steps[0].notes


def test_lightning_is_certain() -> None:
    plan = planned(file("a", 4, loops=Loops(4, 20, 420)), epoch_is="done")
    assert places(plan) == [("a", 420, 4, 20)]
    assert "an epoch in the files" not in " ".join(plan.notes)


def test_several_best_files_have_pins_of_their_names() -> None:
    kept = [file(f"epoch_{at}.pth", at) for at in (1, 2)]
    bests = [file("best_acc.pth", weights="epoch_1.pth"), file("best loss.pth", weights="new")]
    plan = planned(*kept, *bests)
    assert [(one.step, one.pins) for one in plan.steps] == [(0, ("best_loss",)), (2, ("best_acc",)), (3, ())]
    assert [one.file for one in plan.left_out] == ["best_acc.pth"]


def test_a_best_file_alone_is_the_run() -> None:
    plan = planned(file("best_model.pth", 6))
    assert [(one.step, one.pins) for one in plan.steps] == [(7, ("best",))]


def test_no_number_left_for_the_best() -> None:
    plan = planned(file("epoch_0.pth", 0), file("best_0.pth", 0, optimizers=()), epoch_is="next")
    assert plan.left_out[0].reason == "is none of the steps, and no number below the newest is free for it"


def test_a_step_past_all_numbers_has_no_place() -> None:
    huge = file("a", 3, step=Said(2**63 - 2, "global_step", overall=True))
    assert planned(huge, steps_per_epoch=2**62).left_out == ()
    assert "neither its contents nor its name" in planned(file("b", 3), steps_per_epoch=2**62).left_out[0].reason


def test_what_has_no_names_is_not_laid_out() -> None:
    assert lay_out(Document([1, 2])) is None
    assert lay_out(Document({})) is None
    assert lay_out(Document(3)) is None

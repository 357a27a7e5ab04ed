from __future__ import annotations

from typing import Any

import pytest

from holdfast.errors import AmbiguousPart, MissingPart
from holdfast.formats.base import Segment, StoredTensor
from holdfast.spec import TensorSpec
from holdfast.state.values import Typed
from holdfast.storage.source import MemorySource
from holdfast.transfer.locate import find_part, looks_like

TENSOR = StoredTensor(TensorSpec("float32", ()), Segment(MemorySource(b""), 0, 0))
MODEL = {"fc.weight": TENSOR}
OPTIMIZER = {"state": Typed("dict", []), "param_groups": [{"params": []}]}


def found(tree: Any, name: str, kind: str, at: str | None = None, **others: str) -> tuple[Any, bool]:
    part = find_part(tree, name, kind, kinds={name: kind, **others}, at=at, file="f.pt")
    return part.path, part.by_name


@pytest.mark.parametrize("key", ["model", "model_state_dict", "model_state"])
def test_its_own_name_comes_first(key: str) -> None:
    assert found({"net": MODEL, key: MODEL, "epoch": 1}, "model", "module") == ((key,), True)


@pytest.mark.parametrize("key", ["optimizer", "optimizer_state_dict", "optim", "opt"])
def test_the_only_optimizer_may_be_called_anything_usual(key: str) -> None:
    assert found({"model": MODEL, key: OPTIMIZER}, "optimizer", "optimizer", model="module")[0] == (key,)
    assert found({"model": MODEL, "sgd_1": OPTIMIZER}, "optimizer", "optimizer") == (("sgd_1",), False)


@pytest.mark.parametrize("key", ["scheduler", "lr_scheduler", "lr_scheduler_state_dict"])
def test_the_only_scheduler(key: str) -> None:
    assert found({key: {"last_epoch": 3}, "other": {"x": 1}}, "sched", "scheduler")[0] == (key,)


def test_a_scheduler_is_never_guessed() -> None:
    with pytest.raises(MissingPart, match=r"`f.pt`: has no part for `sched`; it has `x`. Say where it is with at="):
        found({"x": {"last_epoch": 3}}, "sched", "scheduler")


def test_a_part_with_the_right_name_and_the_wrong_look_is_not_taken() -> None:
    tree = {"model": 3, "state_dict": MODEL}
    assert found(tree, "model", "module") == (("state_dict",), False)


def test_the_part_of_another_object_is_not_taken() -> None:
    tree = {"ema": MODEL, "net": MODEL}
    assert found(tree, "model", "module", ema="stateful") == (("net",), False)


def test_of_two_usual_names_none_is_chosen() -> None:
    with pytest.raises(AmbiguousPart, match=r"at=\{'generator': 'net'\}, at=\{'generator': 'state_dict'\}"):
        found({"net": MODEL, "state_dict": MODEL}, "generator", "module")


def test_several_models_need_their_names() -> None:
    with pytest.raises(MissingPart, match=r"has no part for `a`; it has `b`, `net`"):
        found({"b": MODEL, "net": MODEL}, "a", "module", b="module")


def test_a_stateful_is_found_by_name_only() -> None:
    assert found({"scaler": {}}, "scaler", "stateful") == (("scaler",), True)
    with pytest.raises(MissingPart, match=r"has no part for `ema`"):
        found({"scaler": {}}, "ema", "stateful")


def test_at_follows_keys_and_numbers() -> None:
    tree = {"a": [MODEL, Typed("dict", [[7, MODEL]])], "b": {"0": MODEL}}
    assert found(tree, "model", "module", at="a.0") == (("a", 0), True)
    assert found(tree, "model", "module", at="a.1.7") == (("a", 1, 7), True)
    assert found(tree, "model", "module", at="b.0") == (("b", "0"), True)
    assert found(MODEL, "model", "module", at="") == ((), True)
    with pytest.raises(MissingPart, match=r"`f.pt`: has no `a.5`; `a` has no named parts"):
        found(tree, "model", "module", at="a.5")


def test_many_names_are_cut() -> None:
    with pytest.raises(MissingPart, match=r"`k9` and 20 more. Say"):
        found({f"k{index}": index for index in range(30)}, "model", "module")


def test_looks() -> None:
    assert looks_like("module", MODEL)
    assert looks_like("module", {"w": Typed("parameter", {"data": TENSOR, "requires_grad": True})})
    assert not looks_like("module", {"lr": 0.1})
    assert not looks_like("module", {})
    assert not looks_like("module", Typed("dict", [[0, TENSOR]]))
    assert looks_like("optimizer", OPTIMIZER)
    assert not looks_like("optimizer", MODEL)

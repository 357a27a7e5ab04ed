"""The list in docs/loading.md of where restore differs from load_state_dict, each shown on both sides."""

from __future__ import annotations

import copy
import re
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import holdfast
from holdfast.errors import MismatchError


def linear() -> nn.Linear:
    return nn.Linear(2, 2)


def tied() -> nn.ModuleDict:
    made = nn.ModuleDict({"a": nn.Linear(2, 2, bias=False), "b": nn.Linear(2, 2, bias=False)})
    made["b"].weight = made["a"].weight
    return made


def scalar() -> nn.ParameterDict:
    return nn.ParameterDict({"s": torch.tensor(1.0)})


def meta() -> nn.Linear:
    with torch.device("meta"):
        return nn.Linear(2, 2)


ONES = {"weight": torch.ones(2, 2), "bias": torch.ones(2)}
CASES: dict[str, tuple[Callable[[], nn.Module], Mapping[str, torch.Tensor], str, str]] = {
    "half a state": (linear, {"weight": torch.ones(2, 2)}, "raises, changed", "raises, unchanged"),
    "narrowing": (linear, {name: value.double() / 3 for name, value in ONES.items()}, "loads", "raises, unchanged"),
    "wrappers": (linear, {f"module.{name}": value for name, value in ONES.items()}, "raises, unchanged", "loads"),
    "tied": (tied, {"a.weight": torch.ones(2, 2)}, "raises, changed", "loads"),
    "one element": (scalar, {"s": torch.full((1,), 3.0)}, "loads", "raises, unchanged"),
}
"""A model, a state, and what torch and restore do with the two."""


def outcome(model: nn.Module, load: Callable[[], Any]) -> str:
    before = copy.deepcopy(model.state_dict())
    try:
        load()
    except (RuntimeError, MismatchError):
        changed = any(not torch.equal(before[name], value) for name, value in model.state_dict().items())
        return f"raises, {'changed' if changed else 'unchanged'}"
    return "loads"


@pytest.mark.parametrize("name", list(CASES))
def test_strict_loads(name: str, tmp_path: Path) -> None:
    make, state, of_torch, ours = CASES[name]
    torch.save(dict(state), tmp_path / "f.pt")
    model = make()
    assert outcome(model, lambda: model.load_state_dict(torch.load(tmp_path / "f.pt"))) == of_torch
    model = make()
    assert outcome(model, lambda: holdfast.restore(tmp_path / "f.pt", model=model)) == ours


@pytest.mark.parametrize("policy", [holdfast.Exact(), holdfast.Warm()])
def test_an_old_batch_norm_keeps_its_counter_as_in_torch(policy: holdfast.Exact | holdfast.Warm) -> None:
    named = nn.BatchNorm1d(2).state_dict().items()
    state = OrderedDict((name, value + 1) for name, value in named if "num" not in name)
    torchs, live = nn.BatchNorm1d(2), nn.BatchNorm1d(2)
    for model in (torchs, live):
        model.num_batches_tracked.fill_(7)
    torchs.load_state_dict(state)
    holdfast.restore(state, model=live, match=policy)
    assert all(torch.equal(value, live.state_dict()[name]) for name, value in torchs.state_dict().items())


def test_strict_false_and_warm() -> None:
    model, nothing = linear(), {"other": torch.ones(2)}
    assert outcome(model, lambda: model.load_state_dict(nothing, strict=False)) == "loads"
    assert outcome(model, lambda: holdfast.restore(nothing, model=model, match=holdfast.Warm())) == "raises, unchanged"
    larger = {**ONES, "bias": torch.ones(3)}
    assert outcome(model, lambda: model.load_state_dict(larger, strict=False)) == "raises, changed"
    model = linear()
    report = holdfast.restore(larger, model=model, match=holdfast.Warm())
    assert (report.loaded, [item.name for item in report.mismatched]) == (["model.weight"], ["model.bias"])


@pytest.mark.filterwarnings("ignore:for .* copying from a non-meta parameter")
def test_a_model_on_the_meta_device() -> None:
    model = meta()
    model.load_state_dict(ONES)
    assert model.weight.is_meta
    weight = model.weight
    holdfast.restore(ONES, model=model)
    assert model.weight is weight
    assert torch.equal(model.weight, ONES["weight"])


def test_optimizers_follow_names() -> None:
    net = nn.ModuleList([linear(), linear()])
    for number, part in enumerate(net):
        part.weight.grad, part.bias.grad = torch.full((2, 2), number + 1.0), torch.full((2,), number + 1.0)
    adam = torch.optim.Adam(net.parameters())
    adam.step()
    swapped = torch.optim.Adam([*net[1].parameters(), *net[0].parameters()])
    swapped.load_state_dict(adam.state_dict())
    assert torch.equal(swapped.state[net[1].bias]["exp_avg"], adam.state[net[0].bias]["exp_avg"])
    state = {"model": net, "optimizer": adam}
    holdfast.restore(state, model=net, optimizer=swapped)
    assert torch.equal(swapped.state[net[1].bias]["exp_avg"], adam.state[net[1].bias]["exp_avg"])


def test_the_page_lists_as_many_as_are_shown(repository: Path) -> None:
    page = (repository / "docs/loading.md").read_text(encoding="utf-8")
    listed = page.split("## Where restore differs from load_state_dict", 1)[1].split("\n## ", 1)[0]
    numbers = re.findall(r"^(\d+)\. ", listed, re.MULTILINE)
    elsewhere = ["Ctrl-C: tests/transfer/test_apply.py"]
    here = [*CASES, "strict=False", "meta", "optimizers"]
    assert numbers == [str(number + 1) for number in range(len(here + elsewhere))]

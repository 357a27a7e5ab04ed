from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import holdfast
from holdfast.errors import CorruptFile, MismatchError


def net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 3))


def stepped(model: nn.Module, optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    model(torch.randn(2, 3)).square().sum().backward()
    optimizer.step()
    return optimizer


@pytest.fixture
def file(tmp_path: Path) -> Path:
    model = net(1)
    optimizer = stepped(model, torch.optim.AdamW(model.parameters(), lr=0.1, betas=(0.8, 0.9), weight_decay=0.5))
    holdfast.save({"model": model, "optimizer": optimizer}, tmp_path / "c.pt")
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "t.pt")
    return tmp_path / "c.pt"


def moments(optimizer: torch.optim.Optimizer, parameter: Any) -> torch.Tensor:
    found: torch.Tensor = optimizer.state[parameter]["exp_avg"]
    return found


def test_moments_follow_the_names_when_the_order_differs(file: Path) -> None:
    model = net(2)
    optimizer = torch.optim.AdamW(reversed(list(model.parameters())), lr=0.3)
    report = holdfast.restore(file, model=model, optimizer=optimizer)
    stored = holdfast.load(file)["optimizer"]["state"]
    for index, parameter in enumerate(model.parameters()):
        assert torch.equal(moments(optimizer, parameter), stored[index]["exp_avg"])
    assert "`optimizer`: its parameters stand in another order than in the file: matched by name" in report.notes


def test_without_names_the_position_counts_and_is_said(file: Path) -> None:
    model = net(2)
    optimizer = torch.optim.AdamW(model.parameters())
    report = holdfast.restore(file.with_name("t.pt"), model=model, optimizer=optimizer)
    assert "`optimizer`: matched by position: the file has no parameter names" in report.notes
    report = holdfast.restore(file, optimizer=optimizer)
    assert "`optimizer`: matched by position: give model= beside it" in report.notes


@pytest.mark.parametrize("warm", [False, True])
def test_other_shapes_at_a_position_are_refused(warm: bool, file: Path) -> None:
    model = net(2)
    optimizer = torch.optim.AdamW(reversed(list(model.parameters())))
    if warm:
        stepped(model, optimizer)
    before = holdfast.snapshot(optimizer)
    with pytest.raises(
        MismatchError,
        match=r"`optimizer.state.0.exp_avg`: file has \(4, 3\) float32, the parameter has \(3,\); nothing was changed",
    ):
        holdfast.restore(file.with_name("t.pt"), optimizer=optimizer)
    assert str(holdfast.snapshot(optimizer)) == str(before)


def test_other_groups_are_refused(file: Path) -> None:
    model = net(2)
    one, two = list(model[0].parameters()), list(model[1].parameters())
    for groups, sizes in (([{"params": one}, {"params": two}], r"\[2, 2\]"), ([{"params": one}], r"\[2\]")):
        with pytest.raises(
            MismatchError,
            match=rf"the file's optimizer has 4 parameters in groups of \[4\], the program's has \d in groups of "
            rf"{sizes}; nothing was changed. Build it over the same parameters, or give model=",
        ):
            holdfast.restore(file.with_name("t.pt"), optimizer=torch.optim.AdamW(groups))


def test_parameters_that_one_side_lacks_are_named(file: Path) -> None:
    model = net(2)
    model.append(nn.Linear(3, 3))
    optimizer = torch.optim.AdamW(model.parameters())
    with pytest.raises(
        MismatchError, match=r"`optimizer`: the file has no state for `2.weight`, `2.bias`; nothing was changed. Build"
    ) as caught:
        holdfast.restore(file, optimizer=optimizer, model=model, match=holdfast.Exact(), at={"model": "model"})
    assert str(caught.value).endswith("over the same parameters, or allow it with match=holdfast.Warm()")
    assert optimizer.state == {}


@pytest.mark.parametrize("hyper", ["file", "mine"])
def test_whose_options(hyper: Any, file: Path) -> None:
    model = net(2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.7, betas=(0.9, 0.99), weight_decay=0.5)
    report = holdfast.restore(file, model=model, optimizer=optimizer, hyper=hyper)
    group = optimizer.param_groups[0]
    assert (group["lr"], group["betas"]) == ((0.1, (0.8, 0.9)) if hyper == "file" else (0.7, (0.9, 0.99)))
    taken = "the file's" if hyper == "file" else "the program's"
    assert [note for note in report.notes if "group 0" in note] == [
        f"`optimizer` group 0: lr is 0.1 in the file, 0.7 in the program: {taken} is used",
        f"`optimizer` group 0: betas is (0.8, 0.9) in the file, (0.9, 0.99) in the program: {taken} is used",
    ]
    stored = holdfast.load(file)["optimizer"]["state"]
    assert torch.equal(moments(optimizer, model[0].weight), stored[0]["exp_avg"])


def test_a_tensor_learning_rate(tmp_path: Path) -> None:
    model, other = net(1), net(2)
    optimizer = stepped(model, torch.optim.Adam(model.parameters(), lr=torch.tensor(0.25)))
    holdfast.save({"model": model, "optimizer": optimizer}, tmp_path / "c.pt")
    live = torch.optim.Adam(other.parameters(), lr=torch.tensor(0.5))
    holdfast.restore(tmp_path / "c.pt", model=other, optimizer=live)
    assert torch.equal(live.param_groups[0]["lr"], torch.tensor(0.25))


def test_two_models_and_their_optimizers(tmp_path: Path) -> None:
    one, two = net(1), net(2)
    first = stepped(one, torch.optim.Adam(one.parameters()))
    second = stepped(two, torch.optim.Adam(two.parameters()))
    holdfast.save({"G": one, "D": two, "opt_G": first, "opt_D": second}, tmp_path / "c.safetensors")
    g, d = net(3), net(4)
    opt_g, opt_d = torch.optim.Adam(g.parameters()), torch.optim.Adam(d.parameters())
    report = holdfast.restore(tmp_path / "c.safetensors", G=g, D=d, opt_G=opt_g, opt_D=opt_d)
    assert torch.equal(moments(opt_d, d[1].bias), moments(second, two[1].bias))
    assert not [note for note in report.notes if "position" in note]
    alone = torch.optim.Adam(g.parameters())
    report = holdfast.restore(tmp_path / "c.safetensors", G=g, opt_G=alone)
    assert torch.equal(moments(alone, g[0].weight), moments(first, one[0].weight))
    assert not [note for note in report.notes if "position" in note]


class Projected(torch.optim.Optimizer):
    """As low-rank optimizers do: exp_avg is smaller than its parameter."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, {"lr": 0.1})

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter]["exp_avg"] = torch.full((2,), float(parameter.numel()))


def test_state_of_another_shape_is_the_optimizers_own_affair(tmp_path: Path) -> None:
    model, other = net(1), net(2)
    optimizer, live = Projected(model.parameters()), Projected(other.parameters())
    optimizer.step()
    holdfast.save({"model": model, "optimizer": optimizer}, tmp_path / "c.pt")
    holdfast.restore(tmp_path / "c.pt", model=other, optimizer=live)
    assert moments(live, other[0].weight).tolist() == [12.0, 12.0]


@pytest.mark.parametrize(
    "state",
    [
        {"state": {}, "param_groups": 5},
        {"state": {}, "param_groups": [5]},
        {"state": {}, "param_groups": [{"lr": 1}]},
        {"state": {}, "param_groups": {"params": []}},
    ],
    ids=str,
)
def test_param_groups_that_are_none(state: Any, tmp_path: Path) -> None:
    torch.save({"optimizer": state}, tmp_path / "c.pt")
    model = net()
    with pytest.raises(CorruptFile, match=r"`optimizer`: its param_groups are no list of groups with params"):
        holdfast.restore(tmp_path / "c.pt", optimizer=torch.optim.SGD(model.parameters(), lr=1.0))


@pytest.mark.parametrize(
    "change",
    [
        lambda state: state["state"].update({"x": {"exp_avg": torch.ones(1)}}),
        lambda state: state["state"].update({99: {"exp_avg": torch.ones(1)}}),
        lambda state: state["state"].update({0: 5}),
        lambda state: state.update(state=[1, 2]),
        lambda state: state["param_groups"][0].update(params=["a", "b", "c", "d"]),
        lambda state: state["param_groups"][0].update(params=[0, 0, 0, 0]),
        lambda state: state["param_groups"][0].update(params=[[0], 1, 2, 3]),
        lambda state: state["param_groups"][0].update(param_names=5),
    ],
    ids=["text", "far", "number", "list", "named", "repeated", "nested", "no_names"],
)
def test_hostile_states_are_refused_or_harmless(change: Any, file: Path) -> None:
    tree = torch.load(file.with_name("t.pt"))
    change(tree["optimizer"])
    torch.save(tree, file)
    model = net(2)
    optimizer = torch.optim.AdamW(model.parameters())
    before = holdfast.snapshot(model)
    try:
        holdfast.restore(file, model=model, optimizer=optimizer)
    except holdfast.HoldfastError:
        assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
        assert optimizer.state == {}

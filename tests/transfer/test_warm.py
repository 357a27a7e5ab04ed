"""Warm starts through restore: what is loaded, what is left, and that a refusal changes nothing."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import holdfast
from holdfast import Warm
from holdfast.errors import MismatchError


def net(classes: int = 3, words: int = 10, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.ModuleDict({"embed": nn.Embedding(words, 4), "body": nn.Linear(4, 4), "head": nn.Linear(4, classes)})


def frozen(module: nn.Module) -> dict[str, torch.Tensor]:
    return copy.deepcopy(dict(module.state_dict()))


def unchanged(module: nn.Module, before: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


@pytest.fixture(params=["old.pt", "old.safetensors", "torch.pth"])
def file(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / str(request.param)
    if request.param == "torch.pth":
        torch.save({"model_state_dict": net().state_dict(), "epoch": 3}, path)
    else:
        holdfast.save({"model": net(), "epoch": 3}, path)
    return path


def test_another_head_keeps_its_own_weights(file: Path) -> None:
    live = net(classes=5, seed=1)
    before = frozen(live)
    report = holdfast.restore(file, model=live, match=Warm())
    assert [item.name for item in report.mismatched] == ["model.head.weight", "model.head.bias"]
    assert torch.equal(live["body"].weight, net()["body"].weight)
    assert torch.equal(live["head"].weight, before["head.weight"])
    assert report.values["epoch"] == 3


def test_a_refused_warm_start_changes_nothing(file: Path) -> None:
    live = net(classes=5, seed=1)
    before = frozen(live)
    with pytest.raises(MismatchError, match=r"min_coverage=0\.99 asks for more"):
        holdfast.restore(file, model=live, match=Warm(min_coverage=0.99))
    assert unchanged(live, before)
    holdfast.restore(file, model=live, match=Warm(), dry_run=True)
    assert unchanged(live, before)


def test_a_larger_vocabulary_and_a_smaller_head(file: Path) -> None:
    live = net(classes=2, words=14, seed=1)
    before, old = frozen(live), net()
    report = holdfast.restore(file, model=live, match=Warm(resize={"embed.*": "pad", "head.*": "crop"}))
    assert len(report.resized) == 3
    assert torch.equal(live["embed"].weight[:10], old["embed"].weight)
    assert torch.equal(live["embed"].weight[10:], before["embed.weight"][10:])
    assert torch.equal(live["head"].weight, old["head"].weight[:2])
    assert torch.equal(live["head"].bias, old["head"].bias[:2])


def test_columns_can_be_cut_too(tmp_path: Path) -> None:
    wide = nn.Linear(6, 3)
    holdfast.save(wide, tmp_path / "wide.pt")
    live = nn.Linear(4, 5)
    rest = live.weight[3:].clone()
    holdfast.restore(tmp_path / "wide.pt", model=live, match=Warm(resize={"*": "fit"}, min_coverage=0.1))
    assert torch.equal(live.weight[:3], wide.weight[:, :4])
    assert torch.equal(live.weight[3:], rest)


def test_one_layer_into_another_name(file: Path) -> None:
    live = nn.ModuleDict({"trunk": nn.Linear(4, 4)})
    report = holdfast.restore(file, model=live, match=Warm(rename={r"^body\.": "trunk."}, drop=["embed.*", "head.*"]))
    assert report.renamed == {"model.trunk.weight": "body.weight", "model.trunk.bias": "body.bias"}
    assert torch.equal(live["trunk"].weight, net()["body"].weight)


def test_half_precision_with_values_that_fit_and_that_do_not(tmp_path: Path) -> None:
    source = nn.Linear(4, 4)
    holdfast.save(source, tmp_path / "f.pt")
    live = nn.Linear(4, 4).half()
    report = holdfast.restore(tmp_path / "f.pt", model=live, match=Warm())
    assert len(report.cast) == 2
    assert torch.equal(live.weight, source.weight.half())
    with torch.no_grad():
        source.weight[0, :2] = 1e9
    holdfast.save(source, tmp_path / "f.pt")
    before = frozen(live)
    message = r"`model\.weight`: 2 values of its float32 are too large for float16 and would become infinite"
    with pytest.raises(MismatchError, match=message):
        holdfast.restore(tmp_path / "f.pt", model=live, match=Warm())
    assert unchanged(live, before)
    holdfast.restore(tmp_path / "f.pt", model=live, match=Warm(cast="any"))
    assert live.weight.isinf().sum() == 2


def test_the_imaginary_part_goes_only_when_told(tmp_path: Path) -> None:
    holdfast.save(
        {"weight": torch.complex(torch.ones(1, 2), torch.ones(1, 2)), "bias": torch.ones(1)}, tmp_path / "c.pt"
    )
    live = nn.Linear(2, 1)
    with pytest.raises(MismatchError, match="file has \\(1, 2\\) complex64"):
        holdfast.restore(tmp_path / "c.pt", model=live, match=Warm())
    holdfast.restore(tmp_path / "c.pt", model=live, match=Warm(cast="any"))
    assert torch.equal(live.weight, torch.ones(1, 2))


def _moments(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {names[id(parameter)]: state["exp_avg"] for parameter, state in optimizer.state.items()}


def stepped(model: nn.Module, groups: Any) -> torch.optim.Optimizer:
    optimizer = torch.optim.AdamW(groups, lr=0.1)
    for number, parameter in enumerate(model.parameters()):
        parameter.grad = torch.full_like(parameter, float(number + 1))
    optimizer.step()
    return optimizer


def test_an_optimizer_follows_the_renamed_and_the_added(tmp_path: Path) -> None:
    old = net()
    holdfast.save({"model": old, "optimizer": stepped(old, old.parameters())}, tmp_path / "o.pt")
    wanted = holdfast.load(tmp_path / "o.pt")["optimizer"]
    live = nn.ModuleDict({"head": nn.Linear(4, 3), "extra": nn.Linear(2, 2), "trunk": nn.Linear(4, 4)})
    optimizer = torch.optim.AdamW(live.parameters(), lr=0.5)
    policy = Warm(rename={r"^body\.": "trunk."}, drop=["embed.*"], min_coverage=0.1)
    report = holdfast.restore(tmp_path / "o.pt", model=live, optimizer=optimizer, match=policy)
    found = _moments(live, optimizer)
    names = ["embed.weight", "body.weight", "body.bias", "head.weight", "head.bias"]
    by_name = {name: wanted["state"][index]["exp_avg"] for index, name in enumerate(names)}
    assert torch.equal(found["trunk.weight"], by_name["body.weight"])
    assert torch.equal(found["head.bias"], by_name["head.bias"])
    assert set(found) == {"trunk.weight", "trunk.bias", "head.weight", "head.bias"}
    assert "optimizer.state.extra.weight" in report.missing
    optimizer.zero_grad()
    live["extra"](torch.ones(1, 2)).sum().backward()
    optimizer.step()  # a parameter without state simply begins


def test_a_model_on_the_meta_device_is_made_real_and_its_optimizer_keeps_it(file: Path) -> None:
    with torch.device("meta"):
        live = net()
    optimizer = torch.optim.SGD(live.parameters(), lr=0.1)
    held = optimizer.param_groups[0]["params"][0]
    holdfast.restore(file, model=live)
    assert live["embed"].weight is held
    assert held.device.type == "cpu"
    assert torch.equal(held, net()["embed"].weight)


def test_hooks_that_migrate_names_are_honoured_when_wrapped(tmp_path: Path) -> None:
    class Migrating(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.neck = nn.Linear(2, 2)

        def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
            for name in [name for name in state_dict if name.startswith(f"{prefix}throat.")]:
                state_dict[name.replace("throat.", "neck.", 1)] = state_dict.pop(name)
            super()._load_from_state_dict(state_dict, prefix, *args)

    source = nn.Linear(2, 2)
    for prefix in ("", "module."):
        torch.save({f"{prefix}throat.{name}": value for name, value in source.state_dict().items()}, tmp_path / "f.pth")
        for wrapped in (Migrating(), nn.DataParallel(Migrating())):
            report = holdfast.restore(tmp_path / "f.pth", model=wrapped)
            inner = wrapped.module if isinstance(wrapped, nn.DataParallel) else wrapped
            assert torch.equal(inner.neck.weight, source.weight)
            assert report.missing == report.unexpected == []
            assert set(report.renamed) == {"model.neck.weight", "model.neck.bias"}


def test_batch_norm_of_torch_0_3_has_no_counters(tmp_path: Path) -> None:
    source = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    source(torch.randn(8, 2))
    old = {name: value for name, value in source.state_dict().items() if not name.endswith("num_batches_tracked")}
    torch.save(old, tmp_path / "old.pth")
    live, oracle = (nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)) for _ in range(2))
    oracle.load_state_dict(torch.load(tmp_path / "old.pth"))
    report = holdfast.restore(tmp_path / "old.pth", model=live)
    assert unchanged(live, dict(oracle.state_dict()))
    assert report.missing == []

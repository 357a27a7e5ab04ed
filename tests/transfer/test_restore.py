"""What restore finds, reports and leaves alone."""

from __future__ import annotations

import io
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import holdfast
from holdfast.errors import AmbiguousPart, ArgumentError, MismatchError, MissingPart

Saver = Any

# what torch.compile imports on its first use
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")


def net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def same(left: nn.Module, right: nn.Module) -> bool:
    one, other = left.state_dict(), right.state_dict()
    return list(one) == list(other) and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture
def saved() -> nn.Sequential:
    return net(1)


@pytest.fixture
def live() -> nn.Sequential:
    return net(2)


@pytest.mark.parametrize("save", [torch.save, holdfast.save], ids=["torch", "ours"])
@pytest.mark.parametrize(
    ("layout", "at"),
    [
        (lambda state: state, None),
        (dict, None),
        (lambda state: {"model": state}, None),
        (lambda state: {"model_state_dict": state, "epoch": 3}, None),
        (lambda state: {"state_dict": state, "epoch": 3}, None),
        (lambda state: {"net": state}, None),
        (lambda state: {"whatever": state, "epoch": 3}, None),
        (lambda state: {"a": {"b": [0, state]}, "epoch": 3}, "a.b.1"),
        (lambda state: {0: state}, "0"),
    ],
    ids=["bare", "dict", "model", "model_state_dict", "state_dict", "net", "only", "nested", "number"],
)
def test_the_model_is_found(
    layout: Any, at: str | None, save: Saver, saved: nn.Module, live: nn.Module, tmp_path: Path
) -> None:
    save(layout(saved.state_dict()), tmp_path / "f.pt")
    report = holdfast.restore(tmp_path / "f.pt", model=live, at=None if at is None else {"model": at})
    assert same(live, saved)
    assert report.is_exact
    assert report.loaded == [f"model.{name}" for name in live.state_dict()]


def test_it_says_where_it_found_what_had_no_name(saved: nn.Module, live: nn.Module, tmp_path: Path) -> None:
    torch.save({"whatever": saved.state_dict(), "epoch": 3, "best": None}, tmp_path / "f.pt")
    report = holdfast.restore(tmp_path / "f.pt", model=live)
    assert "`model` was found at `whatever`" in report.notes
    assert report.values == {"epoch": 3, "best": None}


def test_the_file_of_the_multiple_models_tutorial(tmp_path: Path) -> None:
    models = {name: net(seed) for seed, name in enumerate("AB")}
    optimizers = {name: torch.optim.SGD(model.parameters(), lr=0.1) for name, model in models.items()}
    torch.save(
        {f"model{name}_state_dict": model.state_dict() for name, model in models.items()}
        | {f"optimizer{name}_state_dict": one.state_dict() for name, one in optimizers.items()},
        tmp_path / "f.pt",
    )
    a, b = net(5), net(6)
    holdfast.restore(
        tmp_path / "f.pt", modelA=a, modelB=b, optimizerA=torch.optim.SGD(a.parameters(), lr=1.0), optimizerB=None
    )
    assert same(a, models["A"])
    assert same(b, models["B"])


def test_several_that_fit_are_listed(saved: nn.Module, live: nn.Module, tmp_path: Path) -> None:
    before = holdfast.snapshot(live)
    torch.save({"student": saved.state_dict(), "teacher": net(9).state_dict()}, tmp_path / "f.pt")
    with pytest.raises(
        AmbiguousPart, match=r"could be `model`: say which with at=\{'model': 'student'\}, at=\{'model': 'teacher'\}"
    ):
        holdfast.restore(tmp_path / "f.pt", model=live)
    assert holdfast.restore(tmp_path / "f.pt", model=live, at={"model": "student"}).unused == ["teacher"]
    assert same(live, saved)
    assert not torch.equal(before["0.weight"], live[0].weight)


def test_a_part_that_is_missing_lists_what_there_is(live: nn.Module, tmp_path: Path) -> None:
    holdfast.save({"epoch": 3, "net": live, "\x1b[2Jx": 1}, tmp_path / "f.pt")
    with pytest.raises(
        MissingPart, match=r"has no part for `ema`; it has `epoch`, `net`, `\\x1b\[2Jx`. Say where"
    ) as caught:
        holdfast.restore(tmp_path / "f.pt", ema=torch.optim.swa_utils.AveragedModel(live), model=live)
    assert caught.value.path == "ema"
    with pytest.raises(MissingPart, match=r"has no `net.conv`; `net` has `0.weight`"):
        holdfast.restore(tmp_path / "f.pt", model=live, at={"model": "net.conv"})
    with pytest.raises(MissingPart, match=r"it has no named parts"):
        holdfast.restore([1, 2], model=live)


def test_the_call_itself_is_checked(live: nn.Module, tmp_path: Path) -> None:
    holdfast.save(live, tmp_path / "f.pt")
    for message, how in (
        (r"restore needs an object to restore into, such as model=net; to get a tree back, use load", {}),
        (r"restore needs an object", {"model": None}),
        (r"at= names \['net'\], but the objects given are \['model'\]", {"model": live, "at": {"net": "x"}}),
        (r"at= maps names to dotted paths, not to int", {"model": live, "at": {"model": 5}}),
        (r"mode is 'evil'; it takes 'eval', 'train' or None", {"model": live, "mode": "evil"}),
        (r"hyper is 'ours'; it takes 'file' or 'mine'", {"model": live, "hyper": "ours"}),
        (r"match is 'exact'; it takes a policy such as holdfast.Exact\(\)", {"model": live, "match": "exact"}),
        (r"`model` is a dict, which has no state_dict\(\) and load_state_dict\(\): give the object", {"model": {}}),
        (r"`model` is a type, which has no state_dict", {"model": nn.Linear}),
    ):
        with pytest.raises(ArgumentError, match=message):
            holdfast.restore(tmp_path / "f.pt", **how)  # type: ignore[arg-type]


def test_values_and_unused_parts(saved: nn.Module, live: nn.Module, tmp_path: Path) -> None:
    optimizer = torch.optim.Adam(saved.parameters())
    holdfast.save(
        {"model": saved, "optimizer": optimizer, "epoch": 3, "losses": [0.5, 0.25], "mean": torch.ones(2), "x": None},
        tmp_path / "f.pt",
    )
    report = holdfast.restore(tmp_path / "f.pt", model=live)
    assert report.unused == ["optimizer"]
    assert {key: value for key, value in report.values.items() if key != "mean"} == {
        "epoch": 3,
        "losses": [0.5, 0.25],
        "x": None,
    }
    assert torch.equal(report.values["mean"], torch.ones(2))


def test_none_is_not_this_one(saved: nn.Module, live: nn.Module, tmp_path: Path) -> None:
    holdfast.save({"model": saved, "scaler": None, "scheduler": None}, tmp_path / "f.pt")
    report = holdfast.restore(tmp_path / "f.pt", model=live, scheduler=None)
    assert same(live, saved)
    assert report.values == {"scaler": None, "scheduler": None}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("mode", [None, "eval", "train"])
def test_the_mode(mode: Any, training: bool, saved: nn.Module, live: nn.Module, tmp_path: Path) -> None:
    live.train(training)
    holdfast.save(saved, tmp_path / "f.pt")
    report = holdfast.restore(tmp_path / "f.pt", model=live, mode=mode)
    left = training if mode is None else mode == "train"
    assert live.training == live[1].training == left
    (note,) = [note for note in report.notes if "left in" in note]
    hint = "; call eval() or give mode='eval' before predicting" if left and mode is None else ""
    assert note == f"`model` is left in {'train' if left else 'eval'} mode{hint}"


def test_a_dry_run_reports_and_changes_nothing(saved: nn.Module, live: nn.Module, tmp_path: Path) -> None:
    optimizer = torch.optim.Adam(live.parameters())
    theirs = torch.optim.Adam(saved.parameters(), lr=7.0)
    holdfast.save({"model": saved, "optimizer": theirs, "epoch": 1}, tmp_path / "f.pt")
    before, hyper = holdfast.snapshot(live), optimizer.state_dict()
    report = holdfast.restore(tmp_path / "f.pt", model=live, optimizer=optimizer, dry_run=True, mode="eval")
    assert report.values == {"epoch": 1}
    assert "model.0.weight" in report.loaded
    assert all(torch.equal(before[name], value) for name, value in live.state_dict().items())
    assert optimizer.state_dict() == hyper
    assert live.training


def compiled(module: nn.Module) -> nn.Module:
    return torch.compile(module, backend="eager")  # type: ignore[return-value]


WRAPPERS: dict[str, Any] = {
    "plain": lambda module: module,
    "parallel": nn.DataParallel,
    "compiled": compiled,
    "parallel(compiled)": lambda module: nn.DataParallel(compiled(module)),
    "compiled(parallel)": lambda module: compiled(nn.DataParallel(module)),
}


class WithSubmodule(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.submodule = nn.Linear(2, 2)
        self.module = nn.Linear(2, 2)


@pytest.mark.parametrize("outer", WRAPPERS)
@pytest.mark.parametrize("inner", WRAPPERS)
@pytest.mark.parametrize("save", [torch.save, holdfast.save], ids=["torch", "ours"])
def test_wrappers_on_either_side(inner: str, outer: str, save: Saver, tmp_path: Path) -> None:
    saved, live = WithSubmodule(), WithSubmodule()
    save(WRAPPERS[inner](saved).state_dict(), tmp_path / "f.pt")
    report = holdfast.restore(tmp_path / "f.pt", model=WRAPPERS[outer](live))
    assert same(live, saved)
    assert report.is_exact
    holdfast.save({"model": WRAPPERS[inner](saved)}, tmp_path / "g.safetensors")
    assert "model.submodule.weight" in holdfast.open(tmp_path / "g.safetensors")


def test_a_wrapped_model_with_a_loader_of_its_own(tmp_path: Path) -> None:
    saved, live = Extra(5), Extra(6)
    torch.save(nn.DataParallel(saved).state_dict(), tmp_path / "f.pt")
    holdfast.restore(tmp_path / "f.pt", model=live)
    assert live.version == 5
    assert same(live.fc, saved.fc)


class Extra(nn.Module):
    def __init__(self, version: int) -> None:
        super().__init__()
        self.fc = nn.Linear(2, 2)
        self.version = version

    def get_extra_state(self) -> Any:
        return {"version": self.version}

    def set_extra_state(self, state: Any) -> None:
        self.version = state["version"]


def test_tied_weights(tmp_path: Path) -> None:
    def tied() -> nn.Module:
        model = nn.ModuleDict({"embed": nn.Embedding(5, 3), "head": nn.Linear(3, 5, bias=False)})
        model["head"].weight = model["embed"].weight
        return model

    saved, live = tied(), tied()
    for file in ("f.pt", "f.safetensors"):
        with torch.no_grad():
            live["embed"].weight.zero_()
        holdfast.save(saved, tmp_path / file)
        report = holdfast.restore(tmp_path / file, model=live)
        assert same(live, saved)
        assert live["head"].weight is live["embed"].weight
        assert report.is_exact
    torch.save({"embed.weight": saved["embed"].weight.detach()}, tmp_path / "half.pt")
    report = holdfast.restore(tmp_path / "half.pt", model=live)
    assert report.tied == ["model.head.weight"]
    assert report.coverage == 1.0


def test_a_model_without_tensors(tmp_path: Path) -> None:
    for tree in (nn.Identity(), {"model": nn.ReLU(), "epoch": 1}):
        holdfast.save(tree, tmp_path / "f.pt")
        report = holdfast.restore(tmp_path / "f.pt", model=nn.Identity())
        assert report.is_exact
        assert report.loaded == []


class Hooked(nn.Module):
    """Renames the name of an older version while loading, as many real models do."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(2, 2)
        self.register_load_state_dict_pre_hook(self._rename)
        self.loads = 0

    @staticmethod
    def _rename(module: Any, state: dict[str, Any], prefix: str, *_: Any) -> None:
        module.loads += 1
        for name in ("weight", "bias"):
            if f"{prefix}linear.{name}" in state:
                state[f"{prefix}fc.{name}"] = state.pop(f"{prefix}linear.{name}")


def test_hooks_run(tmp_path: Path) -> None:
    live = Hooked()
    torch.save({"linear.weight": torch.ones(2, 2), "linear.bias": torch.zeros(2)}, tmp_path / "f.pt")
    report = holdfast.restore(tmp_path / "f.pt", model=live)
    assert live.loads == 1
    assert torch.equal(live.fc.weight, torch.ones(2, 2))
    assert report.is_exact
    assert report.coverage == 1.0


class CopiesItself(nn.Module):
    """Its state_dict is no view of its parameters: bytes written into it would go nowhere."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(2, 2)

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        return OrderedDict((name, value.clone()) for name, value in super().state_dict(*args, **kwargs).items())


def test_a_module_that_makes_its_state_dict_itself(tmp_path: Path) -> None:
    saved, live = CopiesItself(), CopiesItself()
    holdfast.save(saved, tmp_path / "f.pt")
    holdfast.restore(tmp_path / "f.pt", model=live)
    assert torch.equal(live.fc.weight, saved.fc.weight)
    hooked, other = nn.Linear(2, 2), nn.Linear(2, 2)
    for module in (hooked, other):
        module._register_state_dict_hook(
            lambda module, state, prefix, meta: state.update({key: value.clone() for key, value in state.items()})
        )
    holdfast.save(hooked, tmp_path / "h.pt")
    holdfast.restore(tmp_path / "h.pt", model=other)
    assert torch.equal(other.weight, hooked.weight)


def test_lazy_modules_take_their_shape_from_the_file(tmp_path: Path) -> None:
    saved, live = nn.Linear(3, 2), nn.LazyLinear(2)
    holdfast.save(saved, tmp_path / "f.pt")
    report = holdfast.restore(tmp_path / "f.pt", model=live)
    assert torch.equal(live.weight, saved.weight)
    assert report.is_exact


@pytest.mark.parametrize("form", ["pt", "safetensors"])
def test_odd_live_layouts(form: str, tmp_path: Path) -> None:
    saved, live = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    for one, other in ((saved, live), (live, saved)):
        with torch.no_grad():
            one.weight.normal_()
        strides = other.weight.stride()
        holdfast.save(one, tmp_path / f"f.{form}")
        holdfast.restore(tmp_path / f"f.{form}", model=other)
        assert torch.equal(other.weight, one.weight)
        assert other.weight.stride() == strides


def test_a_view_as_parameter(tmp_path: Path) -> None:
    big = torch.zeros(10, 10)
    live = nn.ParameterDict({"w": nn.Parameter(big[:, 3])})
    holdfast.save({"w": torch.arange(10.0)}, tmp_path / "f.pt")
    holdfast.restore(tmp_path / "f.pt", model=live)
    assert torch.equal(big[:, 3], torch.arange(10.0))
    assert big.sum() == 45.0


@pytest.mark.parametrize("form", ["pt", "safetensors"])
def test_widening_is_made_and_said_narrowing_refused(form: str, tmp_path: Path) -> None:
    half, single = nn.Linear(3, 2).half(), nn.Linear(3, 2)
    holdfast.save(half, tmp_path / f"half.{form}")
    report = holdfast.restore(tmp_path / f"half.{form}", model=single)
    assert torch.equal(single.weight, half.weight.float())
    assert [str(item) for item in report.cast] == [
        "`model.weight`: file has (2, 3) float16, object wants (2, 3) float32",
        "`model.bias`: file has (2,) float16, object wants (2,) float32",
    ]
    holdfast.save(single, tmp_path / f"single.{form}")
    before = holdfast.snapshot(half)
    with pytest.raises(MismatchError, match=r"`weight`: file has \(2, 3\) float32, object wants \(2, 3\) float16"):
        holdfast.restore(tmp_path / f"single.{form}", model=half)
    assert torch.equal(half.weight, before["weight"])


def test_narrowing_is_refused_in_a_module_that_loads_itself_too(tmp_path: Path) -> None:
    live = Hooked().half()
    holdfast.save({"fc.weight": torch.ones(2, 2), "fc.bias": torch.zeros(2)}, tmp_path / "f.pt")
    with pytest.raises(MismatchError, match=r"`fc.weight`: file has \(2, 2\) float32, object wants \(2, 2\) float16"):
        holdfast.restore(tmp_path / "f.pt", model=live)


def test_every_difference_is_in_the_error_and_its_report(tmp_path: Path) -> None:
    holdfast.save({"a": torch.ones(2), "b": torch.ones(3), "old": torch.ones(1)}, tmp_path / "f.pt")
    live = nn.ParameterDict({"a": torch.ones(2), "b": torch.ones(4), "new": torch.ones(1)})
    with pytest.raises(
        MismatchError,
        match=r"does not fit `model`, nothing was changed: `b`: file has \(3,\) float32, object wants \(4,\) float32; "
        r"the file lacks `new`; the object lacks `old`",
    ) as caught:
        holdfast.restore(tmp_path / "f.pt", model=live)
    report = caught.value.report
    assert isinstance(report, holdfast.LoadReport)
    assert (report.missing, report.unexpected, [item.name for item in report.mismatched]) == (["new"], ["old"], ["b"])
    assert torch.equal(live["a"], torch.ones(2))


def test_a_warm_start_suggests_the_rename_that_would_load_the_rest() -> None:
    layers = {"body": nn.Linear(3, 4), "neck": nn.Linear(4, 5), "head": nn.Linear(5, 60)}
    saved, live = nn.ModuleDict(layers), nn.ModuleDict(layers)
    state = {name if name.startswith("head") else f"old.{name}": value for name, value in saved.state_dict().items()}
    report = holdfast.restore(state, model=live, match=holdfast.Warm())
    (suggested,) = report.suggestions
    policy = eval(suggested, {"holdfast": holdfast})
    assert holdfast.restore(state, model=live, match=policy).is_exact
    migrating = nn.ModuleDict(layers)
    migrating.register_load_state_dict_pre_hook(
        lambda _, state, *rest: [state.setdefault(name.removeprefix("old."), state.pop(name)) for name in [*state]]
    )
    assert holdfast.restore(state, model=migrating, match=holdfast.Warm()).suggestions == []


@pytest.mark.parametrize("kind", ["path", "str", "bytesio", "file", "tree", "module", "loaded", "snapshot"])
def test_where_it_may_come_from(kind: str, saved: nn.Module, live: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "f.pt"
    holdfast.save({"model": saved, "epoch": 2}, path)
    stream = io.BytesIO(path.read_bytes()) if kind == "bytesio" else path.open("rb")
    source: Any = {
        "file": stream,
        "path": path,
        "str": str(path),
        "bytesio": stream,
        "tree": {"model": saved.state_dict(), "epoch": 2},
        "module": saved,
        "loaded": holdfast.load(path),
        "snapshot": holdfast.snapshot({"model": saved, "epoch": 2}),
    }[kind]
    report = holdfast.restore(source, model=live)
    stream.close()
    assert same(live, saved)
    assert report.values == ({} if kind == "module" else {"epoch": 2})
    assert not [note for note in report.notes if "digest" in note]


def test_what_could_not_be_verified_is_said(saved: nn.Module, live: nn.Module, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file(saved.state_dict(), tmp_path / "f.safetensors")
    report = holdfast.restore(tmp_path / "f.safetensors", model=live)
    assert "9 tensors carry no digest and could not be verified" in report.notes


def test_version_counters_are_bumped(saved: nn.Module, live: nn.Module, tmp_path: Path) -> None:
    holdfast.save(saved, tmp_path / "f.pt")
    x = torch.randn(5, 3)
    loss = live(x).sum()
    holdfast.restore(tmp_path / "f.pt", model=live)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
    versions = [value._version for value in live.state_dict().values()]
    holdfast.restore(tmp_path / "f.pt", model=live)
    assert all(new._version > old for new, old in zip(live.state_dict().values(), versions, strict=True))


def test_tensors_and_objects_stay_the_same_ones(saved: nn.Module, live: nn.Module, tmp_path: Path) -> None:
    optimizer = torch.optim.Adam(live.parameters())
    live(torch.randn(5, 3)).sum().backward()
    optimizer.step()
    moments = {id(p): optimizer.state[p]["exp_avg"] for p in live.parameters()}
    addresses = [p.data_ptr() for p in live.parameters()]
    theirs = torch.optim.Adam(saved.parameters())
    saved(torch.randn(5, 3)).sum().backward()
    theirs.step()
    holdfast.save({"model": saved, "optimizer": theirs}, tmp_path / "f.pt")
    holdfast.restore(tmp_path / "f.pt", model=live, optimizer=optimizer)
    assert [p.data_ptr() for p in live.parameters()] == addresses
    for one, other in zip(live.parameters(), saved.parameters(), strict=True):
        assert optimizer.state[one]["exp_avg"] is moments[id(one)]
        assert torch.equal(optimizer.state[one]["exp_avg"], theirs.state[other]["exp_avg"])


def test_an_expanded_buffer_is_refused_before_anything_changes(tmp_path: Path) -> None:
    live = nn.Linear(2, 2)
    live.register_buffer("mask", torch.zeros(1).expand(5))
    saved = nn.Linear(2, 2)
    saved.register_buffer("mask", torch.arange(5.0))
    holdfast.save(saved, tmp_path / "f.pt")
    before = live.weight.detach().clone()
    with pytest.raises(MismatchError, match=r"`model.mask` has one element under many indices.*clone"):
        holdfast.restore(tmp_path / "f.pt", model=live)
    assert torch.equal(live.weight, before)


def test_the_report_reads_well(saved: nn.Module, live: nn.Module, tmp_path: Path) -> None:
    holdfast.save({"model": saved, "epoch": 3}, tmp_path / "f.pt")
    report = holdfast.restore(tmp_path / "f.pt", model=live)
    text = str(report)
    assert text.startswith("loaded 9 tensors and states (100.0% of the elements asked for)")
    assert "values (1):\n  epoch = 3" in text
    assert report.to_dict()["values"] == {"epoch": 3}

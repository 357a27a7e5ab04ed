"""Ours equals torch's load_state_dict: models, every optimizer of torch.optim, every scheduler of lr_scheduler."""

from __future__ import annotations

import copy
import inspect
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

import holdfast

Net = nn.Module
OPTIMIZERS = sorted(
    name
    for name, cls in vars(torch.optim).items()
    if inspect.isclass(cls) and issubclass(cls, torch.optim.Optimizer) and cls is not torch.optim.Optimizer
)
SCHEDULERS = sorted(
    name
    for name, cls in vars(lr_scheduler).items()
    if inspect.isclass(cls)
    and issubclass(cls, lr_scheduler.LRScheduler)
    and cls is not lr_scheduler.LRScheduler
    and name != "_LRScheduler"
)
_ARGUMENTS: dict[str, dict[str, Any]] = {
    "SGD": {"lr": 0.1, "momentum": 0.9, "nesterov": True},
    "RMSprop": {"lr": 0.01, "momentum": 0.5, "centered": True},
    "Adam": {"lr": 0.01, "amsgrad": True},
    "LBFGS": {"lr": 0.1, "max_iter": 3, "history_size": 4},
}


def make_net(optimizer: str, seed: int) -> Net:
    torch.manual_seed(seed)
    if optimizer == "Muon":  # takes matrices only
        return nn.Sequential(nn.Linear(4, 5, bias=False), nn.Tanh(), nn.Linear(5, 3, bias=False))
    if optimizer == "SparseAdam":
        return nn.Sequential(nn.Embedding(10, 3, sparse=True))
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))


def make_optimizer(name: str, net: Net) -> torch.optim.Optimizer:
    return getattr(torch.optim, name)(net.parameters(), **_ARGUMENTS.get(name, {"lr": 0.01}))


def steps(name: str, net: Net, optimizer: torch.optim.Optimizer, count: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        x = torch.randint(0, 10, (6,), generator=generator)
        if name != "SparseAdam":
            x = torch.randn(6, 4, generator=generator)

        def closure(x: torch.Tensor = x) -> torch.Tensor:
            optimizer.zero_grad()
            loss = net(x).square().sum()
            loss.backward()
            return loss

        optimizer.step(closure)


def assert_same(left: Any, right: Any, path: str = "") -> None:
    """Bit-identical nested state, types included."""
    assert type(left) is type(right), path
    if isinstance(left, torch.Tensor):
        assert left.dtype == right.dtype, path
        assert left.stride() == right.stride(), path
        assert torch.equal(left, right), path
    elif isinstance(left, dict):
        assert list(left) == list(right), path
        for key in left:
            assert_same(left[key], right[key], f"{path}.{key}")
    elif isinstance(left, list | tuple):
        assert len(left) == len(right), path
        for index, (one, other) in enumerate(zip(left, right, strict=True)):
            assert_same(one, other, f"{path}.{index}")
    else:
        assert left == right, path


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
@pytest.mark.parametrize("warm", [False, True], ids=["fresh", "with-state"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_goes_on_as_if_nothing_happened(name: str, warm: bool, suffix: str, tmp_path: Path) -> None:
    net = make_net(name, seed=1)
    optimizer = make_optimizer(name, net)
    steps(name, net, optimizer, 3, seed=10)
    file = tmp_path / f"c.{suffix}"
    holdfast.save({"model": net, "optimizer": optimizer}, file)

    other = make_net(name, seed=2)
    other_optimizer = make_optimizer(name, other)
    theirs = make_net(name, seed=2)
    their_optimizer = make_optimizer(name, theirs)
    if warm:
        steps(name, other, other_optimizer, 2, seed=11)
        steps(name, theirs, their_optimizer, 2, seed=11)
    holdfast.restore(file, model=other, optimizer=other_optimizer)
    theirs.load_state_dict(net.state_dict())
    their_optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))

    assert_same(other_optimizer.state_dict(), their_optimizer.state_dict())
    assert_same(dict(other.state_dict()), dict(net.state_dict()))
    for one, its in ((net, optimizer), (other, other_optimizer), (theirs, their_optimizer)):
        steps(name, one, its, 3, seed=12)
    assert_same(dict(other.state_dict()), dict(net.state_dict()))
    assert_same(other_optimizer.state_dict()["state"], optimizer.state_dict()["state"])


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_file_of_torch_save_restores_every_optimizer(name: str, tmp_path: Path) -> None:
    net = make_net(name, seed=1)
    optimizer = make_optimizer(name, net)
    steps(name, net, optimizer, 3, seed=10)
    file = tmp_path / "c.pth"
    torch.save({"model_state_dict": net.state_dict(), "optimizer_state_dict": optimizer.state_dict(), "epoch": 3}, file)
    other = make_net(name, seed=2)
    other_optimizer = make_optimizer(name, other)
    report = holdfast.restore(file, model=other, optimizer=other_optimizer)
    assert report.values == {"epoch": 3}
    assert_same(other_optimizer.state_dict(), optimizer.state_dict())
    assert_same(dict(other.state_dict()), dict(net.state_dict()))


def make_scheduler(name: str, optimizer: torch.optim.Optimizer) -> lr_scheduler.LRScheduler:
    build: dict[str, Any] = {
        "LambdaLR": {"lr_lambda": lambda step: 0.9**step},
        "MultiplicativeLR": {"lr_lambda": lambda step: 0.9},
        "StepLR": {"step_size": 3},
        "MultiStepLR": {"milestones": [2, 4, 4, 7], "gamma": 0.5},
        "ConstantLR": {"total_iters": 4},
        "LinearLR": {"total_iters": 6},
        "ExponentialLR": {"gamma": 0.9},
        "PolynomialLR": {"total_iters": 9, "power": 2.0},
        "CosineAnnealingLR": {"T_max": 7},
        "CosineAnnealingWarmRestarts": {"T_0": 3},
        "CyclicLR": {"base_lr": 0.01, "max_lr": 0.1, "step_size_up": 3, "cycle_momentum": False},
        "OneCycleLR": {"max_lr": 0.1, "total_steps": 30},
        "ReduceLROnPlateau": {"patience": 1, "factor": 0.5},
    }
    if name == "SequentialLR":
        first = lr_scheduler.LinearLR(optimizer, total_iters=4)
        return lr_scheduler.SequentialLR(optimizer, [first, lr_scheduler.CosineAnnealingLR(optimizer, 9)], [4])
    if name == "ChainedScheduler":
        first = lr_scheduler.ConstantLR(optimizer, total_iters=4)
        return lr_scheduler.ChainedScheduler([first, lr_scheduler.ExponentialLR(optimizer, 0.9)], optimizer)
    return getattr(lr_scheduler, name)(optimizer, **build[name])


def walk(name: str, optimizer: torch.optim.Optimizer, scheduler: Any, count: int) -> list[list[float]]:
    rates = []
    for index in range(count):
        optimizer.step()
        if name == "ReduceLROnPlateau":
            scheduler.step(1.0 + (index % 3))
        else:
            scheduler.step()
        rates.append([group["lr"] for group in optimizer.param_groups])
    return rates


@pytest.mark.filterwarnings("ignore:.*epoch parameter.*:UserWarning")
@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_scheduler_goes_on_as_if_nothing_happened(name: str, suffix: str, tmp_path: Path) -> None:
    def program() -> tuple[torch.optim.Optimizer, Any]:
        parameters = [nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(3))]
        groups = [{"params": [parameters[0]], "lr": 0.1}, {"params": [parameters[1]], "lr": 0.02}]
        optimizer = torch.optim.SGD(groups, lr=0.1, momentum=0.9)
        return optimizer, make_scheduler(name, optimizer)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        optimizer, scheduler = program()
        walk(name, optimizer, scheduler, 5)
        holdfast.save({"optimizer": optimizer, "scheduler": scheduler}, tmp_path / f"c.{suffix}")
        other, its = program()
        holdfast.restore(tmp_path / f"c.{suffix}", optimizer=other, scheduler=its)
        assert_same(its.state_dict(), scheduler.state_dict())
        wanted = walk(name, optimizer, scheduler, 12)
        assert walk(name, other, its, 12) == wanted
        assert len({rate for rates in wanted for rate in rates}) > 1


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.LazyLinear(2)),
        lambda: nn.LSTM(3, 4, num_layers=2, bidirectional=True),
        lambda: nn.TransformerEncoderLayer(8, 2, 16),
        lambda: nn.utils.parametrizations.weight_norm(nn.Linear(3, 4)),
        lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(3, 4)),
        lambda: nn.Sequential(nn.GroupNorm(2, 4), nn.Embedding(5, 4), nn.PReLU(4), nn.Bilinear(2, 3, 4)),
        lambda: nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.ParameterList([torch.ones(2), torch.zeros(3)])}),
        lambda: nn.MultiheadAttention(8, 2, kdim=4, vdim=4),
        lambda: torch.optim.swa_utils.AveragedModel(nn.Linear(2, 2)),
    ],
    ids=["conv", "lstm", "transformer", "weight_norm", "spectral_norm", "mixed", "containers", "attention", "swa"],
)
@pytest.mark.filterwarnings("ignore:Lazy modules")
def test_models_of_torch(make: Any, tmp_path: Path) -> None:
    def built() -> nn.Module:
        module = make()
        if any(isinstance(part, nn.LazyLinear) for part in module.modules()):
            module(torch.randn(2, 3, 5, 5))
        for tensor in module.state_dict().values():
            if tensor.is_floating_point():
                tensor.normal_()
        return module

    saved, live = built(), built()
    for writer, file in ((holdfast.save, "ours.pt"), (torch.save, "theirs.pt"), (holdfast.save, "ours.safetensors")):
        writer(saved.state_dict(), tmp_path / file)
        with torch.no_grad():
            for tensor in live.state_dict().values():
                tensor.zero_()
        report = holdfast.restore(tmp_path / file, model=live)
        assert_same(dict(live.state_dict()), dict(saved.state_dict()))
        assert report.is_exact
        assert sorted(report.loaded + report.tied) == sorted(f"model.{name}" for name in live.state_dict())
        assert report.coverage == 1.0


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_a_model_of_another_dtype_keeps_it(dtype: torch.dtype, tmp_path: Path) -> None:
    net, live = nn.Linear(3, 2).to(dtype), nn.Linear(3, 2).to(dtype)
    holdfast.save(net, tmp_path / "n.safetensors")
    holdfast.restore(tmp_path / "n.safetensors", model=live)
    assert_same(dict(live.state_dict()), dict(net.state_dict()))

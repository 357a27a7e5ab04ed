"""``run.audit()``: what is alive and stateful and not in the run is named, and nothing else is."""

# ruff: noqa: F841  # variables that nobody reads are what an audit looks for

from __future__ import annotations

import copy
import dataclasses
import gc
import logging
import random
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import SGD, lr_scheduler
from torch.utils.data import DataLoader, IterableDataset

import holdfast
from holdfast.training.auditing.audit import AuditReport
from holdfast.training.auditing.drift import Baseline

pytestmark = pytest.mark.usefixtures("seeded")


class Counting(nn.Module):
    """A model that counts in plain attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(2, 2)
        self.steps_seen = 0
        self.scale = 1.0
        self.drawn = torch.zeros(2)
        self.hidden: torch.Tensor | None = None
        self.register_buffer("cache", torch.zeros(3), persistent=False)
        self.register_buffer("big", torch.zeros(20_000), persistent=False)
        self.register_buffer("kept", torch.zeros(3))
        self.gradual = torch.zeros(1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.steps_seen += 1
        self.drawn += 1
        self.hidden = x.detach().mean()
        self.cache += 1
        self.big.mul_(2)
        self.kept += 1
        self.gradual = self.inner(x).sum()  # an intermediate result
        return self.gradual


class Stopper:
    def __init__(self) -> None:
        self.patience, self.counter, self.best_score = 3, 0, None


class Shadow:
    def __init__(self, net: nn.Module) -> None:
        self.shadow = {name: value.detach().clone() for name, value in net.named_parameters()}


class Meter:
    def __init__(self) -> None:
        self.sum, self.count, self.avg = 0.0, 0, 0.0


@dataclasses.dataclass(frozen=True)
class Config:
    best: int = 1
    patience: int = 3


class Keeps:
    """Has a state_dict, and what hangs on it is its own business."""

    def __init__(self, inner: Any = None) -> None:
        self.inner, self.seen, self._hidden, self.told = inner, 0, 0, 0

    def state_dict(self) -> dict[str, int]:
        return {"seen": self.seen, "other": self._hidden}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.seen = state["seen"]


class Extra(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.line, self.count = nn.Linear(1, 1), 0

    def get_extra_state(self) -> dict[str, int]:
        return {"count": self.count}

    def set_extra_state(self, state: dict[str, int]) -> None:
        self.count = state["count"]


def names(report: AuditReport) -> dict[str, str]:
    """What is found, by name; an in-process audit also sees what other tests keep alive."""
    return {one.name: one.kind for one in report.findings}


def line_of(report: AuditReport, name: str) -> str:
    return next(one.line for one in report.findings if one.name == name)


def test_each_kind_is_named_with_the_line_to_type(run_dir: Path) -> None:
    its_net = Counting()
    its_sgd = SGD(its_net.parameters(), lr=0.1)
    scheduler = lr_scheduler.StepLR(its_sgd, 1)
    scaler = torch.amp.GradScaler("cpu")
    ema = torch.optim.swa_utils.AveragedModel(its_net)
    target = copy.deepcopy(its_net)
    second = nn.Linear(7, 7)
    second_optimizer = SGD(second.parameters(), lr=0.1)
    loader = DataLoader(range(8), shuffle=True)
    own = torch.Generator()
    torch.rand(1, generator=own)
    drawn, plain = np.random.default_rng(1), random.Random(1)
    stopper, shadow, keeps = Stopper(), Shadow(its_net), Keeps()
    with holdfast.Run(run_dir, model=its_net, optimizer=its_sgd) as run:
        report = run.audit()
    wanted = {
        "scheduler": "scheduler", "scaler": "scaler", "ema": "module", "target": "module", "second": "module",
        "second_optimizer": "optimizer", "loader": "loader", "own": "generator", "drawn": "generator",
        "plain": "generator", "stopper": "object", "shadow": "object", "keeps": "object",
    }  # fmt: skip
    assert names(report).items() >= wanted.items()
    assert not {"its_net", "its_sgd", "run"} & names(report).keys()
    assert line_of(report, "scaler") == "holdfast.Run(..., scaler=scaler)"
    assert line_of(report, "loader") == "for batch in run.batches(loader): ..."
    assert line_of(report, "stopper").startswith("give stopper state_dict() and load_state_dict(), then holdfast.Run(")
    assert "`scaler` (torch.amp.grad_scaler.GradScaler): its scale" in str(report)
    found = report.to_dict()
    assert found["run"] == str(run_dir)
    assert {"kind", "name", "type", "reason", "line"} == set(found["findings"][0])


def test_what_is_in_the_run_is_not_named(run_dir: Path) -> None:
    its_net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    its_sgd = SGD(its_net.parameters(), lr=0.1)
    warm, rest = lr_scheduler.ConstantLR(its_sgd), lr_scheduler.StepLR(its_sgd, 3)
    its_sched = lr_scheduler.SequentialLR(its_sgd, [warm, rest], milestones=[2])
    its_draws = torch.Generator()
    its_loader = DataLoader(range(8), shuffle=True, generator=its_draws)
    torch.rand(1, generator=its_draws)
    hung = Stopper()
    keeps = Keeps({"deep": [hung]})
    wrapped = nn.DataParallel(its_net)
    whole = nn.ModuleDict({"only": its_net})  # a second view of the same weights
    parts = {"model": its_net, "optimizer": its_sgd, "sched": its_sched, "keeps": keeps, "loader": its_loader}
    with holdfast.Run(run_dir, **parts) as run:
        assert not names(run.audit()).keys() & set(locals())


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
def test_a_scripted_module_that_is_alive_hides_no_other(run_dir: Path) -> None:
    scripted = torch.jit.script(nn.Sequential(nn.Linear(2, 2)))
    forgotten = nn.Linear(2, 2)
    forgotten(torch.ones(2)).sum().backward()
    with holdfast.Run(run_dir, model=nn.Linear(1, 1)) as run:
        assert names(run.audit())["forgotten"] == "module"


class Drawn(torch.utils.data.Sampler[int]):
    """A sampler with a generator of its own, which the run finds in it."""

    def __init__(self) -> None:
        self.own_draw = np.random.default_rng(5)

    def __iter__(self) -> Any:
        return iter(self.own_draw.permutation(8).tolist())

    def __len__(self) -> int:
        return 8


def test_a_generator_in_a_sampler_of_the_loader_is_in_the_run(run_dir: Path) -> None:
    drawing = Drawn()
    list(drawing)
    with holdfast.Run(run_dir, model=nn.Linear(2, 2), loader=DataLoader(range(8), sampler=drawing)) as run:
        assert not [name for name in names(run.audit()) if "draw" in name]


def test_what_has_no_state_of_its_own_is_not_named(run_dir: Path) -> None:
    its_net = nn.Linear(2, 2)
    teacher = nn.Linear(5, 5).requires_grad_(False)
    loss = nn.CrossEntropyLoss(weight=torch.ones(2))
    disabled = torch.amp.GradScaler("cpu", enabled=False)
    in_order = DataLoader(range(8))
    fresh = torch.Generator().manual_seed(5)
    meter, config, secure = Meter(), Config(), random.SystemRandom()
    state = its_net.state_dict()
    with holdfast.Run(run_dir, model=its_net, best="loss:min") as run:
        for epoch in run.epochs(1):
            run.end(epoch, loss=1)
        built = run.best.build()
        assert not names(run.audit()).keys() & set(locals())
    assert all(
        one is not None for one in (teacher, loss, disabled, in_order, fresh, meter, config, secure, state, built)
    )


def test_a_second_loader_that_shuffles_and_one_that_streams(run_dir: Path) -> None:
    class Stream(IterableDataset[int]):
        def __iter__(self) -> Any:
            return iter(range(4))

    first, second = DataLoader(range(8), shuffle=True), DataLoader(range(8), shuffle=True)
    stream = DataLoader(Stream())
    with holdfast.Run(run_dir, model=nn.Linear(1, 1), loader=first) as run:
        report = run.audit()
        assert names(report)["second"] == "loader"
        assert not {"first", "stream"} & names(report).keys()
    with holdfast.Run(run_dir, model=nn.Linear(1, 1), loader=stream) as run:
        (note,) = run.audit().notes
        assert note.startswith("an iterable dataset is read again")
        assert f"note: {note}" in str(run.audit())


def test_changed_attributes_and_buffers(run_dir: Path) -> None:
    its_net, keeps, extra = Counting(), Keeps(), Extra()
    with holdfast.Run(run_dir, model=its_net, keeps=keeps, extra=extra) as run:
        assert not any(name.startswith(("model.", "keeps.", "extra.")) for name in names(run.audit()))
        its_net(torch.ones(2))
        keeps.seen, keeps._hidden, keeps.told, extra.count = 5, 6, 7, 8
        its_net.eval()
        report = run.audit()
        found = {name: kind for name, kind in names(report).items() if name.startswith(("model.", "keeps.", "extra."))}
        assert found == {
            "model.steps_seen": "attribute",
            "model.drawn": "attribute",
            "model.hidden": "attribute",
            "model.cache": "buffer",
            "model.big": "buffer",
            "keeps.told": "attribute",
        }
        assert next(one.type for one in report.findings if one.name == "model.steps_seen") == "was 0, is 1"
        assert line_of(report, "model.steps_seen") == 'self.register_buffer("steps_seen", torch.tensor(...))'
        assert not any(name.startswith("model.") for name in names(run.audit())), "nothing changed since the last audit"
        its_net.scale = float("nan")
        its_net.drawn = its_net.drawn.clone()  # another tensor with the same values is no change
        assert {name for name in names(run.audit()) if name.startswith("model.")} == {"model.scale"}


def test_parameters_of_no_model(run_dir: Path) -> None:
    its_net, stranger = nn.Linear(2, 2), nn.Parameter(torch.ones(3))
    its_sgd = SGD([*its_net.parameters(), stranger], lr=0.1)
    with holdfast.Run(run_dir, model=its_net, optimizer=its_sgd) as run:
        found = [one.name for one in run.audit().findings if "1 of its parameters belong to no model" in one.reason]
    assert found == ["optimizer"]


def test_what_a_run_sees_without_searching_is_said_by_the_first_save(
    run_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Stream(IterableDataset[int]):
        def __iter__(self) -> Any:
            return iter(range(2))

    caplog.set_level(logging.INFO, "holdfast")
    its_net, its_sgd = nn.Linear(1, 1), SGD([nn.Parameter(torch.ones(1))], lr=0.1)
    with holdfast.Run(run_dir, model=its_net, optimizer=its_sgd, loader=DataLoader(Stream())) as run:
        run.save(step=1)
        assert "`optimizer` trains parameters of no model given to the run: they are not saved" in caplog.text
        assert "an iterable dataset is read again up to its place" in caplog.text
        caplog.clear()
        run.save(step=2)
        assert not caplog.records


def test_names_through_objects_closures_and_containers(run_dir: Path) -> None:
    class Trainer:
        def __init__(self) -> None:
            self.parts = {"scaler": [torch.amp.GradScaler("cpu")]}

    trainer, hidden = Trainer(), torch.amp.GradScaler("cpu")

    def closure() -> Any:
        return hidden

    def steps() -> Any:
        inside = torch.amp.GradScaler("cpu")
        yield inside

    working = steps()
    next(working)
    with holdfast.Run(run_dir, model=nn.Linear(1, 1)) as run:
        report = run.audit()
    assert names(report).items() >= {
        "trainer.parts['scaler'][0]": "scaler", "hidden": "scaler", "inside": "scaler",
    }.items()  # fmt: skip
    assert line_of(report, "trainer.parts['scaler'][0]").startswith("holdfast.Run(..., scaler=trainer.parts[")
    assert closure() is hidden


def test_neither_the_baseline_nor_an_audit_keeps_anything_alive(run_dir: Path) -> None:
    its_net = Counting()
    with holdfast.Run(run_dir, model=its_net) as run:
        replaced = weakref.ref(its_net.drawn)
        gone = nn.Linear(3, 3)
        run.audit()
        watched = weakref.ref(gone)
        its_net.drawn = torch.zeros(2)
        del gone
        gc.collect()
        assert replaced() is None
        assert watched() is None
    baseline = Baseline({"model": its_net})
    assert baseline.registered() == [its_net]
    del its_net, run
    gc.collect()
    assert baseline.registered() == []

"""``save="exception"``: an error that ends the training commits what was done before it, exactly."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import holdfast
from holdfast.runs.catalog import scan
from holdfast.storage.syscalls import Syscalls
from tests.training import small_training


def positions(root: Path) -> list[tuple[int, int | None, int | None]]:
    return [(one.step, one.manifest.epoch, one.manifest.batch) for one in scan(root).readable if one.manifest]


@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize("point", [1, 7, 12])
def test_an_error_after_the_step_counts_the_item(point: int, background: bool, tmp_path: Path, seeded: int) -> None:
    whole = small_training.train(None, "shuffle")

    def stop(done: int) -> None:
        if done == point:
            raise ValueError("mine")

    with pytest.raises(ValueError, match="mine") as caught:
        small_training.train(tmp_path / "run", "shuffle", stop=stop, save="exception", background=background)
    assert caught.value.__notes__ == [f"holdfast: step {point} of the run is saved"]
    assert [step for step, _, _ in positions(tmp_path / "run")] == [point]
    assert small_training.train(tmp_path / "run", "shuffle", save="exception") == whole


def train(root: Path, net: nn.Module, where: str) -> None:
    """Fails in the third item, at ``where``; accumulates over two items when that says so."""
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    every = 2 if "accumulating" in where else 1
    with holdfast.Run(root, model=net, opt=optimizer, save="exception") as run:
        for epoch in run.epochs(2):
            for number, item in enumerate(run.batches([torch.ones(2)] * 4), 1):
                if where.startswith("before") and number == 3:
                    raise ValueError("mine")
                net(item).sum().backward()
                if where == "inside the step" and number == 3:
                    optimizer.param_groups[0]["lr"] = "mine"
                if number % every == 0:
                    optimizer.step()
                    optimizer.zero_grad()
                if where == "after three accumulating" and number == 3:
                    raise ValueError("mine")
            if where == "evaluation":
                torch.rand(3)
                raise ValueError("mine")
            run.end(epoch)


def items(root: Path, at: int = 2, **options: object) -> None:
    """Fails in one of four items."""
    with holdfast.Run(root, model=nn.Linear(2, 1), **options) as run:
        for _ in run.epochs(1):
            for number in run.batches(range(4)):
                if number == at:
                    raise ValueError("mine")


@pytest.mark.parametrize(
    ("where", "at"),
    [
        ("before the step", (2, 0, 2)),
        ("before, accumulating", (2, 0, 2)),
        ("after three accumulating", (2, 0, 2)),  # the third item's gradient is in no state
        ("evaluation", (4, 0, 4)),
    ],
)
def test_where_it_goes_on(where: str, at: tuple[int, int, int], run_dir: Path) -> None:
    net = nn.Linear(2, 1)
    with pytest.raises(ValueError, match="mine") as caught:
        train(run_dir, net, where)
    assert positions(run_dir) == [at]
    assert caught.value.__notes__ == [f"holdfast: step {at[0]} of the run is saved"]
    assert torch.equal(holdfast.load(run_dir)["model"]["weight"], net.weight.detach())


def test_a_half_done_step_is_not_saved(run_dir: Path) -> None:
    with pytest.raises(TypeError) as caught:
        train(run_dir, nn.Linear(2, 1), "inside the step")
    assert positions(run_dir) == []
    text = "holdfast: the error came out of an optimizer's step: its half-done state is not saved"
    assert caught.value.__notes__ == [text]


def test_a_disk_that_is_full_as_well_does_not_hide_the_error(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Syscalls, path: str, mode: int) -> int:
        if "step-" in path:
            raise OSError(28, "No space left on device")
        return opened(self, path, mode)

    opened = Syscalls.open_new
    monkeypatch.setattr(Syscalls, "open_new", full)
    with pytest.raises(ValueError, match="mine") as caught:
        items(run_dir, save="exception", background=True)
    assert any("the run could not be saved" in note and "No space left" in note for note in caught.value.__notes__)


def test_an_error_in_the_first_item_has_nothing_to_save(run_dir: Path) -> None:
    with pytest.raises(ValueError, match="mine") as caught:
        items(run_dir, at=0, save="exception")
    assert positions(run_dir) == []
    assert not getattr(caught.value, "__notes__", [])


def test_without_the_word_nothing_is_saved(run_dir: Path) -> None:
    with pytest.raises(ValueError, match="mine"):
        items(run_dir)
    assert positions(run_dir) == []


SCRIPT = """
import sys, torch, holdfast
before = sys.excepthook
def hook(*arguments):
    print("the hook that was there", flush=True)
    before(*arguments)
sys.excepthook = hook
net = torch.nn.Linear(2, 1)
run = holdfast.Run(sys.argv[1], model=net, save="exception", background=True)
for epoch in run.epochs(1):
    for number in run.batches(range(5)):
        if number == 3:
            raise ValueError("mine")
"""


def test_a_script_without_with(run_dir: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(run_dir)], check=False, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 1
    assert done.stdout == "the hook that was there\n"
    assert "ValueError: mine\nholdfast: step 3 of the run is saved" in done.stderr
    assert positions(run_dir) == [(3, 0, 3)]

"""A training that is told to stop saves first, ends as a shell expects, and goes on bit for bit."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from holdfast.runs.catalog import scan

SCRIPT = """
import os, signal, sys, time
import torch
from torch import nn
import holdfast

root, where, number = sys.argv[1], sys.argv[2], int(sys.argv[3])
torch.set_num_threads(1)
torch.manual_seed(0)
net = nn.Sequential(nn.Linear(2, 4), nn.Dropout(0.5), nn.Linear(4, 1))
opt = torch.optim.SGD(net.parameters(), lr=0.1)
if "chain" in where:
    signal.signal(signal.SIGTERM, lambda *_: print("mine too", flush=True))
def tell(place, count):
    if where.startswith(f"{place}{count}"):
        os.kill(os.getpid(), number)
        if "twice" in where:
            os.kill(os.getpid(), number)
with holdfast.Run(root, model=net, opt=opt, save="100ep signal") as run:
    items = [torch.full((2,), float(i)) for i in range(5)]
    for epoch in run.epochs(3):
        for item in run.batches(items):
            net(item).sum().backward()
            tell("body", run.position.step)
            opt.step()
            opt.zero_grad()
        tell("evaluation", epoch)
        torch.rand(3)
        run.end(epoch, loss=0.5)
        tell("between", epoch)
print(" ".join(p.detach().flatten().numpy().tobytes().hex() for p in net.parameters()), torch.rand(1).item())
"""


def run(root: Path, where: str = "-", number: int = 0) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", SCRIPT, str(root), where, str(number)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, env=dict(os.environ))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> str:
    done = run(tmp_path_factory.mktemp("whole") / "run")
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("where", "number", "saved"),
    [
        ("body3", signal.SIGTERM, (4, 0, 4)),
        ("body7", signal.SIGINT, (8, 1, 3)),
        ("body4", signal.SIGUSR1, (5, 0, 5)),  # behind the last item, before the evaluation
        ("evaluation1", signal.SIGTERM, (10, 1, 5)),
        ("between0", signal.SIGTERM, (5, 1, 0)),
    ],
)
def test_a_signal_saves_and_leaves(
    where: str, number: signal.Signals, saved: tuple[int, int, int], tmp_path: Path, whole: str
) -> None:
    told = run(tmp_path / "run", where, number)
    assert told.returncode == 128 + number, told.stderr
    newest = scan(tmp_path / "run").readable[-1].manifest
    assert newest is not None
    assert (newest.step, newest.epoch, newest.batch) == saved
    assert run(tmp_path / "run").stdout == whole


@pytest.mark.parametrize("where", ["body4", "evaluation0", "evaluation1"])
def test_a_signal_behind_the_last_item_leaves_the_end_of_the_epoch_to_be_saved(
    where: str, tmp_path: Path, whole: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules[__name__], "SCRIPT", SCRIPT.replace('"100ep signal"', '"1ep signal"'))
    told = run(tmp_path / "run", where, signal.SIGTERM)
    assert told.returncode == 128 + signal.SIGTERM, told.stderr
    assert run(tmp_path / "run").stdout == whole
    places = [(one.manifest.items_done, one.manifest.batch) for one in scan(tmp_path / "run").readable if one.manifest]
    done = 10 if where == "evaluation1" else 5
    assert {(done, 5), (done, 0)} <= set(places), "behind the last item, and the end"


def test_a_second_interrupt_stops_at_once(tmp_path: Path) -> None:
    told = run(tmp_path / "run", "body3 twice", signal.SIGINT)
    assert "KeyboardInterrupt" in told.stderr
    assert scan(tmp_path / "run").readable == ()


def test_a_handler_that_was_there_is_called_too(tmp_path: Path) -> None:
    told = run(tmp_path / "run", "body3 chain", signal.SIGTERM)
    assert told.returncode == 128 + signal.SIGTERM
    assert told.stdout == "mine too\n"
    assert [one.step for one in scan(tmp_path / "run").readable] == [4]


def test_without_the_rule_signals_are_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "SCRIPT", SCRIPT.replace('"100ep signal"', '"100ep"'))
    told = run(tmp_path / "run", "body3", signal.SIGTERM)
    assert told.returncode == -signal.SIGTERM


GROUP = """
import sys, threading, time
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset
import holdfast

root, where = sys.argv[1:]
class Slow(Dataset):
    def __len__(self):
        return 8
    def __getitem__(self, index):
        if where == "drawing" and index == 4:
            time.sleep(60)
        return torch.full((2,), float(index))
def tell():
    print("ready", flush=True)
    end = time.monotonic() + 1.0  # workers that do not survive it are dead by then
    while time.monotonic() < end:
        time.sleep(0.05)
def tell_when_drawing(main):
    frame = None
    while frame is None:
        time.sleep(0.01)
        frame = sys._current_frames()[main]
        while frame is not None and not frame.f_code.co_filename.endswith("dataloader.py"):
            frame = frame.f_back
    print("ready", flush=True)
net = nn.Linear(2, 1)
opt = torch.optim.SGD(net.parameters(), lr=0.1)
loader = DataLoader(Slow(), num_workers=2, prefetch_factor=1, persistent_workers=True)
with holdfast.Run(root, model=net, opt=opt, save="100ep signal") as run:
    for epoch in run.epochs(2):
        for item in run.batches(loader):
            net(item).sum().backward()
            if where == "body" and run.position.step == 4:
                tell()
            opt.step()
            opt.zero_grad()
            if where == "drawing" and run.position.step == 3:
                threading.Thread(target=tell_when_drawing, args=[threading.get_ident()], daemon=True).start()
        if where == "evaluation":
            tell()
        run.end(epoch)
"""
"""A training with loader workers, for signals that every process of it gets, as from a terminal or a cluster."""


@pytest.mark.parametrize(
    ("where", "number", "step"),
    [
        ("body", signal.SIGINT, 5),
        ("body", signal.SIGTERM, 5),
        ("evaluation", signal.SIGUSR1, 8),
        ("evaluation", signal.SIGTERM, 8),
        ("drawing", signal.SIGTERM, 4),
    ],
)
def test_loader_workers_that_get_the_signal_too_do_not_break_the_save(
    where: str, number: signal.Signals, step: int, tmp_path: Path
) -> None:
    command = [sys.executable, "-c", GROUP, str(tmp_path / "run"), where]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "start_new_session": True}
    with subprocess.Popen(command, env=dict(os.environ), **pipes) as training:
        assert training.stdout is not None
        assert training.stdout.readline() == "ready\n"
        os.killpg(training.pid, number)
        _, errors = training.communicate(timeout=60)
    assert training.returncode == 128 + number, errors
    assert errors.count("saving, then leaving") == 1, "workers save nothing"
    (saved,) = scan(tmp_path / "run").readable
    assert saved.step == step


OVER = """
import os, signal, sys
from torch import nn
import holdfast

def mine(number, frame):
    print("mine", flush=True)
with holdfast.Run(sys.argv[1], model=nn.Linear(1, 1), save="signal") as run:
    for epoch in run.epochs(1):
        list(run.batches(range(2)))
        signal.signal(signal.SIGUSR1, mine)
print(signal.getsignal(signal.SIGUSR1) is mine, signal.getsignal(signal.SIGTERM) is signal.SIG_DFL)
"""


def test_a_handler_that_was_put_over_the_runs_stays(tmp_path: Path) -> None:
    command = [sys.executable, "-c", OVER, str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, env=dict(os.environ))
    assert done.stdout == "True True\n", done.stderr

from __future__ import annotations

import datetime
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from holdfast.cli.main import main
from holdfast.runs.run_file import RunFile, write_pin, write_run_file
from tests.runs.hand_made import NOON, commit, small_tree, tensor

HOLD = """
import os, sys, time
from holdfast.runs.lock import RunLock
lock = RunLock(sys.argv[1])
os.write(1, b"held\\n")
time.sleep(60)
"""


class Result(NamedTuple):
    """What a verb printed and how it exited."""

    code: int
    out: str
    err: str


@pytest.fixture
def holdfast(capsys: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    """holdfast("ls", folder) runs a verb in this process."""

    def run(*arguments: object) -> Result:
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        assert isinstance(caught.value.code, int)
        return Result(caught.value.code, out, err)

    return run


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Three checkpoints with metrics, a best rule, retention rules and a pin."""
    root = tmp_path / "run"
    now = datetime.datetime.now(datetime.UTC)
    for step, loss in ((10, 0.5), (20, 0.25), (30, float("nan"))):
        blocks = {f"layers.{index}.weight": tensor(8, 8) for index in range(6)}
        tree = {**small_tree(step), "model": {**small_tree(step)["model"], **blocks}}
        commit(
            root,
            step,
            tree,
            metrics={"val_loss": loss},
            epoch=step // 10,
            batch=step % 20,
            time=now - datetime.timedelta(minutes=100 - step),
            objects={"model": {"kind": "module", "class": "my.Net"}},
            environment={"torch": "2.13.0"},
        )
    write_run_file(root, RunFile("abc123", NOON, best="val_loss:min", keep="last:1 best:1"))
    write_pin(root, "paper", 10)
    return root


@pytest.fixture
def live(run: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that writes the run."""
    other = subprocess.Popen([sys.executable, "-c", HOLD, str(run)], stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None
    assert other.stdout.readline() == "held\n"
    yield other
    other.kill()
    other.wait(10)
    other.stdout.close()

"""What is shown while long work is done: in a real terminal, elsewhere, and how little it is."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from holdfast.cli import progress as shown
from holdfast.cli.progress import meter_text, progress
from holdfast.formats.convert import convert_container
from holdfast.runs.opening import open_any
from holdfast.runs.verify import verify
from holdfast.storage import meter
from holdfast.storage.meter import Meter, watched

SLOW = """
import sys, time
from holdfast.cli import progress
from holdfast.storage import meter
with progress.progress("evil \\x1b[31mname", quiet="--json" in sys.argv):
    meter.begin("reading", 1000)
    for part in range(10):
        meter.pass_by(100)
        time.sleep(0.1)
    print("result")
"""


def on_a_terminal(*arguments: str, **environment: str) -> bytes:
    """What a person would see: stdout and stderr of one terminal."""
    ours, theirs = pty.openpty()
    env = {**os.environ, "TERM": "xterm", "COLUMNS": "120", **environment}
    command = [sys.executable, "-c", SLOW, *arguments]
    child = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=env)
    os.close(theirs)
    seen = b"".join(_until_closed(ours))
    assert child.wait(60) == 0
    os.close(ours)
    return seen


def _until_closed(fd: int) -> Iterator[bytes]:
    while True:
        try:
            data = os.read(fd, 4096)
        except OSError:  # how a terminal says that nobody is left
            return
        if not data:
            return
        yield data


def test_a_terminal_shows_a_bar_that_goes_away() -> None:
    seen = on_a_terminal()
    assert b"evil \\x1b[31mname: reading  [==" in seen
    assert b"of 1 kB" in seen
    assert b"\x1b[31mname" not in seen
    shares = [int(share) for share in re.findall(rb"(\d+) %", seen)]
    assert shares == sorted(shares)
    assert len(set(shares)) > 1
    assert seen.endswith(b"\x1b[2K") or b"\x1b[2K" in seen  # the line is erased
    assert b"result" in seen


@pytest.mark.parametrize("how", ["json", "dumb", "file"])
def test_nothing_where_no_bar_belongs(how: str, tmp_path: Path) -> None:
    if how == "file":
        done = subprocess.run([sys.executable, "-c", SLOW], capture_output=True, check=True, timeout=60)
        assert (done.stdout, done.stderr) == (b"result\n", b"")
        return
    seen = on_a_terminal("--json") if how == "json" else on_a_terminal(TERM="dumb")
    assert seen == b"result\r\n"


def test_no_colour_on_a_terminal_with_no_color() -> None:
    seen = on_a_terminal(NO_COLOR="1")
    assert b"reading" in seen
    assert not re.search(rb"\x1b\[[0-9;]*m", seen)


def test_without_a_terminal_a_line_now_and_then(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(shown, "_LINE", 0.05)
    with progress("net\n.pt", quiet=False):
        meter.begin("writing", 2000)
        meter.pass_by(500)
        time.sleep(0.3)
    err = capfd.readouterr().err
    assert set(err.splitlines()) == {"holdfast: net\\n.pt: writing  25 %  500 B of 2 kB"}


def test_errors_and_interrupts_pass_through(monkeypatch: pytest.MonkeyPatch) -> None:
    for error in (ValueError, KeyboardInterrupt):
        with pytest.raises(error), progress("x", quiet=False):
            raise error
    meter.begin("reading", 10)  # nobody watches any more: nothing happens
    meter.pass_by(10)


@pytest.mark.parametrize(
    ("total", "done", "text"),
    [
        (0, 0, "f  7 s"),
        (1000, 0, f"f: reading  [{' ' * 30}]   0 %  0 B of 1 kB"),
        (1000, 500, f"f: reading  [{'=' * 15}{' ' * 15}]  50 %  500 B of 1 kB"),
        (1000, 2000, f"f: reading  [{'=' * 30}] 100 %  1 kB of 1 kB"),
    ],
)
def test_the_line(total: int, done: int, text: str) -> None:
    one = Meter("f")
    one.begin("reading", total)
    one.pass_by(done)
    assert meter_text(one, 7.9) == text


def test_long_names_are_cut_in_front() -> None:
    assert meter_text(Meter("a" * 100 + "b"), 0) == f"...{'a' * 59}b  0 s"


class Recorder(Meter):
    """What the work said."""

    def __init__(self) -> None:
        super().__init__()
        self.stages: list[tuple[str, int, int]] = []

    def begin(self, stage: str, total: int) -> None:
        super().begin(stage, total)
        self.stages.append((stage, total, 0))

    def pass_by(self, count: int) -> None:
        super().pass_by(count)
        stage, total, _ = self.stages[-1]
        self.stages[-1] = (stage, total, self.done)


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    recorder = Recorder()
    monkeypatch.setattr(meter, "_watched", [recorder])
    return recorder


def test_verifying_and_converting_say_every_byte(run: Path, tmp_path: Path, recorder: Recorder) -> None:
    report = verify(run / "step-00000010")
    assert [(stage, total == done) for stage, total, done in recorder.stages] == [("reading", True)]
    assert 0 < recorder.stages[0][1] <= report.items[0].checked
    recorder.stages.clear()
    with open_any(run) as container:
        convert_container(container, tmp_path / "out.pt")
    first, *between, last = [stage for stage, _, _ in recorder.stages]
    assert (first, set(between), last) == ("reading", {"writing"}, "reading again")
    assert all(total == done for _, total, done in recorder.stages)
    assert min(recorder.stages[0][1], recorder.stages[-1][1]) > 1000


def test_the_innermost_watcher_is_told() -> None:
    with watched("outer") as outer, watched("inner") as inner:
        meter.begin("reading", 5)
    assert (outer.stage, inner.stage) == ("", "reading")
    inner.turn_to("next")
    assert (inner.about, inner.stage, inner.total) == ("next", "", 0)

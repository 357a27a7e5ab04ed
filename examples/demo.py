"""Trains digits.py twice, once undisturbed and once killed in the middle of an epoch, and compares bit by bit.

    python examples/demo.py [--epochs 6] [--seed N] [--page holdfast-demo.html]

Everything happens in real processes: the second training saves every seven batches in the background, is ended with
SIGKILL at a random batch and started again with the same command. Exits 1 when anything differs. At the end it writes a
page about the resumed run.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import digits
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

import holdfast

BATCHES = 38
"""Batches of an epoch of digits.py: 1,200 images, 32 at a time."""

console = Console()


class Training:
    """One digits.py in a process of its own, watched through the log that it writes."""

    def __init__(self, folder: Path, epochs: int, save: str, *more: str) -> None:
        self.run_dir = folder / "run"
        self.log = folder / "log"
        self.total = epochs * BATCHES
        script = Path(__file__).with_name("digits.py")
        options = [f"--epochs={epochs}", f"--save={save}", f"--log={self.log}", *more]
        self.command = [sys.executable, str(script), str(self.run_dir), *options]
        folder.mkdir()

    def start(self) -> subprocess.Popen[str]:
        return subprocess.Popen(self.command, stdout=subprocess.PIPE, text=True)

    def lines(self) -> list[str]:
        return self.log.read_text().splitlines() if self.log.exists() else []

    def run(self, title: str, *, kill_at: int | None = None) -> str:
        """Runs it under a progress bar, to its end or until line ``kill_at`` of the log; returns what it printed."""
        process = self.start()
        before = len(self.lines())
        with bar() as progress:
            task = progress.add_task(title, total=kill_at or self.total)
            while process.poll() is None:
                done = len(self.lines())
                progress.update(task, completed=min(done, self.total))
                if kill_at is not None and done >= kill_at:
                    process.kill()
                time.sleep(0.002)
            if kill_at is None:
                progress.update(task, completed=self.total)
        printed = process.communicate()[0]
        if process.returncode != 0 and kill_at is None:
            raise SystemExit(f"digits.py exited {process.returncode} after {len(self.lines()) - before} batches")
        return printed


def bar() -> Progress:
    """A progress bar that counts batches."""
    columns = (TextColumn("{task.description:<34}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=console)


def leaves(tree: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every tensor and plain value of a tree, with where it stands."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from leaves(value, f"{path}.{key}")
    elif isinstance(tree, list | tuple):
        for number, value in enumerate(tree):
            yield from leaves(value, f"{path}.{number}")
    else:
        yield path, tree


def same(a: Any, b: Any) -> bool:
    """Whether two leaves are the same, to the last bit."""
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        alike = (a.dtype, a.shape) == (b.dtype, b.shape)
        return alike and a.contiguous().flatten().view(torch.uint8).equal(b.contiguous().flatten().view(torch.uint8))
    if type(a).__module__ == "numpy":
        return type(a) is type(b) and a.dtype == b.dtype and a.tobytes() == b.tobytes()
    return type(a) is type(b) and repr(a) == repr(b)


def compare(whole: Training, killed: Training) -> tuple[Table, bool]:
    """The proof: what was compared, how much of it there is, and whether anything differs."""
    a, b = (holdfast.load(f"{training.run_dir}@last") for training in (whole, killed))
    table = Table(
        "state at the end", "values", "bytes in tensors", "differ", title="undisturbed against killed and resumed"
    )
    good = True
    for part in ("model", "optimizer", "scheduler", "rng", "loader"):
        left, right = dict(leaves(a[part])), dict(leaves(b[part]))
        names = sorted(left.keys() | right.keys())
        wrong = [name for name in names if name not in left or name not in right or not same(left[name], right[name])]
        size = sum(value.nbytes for value in left.values() if isinstance(value, torch.Tensor))
        table.add_row(part, f"{len(names):,}", f"{size:,}", ", ".join(wrong[:3]) or "0")
        good = good and bool(names) and not wrong
    return table, compare_logs(table, whole.lines(), killed.lines()) and good


def compare_logs(table: Table, whole: list[str], killed: list[str]) -> bool:
    """Adds the rows for the order of the data and the losses. A batch that was done twice must agree with itself."""
    good = True
    for name, column in (("order of the data", 3), ("loss of every batch", 2)):
        wanted = {tuple(line.split()[:2]): line.split()[column] for line in whole}
        seen = [(tuple(line.split()[:2]), line.split()[column]) for line in killed if len(line.split()) == 4]
        wrong = sum(wanted.get(place) != value for place, value in seen)
        missing = wanted.keys() - dict(seen).keys()
        table.add_row(name, f"{len(seen):,} batches", "", f"{wrong + len(missing)}")
        good = good and not wrong and not missing
    return good


def read_some(run_dir: Path) -> None:
    """Loads the best model of a run and lets it read four held-out digits."""
    net = digits.Net()
    report = holdfast.restore(f"{run_dir}@best", model=net, mode="eval")
    images, labels = digits.digits()[2][2:6]
    with torch.no_grad():
        read = net(images).argmax(dim=1)
    shades = " .:*#"
    for row in range(8):
        console.print(
            "   ".join("".join(shades[int(p * 4)] * 2 for p in image[0, row]) for image in images), markup=False
        )
    console.print("   ".join(f"{f'read {int(r)}, is {int(t)}':<16}" for r, t in zip(read, labels, strict=True)))
    console.print(f"{len(report.loaded)} tensors restored from @best")


def main() -> None:
    """Trains twice, kills once, compares, and shows the run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--seed", type=int, default=None, help="of the batch at which the kill falls")
    parser.add_argument("--page", type=Path, default=Path("holdfast-demo.html"), help="the page to write")
    args = parser.parse_args()
    if args.epochs < 3:
        parser.error("--epochs: at least 3, so that there is a middle to be killed in")

    with tempfile.TemporaryDirectory(prefix="holdfast-demo-") as name:
        whole = Training(Path(name) / "whole", args.epochs, "1ep")
        killed = Training(Path(name) / "killed", args.epochs, "7step 1ep", "--background")
        draw = random.Random(args.seed)
        # Far enough into an epoch that the newest commit, at most a few steps older, lies in the middle of it.
        kill_at = draw.randrange(1, args.epochs - 1) * BATCHES + draw.randrange(16, 26)

        console.print(whole.run("undisturbed").splitlines()[-1])
        killed.run("saves in the background, SIGKILL", kill_at=kill_at)
        console.print(f"killed at batch {len(killed.lines())} of {killed.total}; the same command again:")
        printed = killed.run("resumed").splitlines()
        console.print(printed[0])
        console.print(printed[-1])
        resumed_inside = printed[0].startswith("resuming at epoch") and ", batch 0 " not in printed[0]

        table, good = compare(whole, killed)
        console.print(table)
        console.print("holdfast ls", style="bold")
        subprocess.run([sys.executable, "-m", "holdfast", "ls", str(killed.run_dir)], check=True)
        read_some(killed.run_dir)
        view = [sys.executable, "-m", "holdfast", "view", str(killed.run_dir), "-o", str(args.page)]
        subprocess.run(view, check=True, stdout=subprocess.DEVNULL)

    if not (good and resumed_inside):
        raise SystemExit("NOT the same: see the table" if resumed_inside else "it did not resume inside an epoch")
    console.print("Every bit is the same.", style="bold green")
    console.print(f"A page about this run, for any browser: {args.page.absolute()}", soft_wrap=True)


if __name__ == "__main__":
    main()

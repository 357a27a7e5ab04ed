"""Sends a signal to a training in the middle of what it writes; run as a script it prints what came of it.

As a script: ``python -m tests.faults.signalling ROOT EVERY SIGNAL...`` trains in a forked child once for each call by
which the training changes the disk, or for every EVERY-th, and sends it the signal there. One JSON line a signal.
"""

from __future__ import annotations

import gc
import itertools
import json
import logging
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

import holdfast
from holdfast.runs.catalog import scan
from tests.faults.killing import KillAt, in_child
from tests.faults.scenarios import go_on, loaded_whole, objects, put, share_small_files, step_once

ITEMS = 3


def train(root: Path) -> Iterator[int]:
    """Yields at each item; the weights at a step are those of the step."""
    with holdfast.Run(root / "run", **put(0), rng=False, save="1step signal", keep="last:2") as run:
        try:
            for epoch in run.epochs(1):
                for _ in run.batches([torch.zeros(1)] * ITEMS):
                    step_once()  # or the save would wait for it
                    put(run.position.step + 1)
                    yield run.position.step + 1
                run.end(epoch)
        except SystemExit as left:
            os._exit(left.code if isinstance(left.code, int) else 1)


def after_a_signal(root: Path, code: int, number: int, promised: int) -> str | None:
    """What is wrong when a training has left; it must have saved all the items that it did."""
    if code not in (0, 128 + number) and not (code == -number and promised == ITEMS):  # else the run was over
        return f"exit code {code}"
    steps = [one.step for one in scan(root / "run").checkpoints] if (root / "run").is_dir() else []
    if promised and (not steps or steps[-1] != promised):
        return f"{promised} items done, saved are {steps}"
    left = [path.name for path in root.rglob(".*") if path.name.endswith((".partial", ".deleting"))]
    if left:
        return f"left behind: {left}"
    wrong = [found for step in steps if (found := loaded_whole(f"{root / 'run'}@step={step}", step))]
    return wrong[0] if wrong else go_on(root)


def main(root: str, every: str, *numbers: str) -> None:
    """Prints ``{"signals":, "left":, "wrong":}`` for each: how many were sent, how many ended it as they should."""
    torch.set_num_threads(1)
    logging.disable()
    share_small_files()
    objects()
    gc.collect()
    gc.freeze()
    for number in numbers:
        print(json.dumps(signal_everywhere(Path(root), int(number), int(every))), flush=True)


def signal_everywhere(root: Path, number: int, every: int) -> dict[str, object]:
    """Sends one signal at every ``every``-th call."""
    sent, left, wrong = 0, 0, []
    for limit in itertools.count(1, every):
        here = root / str(limit)
        here.mkdir(parents=True)
        sender = KillAt(limit, number)

        def play(here: Path = here, sender: KillAt = sender) -> Iterator[int]:
            training = train(here)
            first = next(training)  # the handlers are there
            sender.install()
            return itertools.chain([first], training)

        status, promised = in_child(play)
        code = os.WEXITSTATUS(status) if os.WIFEXITED(status) else -os.WTERMSIG(status)
        found = after_a_signal(here, code, number, promised)
        wrong.extend([f"at call {limit}: {found}"] if found else [])
        shutil.rmtree(here)
        if code == 0:
            break
        sent += 1
        left += code in (128 + number, -number)
    return {"signals": sent, "left": left, "wrong": wrong[:20]}


if __name__ == "__main__":
    main(*sys.argv[1:])

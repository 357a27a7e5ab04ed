"""Starts a script of this folder on several processes, as a user would: with torchrun."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


def environment() -> dict[str, str]:
    """With the repository to import from, and one thread for each process."""
    root = HERE.parents[1]
    paths = os.pathsep.join([str(root), str(root / "src"), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}


def torchrun(processes: int, script: str, *args: object, timeout: float = 110) -> str:
    """Runs a script on so many processes; returns what they printed.

    Raises:
        AssertionError: it ended with an error; shows what they printed.
    """
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    return run([*launcher, str(HERE / script), *map(str, args)], timeout)


def alone(script: str, *args: object, timeout: float = 110) -> str:
    """Runs a script in one process that starts others by itself."""
    return run([sys.executable, str(HERE / script), *map(str, args)], timeout)


def run(command: list[str], timeout: float) -> str:
    """Runs a command; returns what it printed."""
    done = subprocess.run(
        command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=timeout, check=False
    )
    text = done.stdout.decode(errors="replace")
    assert done.returncode == 0, text[-6000:]
    return text

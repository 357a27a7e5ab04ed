"""What a checkpoint says of the machine and program that wrote it."""

from __future__ import annotations

import functools
import os
import platform
import subprocess
import sys
from typing import Any

import torch

from holdfast import __version__


@functools.cache
def environment() -> dict[str, Any]:
    """Versions, host, process and, in a git work tree, the commit."""
    found = {
        "holdfast": __version__,
        "torch": str(torch.__version__),
        "python": platform.python_version(),
        "host": platform.node(),
        "program": sys.argv[0] if sys.argv else "",
        "world_size": 1,
        "devices": torch.accelerator.device_count() if torch.accelerator.is_available() else 0,
    }
    commit = _git_commit()
    return found | ({"git": commit} if commit else {})


def _git_commit() -> str | None:
    try:
        answer = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=os.getcwd(), capture_output=True, text=True, timeout=2, check=False
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip() if answer.returncode == 0 else None

"""What a checkpoint says of the processes that wrote it."""

from __future__ import annotations

import platform
from typing import Any

import torch

from holdfast import __version__


def group_environment(world_size: int) -> dict[str, Any]:
    """Versions, host and world size."""
    return {
        "holdfast": __version__,
        "torch": str(torch.__version__),
        "python": platform.python_version(),
        "host": platform.node(),
        "world_size": world_size,
    }

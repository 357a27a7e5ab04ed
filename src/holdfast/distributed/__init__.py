"""Checkpoints of several processes: storage for ``torch.distributed.checkpoint``, and what a run under a group needs.

The two plug-ins are loaded on first use: torch's own part of it takes its time to import.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from holdfast.distributed.reader import HoldfastReader as HoldfastReader
    from holdfast.distributed.writer import HoldfastWriter as HoldfastWriter

__all__ = ["HoldfastReader", "HoldfastWriter"]


def __getattr__(name: str) -> Any:
    if name == "HoldfastWriter":
        from holdfast.distributed.writer import HoldfastWriter

        return HoldfastWriter
    if name == "HoldfastReader":
        from holdfast.distributed.reader import HoldfastReader

        return HoldfastReader
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

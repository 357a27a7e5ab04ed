"""Processes that do one thing together: what one of them decides, and what all of them have done.

A step ends on all ranks alike. What one raises, all raise; what one does not come to, the others stop waiting for when
the program's own process group would, and at once where its process is gone.
"""

from __future__ import annotations

import datetime
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import torch

from holdfast.errors import HoldfastError, SnapshotTorn, StorageError

_T = TypeVar("_T")
_PATIENCE = datetime.timedelta(minutes=10)
"""How long a rank is waited for where the program's group does not say."""


def is_active() -> bool:
    """Whether this process belongs to an initialised process group. Imports nothing."""
    module = sys.modules.get("torch.distributed")
    return module is not None and module.is_available() and module.is_initialized()


def is_several() -> bool:
    """Whether the initialised process group has more than one process."""
    return int(sys.modules["torch.distributed"].get_world_size()) > 1


class _Failed:
    """What a rank raised, as it goes to the others."""

    def __init__(self, rank: int, error: BaseException) -> None:
        self.rank = rank
        self.kind = type(error) if isinstance(error, HoldfastError) else StorageError
        self.file = getattr(error, "file", None)
        name = "" if isinstance(error, HoldfastError) else f"{type(error).__name__}: "
        self.text = f"{name}{error}"

    def error(self) -> HoldfastError:
        return self.kind(f"rank {self.rank}: {self.text}", file=self.file)


class Group:
    """All processes of the program's group, with connections of their own (gloo, over the CPU).

    Making one is a step that all ranks take.

    Args:
        name: what is done together; for messages.

    Attributes:
        rank: of this process.
        size: processes.
    """

    def __init__(self, name: str) -> None:
        import torch.distributed as dist

        self._name = name
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self._group = dist.new_group(backend="gloo", timeout=_patience())

    @property
    def first(self) -> bool:
        """Whether this is rank 0, which decides."""
        return self.rank == 0

    def ask(self, work: Callable[[], _T]) -> _T:
        """What ``work`` gives on rank 0, on all ranks; the others do not call it.

        Raises:
            HoldfastError: of the class that it raised there.
            StorageError: it raised something else, or a rank is gone.
        """
        given: list[Any] = [None]
        own: BaseException | None = None
        if self.first:
            try:
                given[0] = work()
            except BaseException as error:
                own, given[0] = error, _Failed(0, error)
        self._talk(lambda dist: dist.broadcast_object_list(given, src=0, group=self._group))
        if own is not None:
            raise own
        if isinstance(given[0], _Failed):
            raise given[0].error()
        answer: _T = given[0]
        return answer

    def each(self, work: Callable[[], _T]) -> list[_T]:
        """What ``work`` gives on every rank, in their order, on all ranks.

        Raises:
            HoldfastError: of the class that the first rank raised which failed; this one's own error where it did. But
                not a torn snapshot where another rank has a worse reason: what is torn on all is saved again by all.
            StorageError: a rank raised something else, or is gone.
        """
        own: BaseException | None = None
        try:
            mine: Any = work()
        except BaseException as error:
            own, mine = error, _Failed(self.rank, error)
        given: list[Any] = [None] * self.size
        self._talk(lambda dist: dist.all_gather_object(given, mine, group=self._group))
        failed = [one for one in given if isinstance(one, _Failed)]
        worse = [one for one in failed if one.kind is not SnapshotTorn] or failed
        if own is not None and (not isinstance(own, SnapshotTorn) or worse[0].kind is SnapshotTorn):
            raise own
        if worse:
            raise worse[0].error()
        return given

    def any(self, value: bool) -> bool:
        """Whether it is so on one rank at least."""
        flag = torch.tensor([int(value)], device="cpu")
        self._talk(lambda dist: dist.all_reduce(flag, op=dist.ReduceOp.MAX, group=self._group))
        return bool(flag.item())

    def _talk(self, step: Callable[[Any], Any]) -> None:
        import torch.distributed as dist

        try:
            step(dist)
        except RuntimeError as reason:  # gloo: the peer closed its connection, or the time is over
            raise StorageError(
                f"{self._name}: a rank did not answer: {str(reason).splitlines()[0]}. Every checkpoint that was "
                "committed is as it was; start the ranks again",
                file=self._name,
            ) from reason


def _patience() -> datetime.timedelta:
    """How long the program's own group waits for a rank."""
    import torch.distributed as dist

    try:
        backend: Any = dist.distributed_c10d._get_default_group()._get_backend(torch.device("cpu"))
        found = backend.options._timeout
    except (RuntimeError, AttributeError):  # a group without a CPU backend
        return _PATIENCE
    return found if isinstance(found, datetime.timedelta) else _PATIENCE

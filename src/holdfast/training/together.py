"""A run's folder under a process group: rank 0 holds it and decides, and every rank takes the same steps.

Rank 0 has the lock and writes ``run.json``. What follows from what is on the disk or from a clock is decided there and
told to the others, since two ranks may see different things.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

from torch import nn
from torch.optim import Optimizer

from holdfast.distributed.group import Group, is_active, is_several
from holdfast.distributed.saving import stage_together
from holdfast.errors import FormatError, NotFound, UnknownFormat
from holdfast.formats.base import Document
from holdfast.objects.module import ModulePart
from holdfast.runs.checkpoint import Checkpoint, open_checkpoint
from holdfast.runs.placing import Groups
from holdfast.serialization.sharded import is_sharded
from holdfast.spec import Path
from holdfast.training.folder import Facts, RunFolder, Staged

_T = TypeVar("_T")


def open_folder(root: str, objects: Mapping[str, Any], **options: Any) -> RunFolder:
    """The folder of a run: of this process, or of all of an initialised process group; see :class:`RunFolder`.

    A group of one process needs no agreement, unless a tensor was made to be divided: then the bytes are those of its
    one part.
    """
    modules = [value for value in objects.values() if isinstance(value, nn.Module)]
    divided = any(is_sharded(tensor) for module in modules for tensor in module.parameters())
    return GroupFolder(root, **options) if is_active() and (divided or is_several()) else RunFolder(root, **options)


class GroupFolder(RunFolder):
    """A run's folder, held by rank 0 for all. Making one, and each method that says so, is a step that all ranks take.

    Args:
        root: as :class:`RunFolder`; the same on every rank: a folder on a disk that they share, or one in a store.
        **options: as :class:`RunFolder`.
    """

    def __init__(self, root: str, **options: Any) -> None:
        self._group = Group(root)
        self._saving = Group(root)  # of the thread that saves, so that the two never wait for each other's answer
        self.rank, self.size, self.together = self._group.rank, self._group.size, True
        self.shared: frozenset[Path] = frozenset()
        self.passed = []
        if not self._group.first:
            self.root, self.best_rules, self.keep = root, tuple(options["best"]), list(options["keep"])
            self._open, self._read_back = True, options.get("read_back", False)
        self.run = self._group.ask(lambda: self._take(root, options))

    def _take(self, root: str, options: Mapping[str, Any]) -> Any:
        super().__init__(root, **options)
        return self.run

    # -- steps that all ranks take ---------------------------------------------------------------------------------

    def agreed(self, work: Callable[[], _T]) -> _T:
        """Does something on every rank; what one raises, all do. A step that all take."""
        return self._group.each(work)[self.rank]

    def written(self, work: Callable[[], None]) -> None:
        """As in one process; what one raises, all do. A step that all take, on the thread that saves."""
        self._saving.each(work)

    def decided(self, value: bool) -> bool:
        """What rank 0 says. A step that all take."""
        return self._group.ask(lambda: value)

    def on_any(self, value: bool) -> bool:
        """Whether it is so on one rank at least. A step that all take."""
        return self._group.any(value)

    def candidates(self) -> Iterator[Checkpoint]:
        """As in one process; a checkpoint that one rank can't open is set aside. A step that all take, each time."""
        found = super().candidates() if self._group.first else iter(())

        def following() -> str | None:
            checkpoint = next(found, None)
            if checkpoint is None:
                return None
            with checkpoint:
                return checkpoint.file

        while (path := self._group.ask(following)) is not None:
            opened: list[Checkpoint] = []
            try:
                self._group.each(lambda path=path, opened=opened: opened.append(open_checkpoint(path)))  # type: ignore[misc]
            except UnknownFormat:
                raise
            except (FormatError, NotFound) as reason:
                for one in opened:
                    one.close()
                self.set_aside(int(os.path.basename(path).removeprefix("step-")), str(reason))
                continue
            yield opened[0]

    def branch_to(self, step: int) -> bool:
        """As in one process. A step that all take."""
        here = super().branch_to
        return self._group.ask(lambda: here(step))

    def set_aside(self, step: int, reason: str) -> None:
        """As in one process. A step that all take."""
        here = super().set_aside
        self._group.ask(lambda: here(step, reason))
        if not self._group.first:
            self.passed.append(step)

    def has_quarantined(self) -> bool:
        """As in one process. A step that all take."""
        here = super().has_quarantined
        return self._group.ask(here)

    def number_for(self, items: int, *, exact: bool) -> int:
        """As in one process. A step that all take."""
        here = super().number_for
        return self._group.ask(lambda: here(items, exact=exact))

    def note_metrics(self, step: int, epoch: int, metrics: Mapping[str, float]) -> None:
        """Keeps rank 0's metrics. A step that all take."""
        here = super().note_metrics
        self._group.ask(lambda: here(step, epoch, metrics))

    def stage(self, document: Document, facts: Facts, groups: Groups) -> Staged:
        """Writes and flushes a checkpoint, each rank its part. A step that all take, on the thread that saves."""
        manifest = self.manifest(facts) if self._group.first else None
        staged = Staged(*stage_together(self._saving, self.root, document, manifest, self.shared))
        if self._read_back:
            try:
                self._saving.ask(staged.look_back)
            except BaseException:
                staged.abandon()
                raise
        return staged

    def publish(self, staged: Staged) -> list[int]:
        """Commits on rank 0. A step that all take, on the thread that saves."""
        here = super().publish
        return self._saving.ask(lambda: here(staged))

    # -- what is asked of rank 0 alone, or of nobody -----------------------------------------------------------------

    def is_best(self, metrics: Mapping[str, float]) -> bool:
        """Rank 0's answer; the others hear it by :meth:`decided`."""
        return self._group.first and super().is_best(metrics)

    @property
    def held(self) -> bool:
        """Whether this run is written by this process's group."""
        return super().held if self._group.first else self._open

    def close(self) -> None:
        """Lets another program write the run. No step of all: it may come out of an error."""
        if self._group.first:
            super().close()
        else:
            self._open = False


def shared_paths(objects: Mapping[str, Any]) -> frozenset[Path]:
    """The whole tensors of a run's objects that every rank has alike: what DDP trains, and its optimizers' state.

    Buffers are not among them: DDP sends rank 0's to the others, and only rank 0's are what an uninterrupted training
    goes on with. Nor is what no wrapper keeps alike.
    """
    alike: set[int] = set()
    found: set[Path] = set()
    for name, value in objects.items():
        if isinstance(value, nn.Module):
            for part in value.modules():
                if isinstance(part, nn.parallel.DistributedDataParallel):
                    alike |= {id(parameter) for parameter in part.parameters()}
            kept = ModulePart(value).parameters()
            found |= {(name, key) for key, parameter in kept.items() if id(parameter) in alike}
    for name, value in objects.items():
        if isinstance(value, Optimizer):
            parameters = [p for group in value.param_groups for p in group["params"]]
            for index, parameter in enumerate(parameters):
                if id(parameter) in alike:
                    found |= {(name, "state", index, key) for key in value.state.get(parameter, {})}
    return frozenset(found)

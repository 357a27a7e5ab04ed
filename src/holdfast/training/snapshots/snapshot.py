"""Copy on step: the state of one moment, read while training goes on.

Between two steps of an optimizer its parameters and its state do not change, so a background save reads them where
they lie. Right before the next step (``register_step_pre_hook``) what has not been read yet is copied, and the step
goes on. Whatever no registered optimizer owns, such as buffers, averages and random states, is copied at once.

A program that writes parameters behind its optimizer breaks the first sentence. ``tensor._version`` counts such writes,
unless they go through ``.data``: a tensor whose count moved before it was read or copied makes the snapshot *torn*, and
a torn snapshot is never committed.

Tensors on an accelerator are copied to pinned memory on a stream of their own; there the step waits for the copies, and
the host for nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch.optim import Optimizer

from holdfast.errors import SnapshotTorn
from holdfast.formats.base import Document, Segment, StoredTensor
from holdfast.serialization.memory import LIVE_READERS
from holdfast.spec import Path
from holdfast.state.flatten import leaves
from holdfast.state.paths import dotted
from holdfast.storage.requests import read_requests
from holdfast.training.snapshots.offloads import Offloads
from holdfast.training.snapshots.owned import Owned
from holdfast.training.snapshots.sources import SnapshotSource
from holdfast.training.snapshots.staging import Staging

_TORCHS = "torch.optim."


class Snapshot:
    """A document whose bytes stay those of the moment at which this was made.

    Args:
        document: over live tensors; its segments are replaced.
        staging: memory for copies; nobody else's until :meth:`close`.
        optimizers: those whose steps are announced by :meth:`before_step`; what they own is not copied now.
        offloads: what copies from accelerators.
        digests: take a digest of everything now and compare what is read with it, to find a program that writes where
            nothing counts it; as slow as it sounds.

    Attributes:
        document: what to write, from any thread.
        copied: bytes that were copied so far.
    """

    def __init__(
        self,
        document: Document,
        staging: Staging,
        optimizers: Sequence[Optimizer] = (),
        *,
        offloads: Offloads | None = None,
        digests: bool = False,
    ) -> None:
        self.document = document
        self.copied = 0
        self._staging = staging
        self._offloads = Offloads() if offloads is None else offloads
        self._change = threading.Condition()
        self._readers = 0
        self._closed = False
        self._torn: str | None = None
        self._live: dict[int, SnapshotSource] = {}
        owned = Owned(optimizers)
        now: list[SnapshotSource] = []
        elsewhere: list[SnapshotSource] = []
        for path, segment in _segments(document.tree):
            source = SnapshotSource(self, path, segment, owned.owners(segment.source))
            if source.owners:
                self._live[id(source)] = source
                if digests:
                    source.digest()
            if self._offloads.takes(source):
                elsewhere.append(source)
            elif not source.owners:
                now.append(source)
            segment.source, segment.offset = source, 0
        self._offloads.start(elsewhere)  # while the devices copy, so does the processor
        self._copy(now)
        if self._live:
            LIVE_READERS.add(self)

    # -- in the thread that trains -------------------------------------------------------------------------------------

    def before_step(self, optimizer: Optimizer, closure: bool) -> None:
        """Copies what the coming step may change and nobody has read yet.

        Args:
            optimizer: whose step it is.
            closure: whether the step computes gradients itself, so that those there are now say nothing.
        """
        # torch's own optimizers leave a parameter without a gradient, and its state, as they are
        all_of_it = closure or not type(optimizer).__module__.startswith(_TORCHS)
        self._settle(
            lambda source: any(
                owner is optimizer and (all_of_it or parameter.grad is not None)
                for owner, parameter, _ in source.owners
            )
        )

    def before_write(self) -> None:
        """Copies all that nobody has read yet: a restore is about to write live tensors."""
        self._settle(lambda _: True)

    def _settle(self, chosen: Callable[[SnapshotSource], bool]) -> None:
        with self._alone():
            sources = [source for source in self._live.values() if chosen(source)]
            self._tear(*(source for source in sources if source.has_moved()))
            if self._torn is None:
                self._offloads.hold_back(source for source in sources if source.event is not None)
                try:
                    self._copy(source for source in sources if source.event is None)
                except MemoryError as reason:
                    self._torn = f"there is no memory for a copy of what the next step changes ({reason})"
            for source in sources:
                del self._live[id(source)]

    def _copy(self, sources: Iterable[SnapshotSource]) -> None:
        requests = [request for source in sources for request in source.copies(self._staging)]
        self.copied += sum(request.length for request in requests)
        read_requests(requests)

    # -- in the thread that writes -------------------------------------------------------------------------------------

    def check(self) -> None:
        """Raises SnapshotTorn when what was read is not the state of one moment."""
        with self._alone():
            self._tear(*(source for source in self._live.values() if source.has_moved()))
        self._refuse_torn()

    def _refuse_torn(self) -> None:
        if self._torn is not None:
            raise SnapshotTorn(f"{self._torn} (that save was not committed)")

    def close(self) -> None:
        """The bytes are no longer needed; the staging is free for the next snapshot."""
        LIVE_READERS.discard(self)
        with self._alone():
            self._live.clear()
        self._staging.give_back()
        self._offloads.give_back()

    # -- between the two -----------------------------------------------------------------------------------------------

    @contextmanager
    def reading(self) -> Iterator[None]:
        """While this is held no tensor changes that was not copied: the thread that trains waits."""
        with self._change:
            self._change.wait_for(lambda: not self._closed)
            self._readers += 1
        try:
            self._refuse_torn()
            yield
        finally:
            with self._change:
                self._readers -= 1
                self._change.notify_all()

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """While this is held nobody reads."""
        with self._change:
            self._change.wait_for(lambda: not self._closed)
            self._closed = True
            self._change.wait_for(lambda: self._readers == 0)
        try:
            yield
        finally:
            with self._change:
                self._closed = False
                self._change.notify_all()

    def took(self, source: SnapshotSource, blocks: Iterable[int]) -> None:
        """Blocks of a source were read for the last time; called while they are held for reading."""
        with self._change:
            if source.mark(blocks) and self._live.pop(id(source), None) is not None and source.has_moved():
                self._tear(source)

    def differs(self, source: SnapshotSource) -> None:
        """What was read of a source is not what was there at the save."""
        self._tear(source)
        self._refuse_torn()

    def _tear(self, *sources: SnapshotSource) -> None:
        if sources and self._torn is None:
            self._torn = (
                f"`{dotted(sources[0].path)}`: was written by the program while a background save read it; write "
                "parameters in the optimizer's step only, or give the run background='copy'"
            )


def _segments(tree: Any) -> list[tuple[Path, Segment]]:
    """The segments of a tree that have bytes, each once, with the path of the first tensor in it."""
    found: dict[int, tuple[Path, Segment]] = {}
    for path, leaf in leaves(tree):
        if isinstance(leaf, StoredTensor):
            found.setdefault(id(leaf.segment), (path, leaf.segment))
    return [(path, segment) for path, segment in found.values() if segment.length]

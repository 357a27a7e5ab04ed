"""How far the tensors of a run moved between its checkpoints: two of them open at a time, a block of each in memory."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence

from holdfast.errors import CorruptFile, FormatError, NotFound, StorageError
from holdfast.formats.base import StoredTensor
from holdfast.formats.sameness import same_content
from holdfast.runs.catalog import Listed
from holdfast.runs.checkpoint import open_checkpoint
from holdfast.runs.sizes import size_text
from holdfast.serialization.differences import numbers
from holdfast.state.flatten import leaves
from holdfast.state.paths import dotted
from holdfast.state.statistics import Changes
from holdfast.storage import meter


def changes(
    checkpoints: Sequence[Listed], names: Sequence[str], *, limit: int, norms: Mapping[str, float | None] | None = None
) -> Changes:
    """Compares each checkpoint with the one before it.

    Where digests say that a tensor is the same, nothing is read.

    Args:
        checkpoints: readable ones of one run, by step.
        names: dotted paths of the tensors.
        limit: bytes that are read at most.
        norms: known norms at the last checkpoint.

    Returns:
        The changes, without the checkpoints that can't be opened; a tensor that is missing, of another shape or holds
        NaN on a side has no change there.
    """
    reader = _Reader(limit)
    steps: list[int] = []
    moved: dict[str, list[tuple[float | None, float | None]]] = {name: [] for name in names}
    before: _Open | None = None
    notes = []
    try:
        for listed in checkpoints:
            try:
                after = _Open(listed)
            except (FormatError, NotFound, StorageError):
                notes.append(f"Step {listed.step} can't be read and is left out.")
                continue
            if before is not None:
                meter.begin("comparing", after.bytes_of(names))
                for name in names:
                    moved[name].append(reader.moved(before.tensors.get(name), after.tensors.get(name)))
                before.close()
            before = after
            steps.append(listed.step)
    finally:
        if before is not None:
            before.close()
    if reader.skipped:
        notes.append(f"Only the first {size_text(limit)} were read (--limit); what was not is crossed out.")
    return Changes(
        steps=tuple(steps),
        names=tuple(names),
        change=tuple(tuple(change for change, _ in moved[name]) for name in names),
        norm=tuple(_norms(moved[name], (norms or {}).get(name)) for name in names),
        note=" ".join(notes),
    )


class _Open:
    """A checkpoint with its tensors by dotted path."""

    def __init__(self, listed: Listed) -> None:
        with contextlib.ExitStack() as stack:
            checkpoint = stack.enter_context(open_checkpoint(listed.path))
            found = leaves(checkpoint.document().tree)
            self.tensors = {dotted(path): leaf for path, leaf in found if isinstance(leaf, StoredTensor)}
            self.close = stack.pop_all().close

    def bytes_of(self, names: Sequence[str]) -> int:
        return sum(self.tensors[name].spec.nbytes for name in names if name in self.tensors)


class _Reader:
    """Compares pairs of tensors until so many bytes were read."""

    def __init__(self, limit: int) -> None:
        self._left = limit
        self.skipped = False

    def moved(self, left: StoredTensor | None, right: StoredTensor | None) -> tuple[float | None, float | None]:
        """The norm of the difference, and the norm before; None where they are not known."""
        if left is None or right is None or left.spec.shape != right.spec.shape:
            return None, None
        size = left.spec.nbytes + right.spec.nbytes
        try:
            if left.spec.dtype == right.spec.dtype and same_content(left, right):
                return 0.0, None
            if size > self._left:
                self.skipped = True
                return None, None
            self._left -= size
            found = numbers(left, right)
        except (CorruptFile, StorageError):
            return None, None
        if found is None or any((*found.nan, *found.infinite)):
            return None, None
        return found.norm, found.norm / found.relative if found.relative else (None if found.norm == 0 else 0.0)


def _norms(moved: Sequence[tuple[float | None, float | None]], last: float | None) -> tuple[float | None, ...]:
    """The norms at all checkpoints: what is the same in two of them has one norm in both."""
    found = [norm for _, norm in moved] + [last]
    for places in (range(len(moved) - 1, -1, -1), range(len(moved))):
        for at in places:
            if moved[at][0] == 0.0:
                known = found[at] if found[at] is not None else found[at + 1]
                found[at] = found[at + 1] = known
    return tuple(found)

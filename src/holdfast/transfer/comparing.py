"""Two files, checkpoints or trees in memory against each other, with numbers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from holdfast.runs.comparing import Contents, compare, contents, to_measure
from holdfast.serialization.differences import numbers_of
from holdfast.state.diff import Diff
from holdfast.transfer.opened import opened_file


def diff(a: Any, b: Any, *, keys: str | None = None) -> Diff:
    """What differs between two files, checkpoints, runs or trees: tensors with numbers, plain values, names.

    Names that wrappers alone tell apart (``module.``, ``_orig_mod.``) are the same, and a file of weights is compared
    with the part of the other that has its names; the diff says so. Tensors are streamed, so memory stays small.
    Where both sides are checkpoints of runs, their recorded digests say what is equal; ``verify`` proves digests.

    Args:
        a: a path, a reference (``runs/a@best``), a folder, a binary file object, a live object or a tree in memory.
        b: the same.
        keys: only what has a matching dotted path, ``"model.head.*"``; ``*`` also crosses dots.

    Returns:
        The diff: ``.identical``, ``.changed`` (norm, relative, largest, cosine), ``.recast``, ``.reshaped``,
        ``.renamed``, ``.added``, ``.removed``, ``.values``; print it.

    Raises:
        NotFound, FormatError: as in ``load``.
        UnsupportedValue: an object in memory can't be captured.

    Example:
        >>> import holdfast, torch
        >>> net = torch.nn.Linear(2, 1)
        >>> before = holdfast.snapshot(net)
        >>> _ = net.bias.data.add_(1)
        >>> found = holdfast.diff(before, net)
        >>> [(one.name, one.numbers.largest) for one in found.changed], found.same
        ([('bias', 1.0)], ['weight'])
    """
    with _opened(a) as left, _opened(b) as right:
        return measured(compare(left, right, keys), left, right)


def measured(found: Diff, left: Contents, right: Contents) -> Diff:
    """The diff with numbers for the tensors that differ."""
    return found.measured(numbers_of(to_measure(found, left, right)))


@contextmanager
def _opened(f: Any) -> Iterator[Contents]:
    with opened_file(f) as (document, name, container):
        yield contents(document, name, container)

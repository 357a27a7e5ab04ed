"""Which names of two sides are the same, whatever DataParallel, compile and others put into them. By segment."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable

_LEADING = frozenset({"module", "_orig_mod", "_fsdp_wrapped_module"})
_ANYWHERE = frozenset({"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_flat_param"})
"""Segments that DataParallel, DistributedDataParallel, FullyShardedDataParallel, activation checkpointing and
torch.compile put into names."""
_DEEPEST = 8
"""Segments that one side may have before all that the other names."""


def without_wrappers(name: str) -> str:
    """``module._orig_mod.submodule.fc`` as ``submodule.fc``: whole segments only, so ``submodule`` stays."""
    segments = name.split(".")
    start = 0
    while start < len(segments) - 1 and segments[start] in _LEADING:
        start += 1
    return ".".join(segment for segment in segments[start:] if segment not in _ANYWHERE)


def _without_inner_wrappers(name: str) -> str:
    """As ``without_wrappers``, and without ``module`` between other segments: a DataParallel inside the model."""
    segments = without_wrappers(name).split(".")
    return ".".join(segment for segment in segments[:-1] if segment != "module") + "." + segments[-1]


def align(stored: Iterable[str], live: Iterable[str]) -> dict[str, str]:
    """Stored name -> live name: equal names first, then names that are equal without wrapper segments.

    A live module that itself has a child called ``module`` keeps it: equal names always win, and a name without
    wrappers is used only when it is unique on both sides.
    """
    stored, live = list(stored), list(live)
    there = set(live)
    found = {name: name for name in stored if name in there}
    for core in (without_wrappers, _without_inner_wrappers):
        taken = set(found.values())
        by_core: dict[str, list[str]] = {}
        for name in live:
            if name not in taken:
                by_core.setdefault(core(name), []).append(name)
        rest: dict[str, list[str]] = {}
        for name in stored:
            if name not in found:
                rest.setdefault(core(name), []).append(name)
        for key, names in rest.items():
            targets = by_core.get(key, [])
            if len(names) == 1 and len(targets) == 1:
                found[names[0]] = targets[0]
    return found


def align_roots(left: Collection[str], right: Collection[str]) -> dict[str, str]:
    """As ``align``; where more names fit below one part of one side, as with weights beside a checkpoint, there.

    Example:
        >>> align_roots(["fc.weight"], ["epoch", "model.fc.weight"])
        {'fc.weight': 'model.fc.weight'}
    """
    found = align(left, right)
    if len(found) == min(len(left), len(right)):
        return found
    under_right, under_left = _part(left, right), _part(right, left)
    lead, votes = max(under_right, under_left, key=lambda one: one[1])
    if votes <= len(found):
        return found
    if (lead, votes) == under_right:
        return _below(lead, left, right)
    return {whole: inner for inner, whole in _below(lead, right, left).items()}


def _part(short: Iterable[str], long: Iterable[str]) -> tuple[str, int]:
    """The part of ``long`` with the most names of ``short``, and how many those are."""
    wanted = {without_wrappers(name) for name in short}
    votes: Counter[str] = Counter()
    for name in long:
        segments = name.split(".")
        for cut in range(1, min(len(segments), _DEEPEST)):
            if without_wrappers(".".join(segments[cut:])) in wanted:
                votes[".".join(segments[:cut])] += 1
    return max(votes.items(), key=lambda one: one[1], default=("", 0))


def _below(lead: str, short: Iterable[str], long: Iterable[str]) -> dict[str, str]:
    inside = {name.removeprefix(f"{lead}."): name for name in long if name.startswith(f"{lead}.")}
    return {name: inside[other] for name, other in align(short, inside).items()}


def rename_lines(renamed: Iterable[tuple[str, str]]) -> list[str]:
    """Old and new names by what differs: ``module.* as *  x148``."""
    counts: Counter[tuple[str, str]] = Counter()
    for old, new in renamed:
        left, right = old.split("."), new.split(".")
        while left and right and left[-1] == right[-1]:
            left.pop()
            right.pop()
        counts[".".join(left), ".".join(right)] += 1
    return [f"{_star(old)} as {_star(new)}{f'  x{count}' if count > 1 else ''}" for (old, new), count in counts.items()]


def _star(prefix: str) -> str:
    return f"{prefix}.*" if prefix else "*"

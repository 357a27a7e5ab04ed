"""Names in a file against names in a live object: wrapper prefixes by path segment, never by text."""

from __future__ import annotations

from collections.abc import Iterable

WRAPPERS = frozenset({"module", "_orig_mod"})
"""Segments that DataParallel, DistributedDataParallel and torch.compile put into names."""


def without_wrappers(name: str) -> str:
    """``module._orig_mod.submodule.fc`` as ``submodule.fc``: whole segments only, so ``submodule`` stays."""
    segments = name.split(".")
    start = 0
    while start < len(segments) - 1 and segments[start] in WRAPPERS:
        start += 1
    return ".".join(segment for segment in segments[start:] if segment != "_orig_mod")


def align(stored: Iterable[str], live: Iterable[str]) -> dict[str, str]:
    """Stored name -> live name: equal names first, then names that are equal without wrapper segments.

    A live module that itself has a child called ``module`` keeps it: equal names always win, and a name without
    wrappers is used only when it is unique on both sides.
    """
    stored, live = list(stored), set(live)
    found = {name: name for name in stored if name in live}
    by_core: dict[str, list[str]] = {}
    for name in live - set(found.values()):
        by_core.setdefault(without_wrappers(name), []).append(name)
    rest: dict[str, list[str]] = {}
    for name in stored:
        if name not in found:
            rest.setdefault(without_wrappers(name), []).append(name)
    for core, names in rest.items():
        targets = by_core.get(core, [])
        if len(names) == 1 and len(targets) == 1:
            found[names[0]] = targets[0]
    return found

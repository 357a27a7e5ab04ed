"""Names in a file against names in a live object: by path segment, never by text."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Mapping

from holdfast.errors import MismatchError
from holdfast.policy.policies import Policy, Warm

_LEADING = frozenset({"module", "_orig_mod", "_fsdp_wrapped_module"})
_ANYWHERE = frozenset({"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_flat_param"})
"""Segments that DataParallel, DistributedDataParallel, FullyShardedDataParallel, activation checkpointing and
torch.compile put into names."""


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


def fits(name: str, patterns: Iterable[str]) -> bool:
    """Whether a name fits one of some shell-style patterns."""
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def policy_names(stored: Iterable[str], policy: Policy) -> dict[str, str]:
    """Stored name -> the name that the policy gives it; dropped names are left out.

    Raises:
        MismatchError: two names of the file become one.
    """
    if not isinstance(policy, Warm):
        return {name: name for name in stored}
    found: dict[str, str] = {}
    owner: dict[str, str] = {}
    for name in stored:
        changed = _changed(name, policy)
        if fits(name, policy.drop) or fits(changed, policy.drop):
            continue
        if changed in owner:
            raise MismatchError(
                f"`{owner[changed]}` and `{name}` of the file both become `{changed}`: mend Warm(rename=)"
            )
        owner[changed] = name
        found[name] = changed
    return found


def moved_modules(names: Mapping[str, str]) -> dict[str, str]:
    """Old name of a module -> its new name, as the old and new names of the tensors in it tell.

    ``{"backbone.fc.weight": "fc.weight"}`` says that ``backbone.fc`` is ``fc`` now, and ``backbone`` the root.
    """
    found: dict[str, str] = {}
    for old, new in names.items():
        before, after = old.split("."), new.split(".")
        while before and after and before.pop() == after.pop():
            found.setdefault(".".join(before), ".".join(after))
    return found


def _changed(name: str, policy: Warm) -> str:
    if policy.strip_prefix:
        prefix = policy.strip_prefix.rstrip(".") + "."
        name = name.removeprefix(prefix)
    if policy.add_prefix:
        name = f"{policy.add_prefix.rstrip('.')}.{name}"
    for pattern, replacement in policy.rename.items():
        name = re.sub(pattern, replacement, name)
    return name

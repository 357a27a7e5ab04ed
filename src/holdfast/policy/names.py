"""Names in a file against names in a live object: by path segment, never by text."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Mapping

from holdfast.errors import MismatchError
from holdfast.policy.policies import Policy, Warm
from holdfast.state.wrappers import align as align
from holdfast.state.wrappers import without_wrappers as without_wrappers


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

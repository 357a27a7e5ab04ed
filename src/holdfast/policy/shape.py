"""Which part of a tensor of another size may be taken."""

from __future__ import annotations

import fnmatch

from holdfast.policy.policies import Policy, Warm


def common_box(stored: tuple[int, ...], live: tuple[int, ...]) -> tuple[int, ...]:
    """The leading part that both have: the smaller size of each dimension."""
    return tuple(min(pair) for pair in zip(stored, live, strict=True))


def may_resize(name: str, stored: tuple[int, ...], live: tuple[int, ...], policy: Policy) -> bool:
    """Whether the policy lets the tensor ``name`` change its size from ``stored`` to ``live``.

    The number of dimensions never changes: what would be padded then is anyone's guess.
    """
    if not isinstance(policy, Warm) or len(stored) != len(live) or 0 in common_box(stored, live):
        return False
    for pattern, way in policy.resize.items():
        if fnmatch.fnmatchcase(name, pattern):
            box = common_box(stored, live)
            return way == "fit" or (way == "pad" and box == stored) or (way == "crop" and box == live)
    return False

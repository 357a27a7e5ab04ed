"""The rules, in the order of their codes."""

from __future__ import annotations

from holdfast.lint.rule import Rule
from holdfast.lint.rules import choosing, contents, files, loading, resuming

RULES: tuple[Rule, ...] = tuple(
    sorted(
        one
        for module in (contents, files, choosing, resuming, loading)
        for one in vars(module).values()
        if isinstance(one, Rule)
    )
)

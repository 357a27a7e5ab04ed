"""The rename that would let the most of a file be loaded."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from holdfast.policy.names import align, policy_names
from holdfast.policy.pairing import pair_up
from holdfast.policy.policies import Warm
from holdfast.policy.renaming import rules_for
from holdfast.policy.vocabulary import preferred
from holdfast.spec import TensorSpec


class Suggestion(msgspec.Struct, frozen=True):
    """A rename to try; ``print(suggestion)`` is the policy to paste.

    Attributes:
        rename: pattern -> replacement, applied in order with ``re.sub`` to the names in the file.
        coverage_before: elements of the live object that load without it, 0 to 1.
        coverage_after: the same with it.
    """

    rename: dict[str, str]
    coverage_before: float
    coverage_after: float

    def __str__(self) -> str:
        rules = ", ".join(f"{_literal(pattern)}: {_literal(new)}" for pattern, new in self.rename.items())
        return f"holdfast.Warm(rename={{{rules}}})"


def suggest(stored: Mapping[str, TensorSpec], live: Mapping[str, TensorSpec]) -> Suggestion | None:
    """Proposes the rename that raises coverage most, from names and shapes alone.

    It never guesses between equals: layers of equal shape are paired only when their names say which is which, and a
    rename is proposed only when every name it brings to life has the shape that the object wants.

    Args:
        stored: the file's tensors by name, in the file's order.
        live: the object's tensors by name, in its order.

    Returns:
        The suggestion, or None when nothing is known to be gained.
    """
    known = _loads(align(stored, live), stored, live)
    before = _coverage(known, live)
    if before == 1.0:
        return None
    candidates = {name: stored[name] for name in preferred(list(stored))}
    pairs = pair_up(candidates, live, known)
    rename = _few_rules(pairs, known, stored, live)
    if not rename:
        return None
    originals = {new: name for name, new in policy_names(stored, Warm(rename=rename)).items()}
    found = _loads(align(originals, live), {new: stored[name] for new, name in originals.items()}, live)
    after = _coverage(found, live)
    wanted = {**pairs, **known}
    if after <= before or any(wanted.get(originals[new]) != name for new, name in found.items()):
        return None
    return Suggestion(rename, before, after)


def _few_rules(
    pairs: Mapping[str, str],
    known: Mapping[str, str],
    stored: Mapping[str, TensorSpec],
    live: Mapping[str, TensorSpec],
) -> dict[str, str]:
    """Rules for the pairs; a name without a partner must not land on a live name that it would fill."""
    by_shape: dict[tuple[int, ...], set[str]] = {}
    for name, spec in live.items():
        by_shape.setdefault(spec.shape, set()).add(name)
    forbidden = {shape: frozenset(names) for shape, names in by_shape.items()}
    others = {
        name: forbidden.get(spec.shape, frozenset())
        for name, spec in stored.items()
        if name not in pairs and name not in known
    }
    return rules_for(pairs, known, others, {name: stored[name].numel for name in pairs})


def _loads(
    names: Mapping[str, str], stored: Mapping[str, TensorSpec], live: Mapping[str, TensorSpec]
) -> dict[str, str]:
    return {name: other for name, other in names.items() if stored[name].shape == live[other].shape}


def _coverage(found: Mapping[str, str], live: Mapping[str, TensorSpec]) -> float:
    total = sum(spec.numel for spec in live.values())
    return sum(live[name].numel for name in found.values()) / total if total else 1.0


def _literal(text: str) -> str:
    """``text`` as Python source, raw where that reads better; nothing unprintable is left in it."""
    plain = text.isascii() and text.isprintable() and '"' not in text and not text.endswith("\\")
    if not plain:
        return ascii(text)
    return f'r"{text}"' if "\\" in text else f'"{text}"'

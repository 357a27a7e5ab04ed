"""What differs between two trees: names paired, tensors by what was found out about their bytes, plain values.

Pure: the caller says which tensors have equal bytes, and may add by how much the others differ.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import msgspec

from holdfast.spec import TensorSpec
from holdfast.state.paths import matches
from holdfast.state.wrappers import align, align_roots

_TIED = 5


class Numbers(msgspec.Struct, frozen=True):
    """By how much two tensors of one shape differ: B - A, in float64, over the elements that are finite in both.

    Attributes:
        elements: of each.
        differing: how many are not equal; NaN equals NaN.
        norm: of the difference: the root of the sum of its squares.
        relative: ``norm`` over the norm of A; None where that is 0.
        largest: the largest absolute difference.
        cosine: of the angle between the two; None where one is all zeros.
        nan: elements that are NaN, in A and in B.
        infinite: elements that are infinite, in A and in B.
        cast: whether one is what the other becomes in its dtype; None when they have one dtype.
    """

    elements: int
    differing: int
    norm: float
    relative: float | None
    largest: float
    cosine: float | None
    nan: tuple[int, int] = (0, 0)
    infinite: tuple[int, int] = (0, 0)
    cast: bool | None = None


class Change(msgspec.Struct, frozen=True):
    """One tensor of both sides.

    Attributes:
        name: in A.
        other: in B.
        left: what it is in A.
        right: what it is in B.
        numbers: by how much it differs, where that was measured.
    """

    name: str
    other: str
    left: TensorSpec
    right: TensorSpec
    numbers: Numbers | None = None


class Alone(msgspec.Struct, frozen=True):
    """One tensor of one side."""

    name: str
    spec: TensorSpec


class ValueChange(msgspec.Struct, frozen=True):
    """A plain value that differs: its text on each side, None where it is missing."""

    name: str
    left: str | None
    right: str | None


class Diff(msgspec.Struct, frozen=True):
    """What differs between A and B. ``print`` it, or use its lists.

    Attributes:
        a: the first, as the caller named it.
        b: the second.
        same: names in A of the tensors that are the same on both sides.
        changed: tensors of one shape and dtype with other values.
        recast: tensors of one shape and another dtype.
        reshaped: tensors of another shape.
        renamed: tensors with the same values under another name.
        removed: tensors that only A has.
        added: tensors that only B has.
        values: plain values that differ: arguments, metrics, position, environment, metadata.
        aligned: name in A -> name in B, where they were taken for the same and differ (wrappers; a part of a file).
        notes: what else a reader should know; no difference.
    """

    a: str
    b: str
    same: list[str] = []
    changed: list[Change] = []
    recast: list[Change] = []
    reshaped: list[Change] = []
    renamed: list[Change] = []
    removed: list[Alone] = []
    added: list[Alone] = []
    values: list[ValueChange] = []
    aligned: dict[str, str] = {}
    notes: list[str] = []

    @property
    def identical(self) -> bool:
        """Whether nothing differs; names that differ by wrappers alone are the same."""
        return not (self.unlike or self.renamed or self.removed or self.added or self.values)

    @property
    def unlike(self) -> list[Change]:
        """All tensors that both sides have and that are not the same."""
        return [*self.changed, *self.recast, *self.reshaped]

    def measured(self, numbers: Mapping[str, Numbers]) -> Diff:
        """The same with numbers, by name in A."""

        def with_numbers(changes: Iterable[Change]) -> list[Change]:
            return [msgspec.structs.replace(one, numbers=numbers.get(one.name, one.numbers)) for one in changes]

        return msgspec.structs.replace(self, changed=with_numbers(self.changed), recast=with_numbers(self.recast))

    def to_dict(self) -> dict[str, Any]:
        """The diff as plain dicts and lists."""
        result: dict[str, Any] = {"identical": self.identical, **msgspec.to_builtins(self, builtin_types=())}
        return result

    def __str__(self) -> str:
        from holdfast.state.diff_text import diff_lines  # how it looks is for who looks

        return "\n".join(diff_lines(self))

    def _repr_html_(self) -> str:
        from holdfast.state.diff_text import diff_html

        return diff_html(self)


# ---- how it is found -------------------------------------------------------------------------------------------------


class Side(msgspec.Struct, frozen=True):
    """One of the two trees.

    Attributes:
        name: what the diff calls it.
        tensors: by dotted path.
        values: by dotted path: what identifies the value exactly, and its text.
        facts: plain values that were recorded beside the tree, by section: ``{"metrics": {"loss": ("0.5", "0.5")}}``.
        ties: name of a tensor -> all that lie in the same memory.
    """

    name: str
    tensors: Mapping[str, TensorSpec]
    values: Mapping[str, tuple[str, str]] = {}
    facts: Mapping[str, Mapping[str, tuple[str, str]]] = {}
    ties: Mapping[str, Collection[str]] = {}


class Pairing(msgspec.Struct, frozen=True):
    """Which tensors are taken for the same.

    Attributes:
        pairs: name in A -> name in B.
        removed: names that only A has.
        added: names that only B has.
    """

    pairs: dict[str, str]
    removed: list[str]
    added: list[str]


def pair(left: Side, right: Side, glob: str | None = None) -> Pairing:
    """Pairs names: equal ones, those that wrappers alone tell apart, and those below a part that the other side is.

    Args:
        left: A.
        right: B.
        glob: leaves out what has no name that fits, on either side.
    """
    pairs = align_roots(left.tensors, right.tensors)
    taken = set(pairs.values())
    return Pairing(
        {name: pairs[name] for name in left.tensors if name in pairs and _wanted(glob, name, pairs[name])},
        [name for name in left.tensors if name not in pairs and _wanted(glob, name)],
        [name for name in right.tensors if name not in taken and _wanted(glob, name)],
    )


def _wanted(glob: str | None, *names: str) -> bool:
    return glob is None or any(matches((name,), glob) for name in names)


def alike(left: Side, right: Side, pairing: Pairing) -> list[tuple[str, str]]:
    """Pairs of one shape and dtype: whether their bytes are equal is to be found out."""
    return [pair for pair in pairing.pairs.items() if _form(left.tensors[pair[0]]) == _form(right.tensors[pair[1]])]


def may_be_renamed(left: Side, right: Side, pairing: Pairing) -> tuple[list[str], list[str]]:
    """Names that only A, and only B, has, of shapes and dtypes that the other side's have as well."""
    forms = {_form(left.tensors[name]) for name in pairing.removed}
    forms &= {_form(right.tensors[name]) for name in pairing.added}
    return (
        [name for name in pairing.removed if _form(left.tensors[name]) in forms],
        [name for name in pairing.added if _form(right.tensors[name]) in forms],
    )


def describe(
    left: Side, right: Side, pairing: Pairing, equal: Collection[str], moved: Mapping[str, str], glob: str | None = None
) -> Diff:
    """The diff, once it is known whose bytes are equal.

    Args:
        left: A.
        right: B.
        pairing: of both.
        equal: names in A of pairs with equal bytes.
        moved: name in A -> name in B of those that were found under another name.
        glob: as in ``pair``, for the plain values.
    """
    diff = Diff(left.name, right.name)
    for name, other in pairing.pairs.items():
        change = Change(name, other, left.tensors[name], right.tensors[other])
        if name in equal:
            diff.same.append(name)
        elif change.left.shape != change.right.shape:
            diff.reshaped.append(change)
        else:
            (diff.changed if change.left.dtype == change.right.dtype else diff.recast).append(change)
    back = {other: name for name, other in moved.items()}
    diff.renamed.extend(Change(name, other, left.tensors[name], right.tensors[other]) for name, other in moved.items())
    diff.removed.extend(Alone(name, left.tensors[name]) for name in pairing.removed if name not in moved)
    diff.added.extend(Alone(name, right.tensors[name]) for name in pairing.added if name not in back)
    diff.aligned.update({name: other for name, other in pairing.pairs.items() if name != other})
    values = list(_values(left.values, right.values))
    for section in sorted({*left.facts, *right.facts}):
        ours, theirs = left.facts.get(section), right.facts.get(section)
        if ours and theirs:
            values += (msgspec.structs.replace(one, name=f"{section}.{one.name}") for one in _values(ours, theirs))
        elif ours or theirs:
            diff.notes.append(f"only {'A' if ours else 'B'} records {section}")
    diff.values.extend(one for one in values if _wanted(glob, one.name))
    for side, alone, word in ((left, diff.removed, "A"), (right, diff.added, "B")):
        diff.notes.extend(_tied(side, alone, word))
    return diff


def _form(spec: TensorSpec) -> tuple[str, tuple[int, ...]]:
    return spec.dtype, spec.shape


def _values(left: Mapping[str, tuple[str, str]], right: Mapping[str, tuple[str, str]]) -> Iterable[ValueChange]:
    pairs = align(left, right)
    taken = set(pairs.values())
    for name, (exact, text) in left.items():
        if name not in pairs:
            yield ValueChange(name, text, None)
            continue
        other_exact, other_text = right[pairs[name]]
        if exact != other_exact:
            yield ValueChange(name, text, other_text)
    yield from (ValueChange(name, None, text) for name, (_, text) in right.items() if name not in taken)


def _tied(side: Side, alone: Collection[Alone], word: str) -> list[str]:
    """Tensors of one side only that share the memory of one that is on both: weights that the other side unties."""
    names = {one.name for one in alone}
    anchors: dict[int, str | None] = {}  # of each group, looked for once: a file may tie all that it has
    notes = []
    for one in alone:
        group = side.ties.get(one.name, ())
        if id(group) not in anchors:
            anchors[id(group)] = next((name for name in group if name not in names), None)
        other = anchors[id(group)]
        if other is not None:
            notes.append(f"`{one.name}` of {word} shares the memory of `{other}`")
    return notes[:_TIED]

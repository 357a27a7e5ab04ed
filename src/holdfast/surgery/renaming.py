"""A file with other names for its weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from holdfast.errors import ArgumentError, MismatchError
from holdfast.formats.base import Document
from holdfast.formats.writing import Destination
from holdfast.policy.names import policy_names
from holdfast.policy.policies import Warm
from holdfast.spec import Path
from holdfast.state.flatten import child, keys
from holdfast.state.paths import dotted, printable
from holdfast.state.values import Tree, Typed
from holdfast.surgery.report import Rewritten
from holdfast.surgery.states import Item, find_state, items_of, stored_bytes, versions_of, with_items, with_part
from holdfast.surgery.writing import opened
from holdfast.transfer.locate import looks_like

_SHOWN = 8


def rename(
    src: Any,
    dst: Destination,
    *,
    rename: Mapping[str, str] | None = None,
    drop: Sequence[str] = (),
    strip_prefix: str | None = None,
    add_prefix: str | None = None,
    at: str | None = None,
    format: str | None = None,  # noqa: A002
) -> Rewritten:
    """Writes a file with other names for its weights; all else in it stays.

    The names change as in ``Warm``: ``strip_prefix``, ``add_prefix``, ``rename``, and then ``drop`` is asked. The names
    that optimizers in the file have for their parameters follow.

    Args:
        src: a path, a reference (``runs/a@best``) or a binary file object.
        dst: a path or a binary file object.
        rename: regular expression -> replacement, as ``re.sub`` takes them, one after the other.
        drop: shell-style patterns of names to leave out, as they were or as they become.
        strip_prefix: leading segments to take off names that have them, ``"module"``.
        add_prefix: leading segments to put before every name.
        at: dotted path of the state_dict, where it is not found by itself.
        format: ``pt`` or ``safetensors``; by default by the suffix of ``dst``.

    Returns:
        What was written; ``renamed`` and ``left_out`` name each key that changed.

    Raises:
        ArgumentError: no rule, or one that is no regular expression.
        MismatchError: no key changes, two keys become one, or all are dropped.
        MissingPart, AmbiguousPart: no state_dict, or several; says what the file has.
        CorruptFile: a digest of the source differs.
        StorageError: ``dst`` can't be written; what was there before is intact.

    Example:
        >>> import holdfast, torch
        >>> saved = holdfast.save({"module.fc.weight": torch.ones(1, 2)}, "old.pt")
        >>> holdfast.surgery.rename("old.pt", "new.pt", strip_prefix="module").renamed
        {'module.fc.weight': 'fc.weight'}
    """
    rules = Warm(rename=rename or {}, drop=drop, strip_prefix=strip_prefix, add_prefix=add_prefix)
    if not (rename or drop or strip_prefix or add_prefix):
        raise ArgumentError("rename needs a rule: rename, strip_prefix, add_prefix or drop")
    with opened([src], dst, format) as surgery:
        (source,) = surgery.sources
        document = source.document
        path, state = find_state(document.tree, at, source.file)
        items = items_of(state) or []
        names = _new_names([key for key, _ in items], rules, source.file)
        left = [(key, item) for key, item in items if key not in names]
        kept = [(names[key], item) for key, item in items if key in names]
        new = with_items(state, kept, _new_versions(versions_of(state), items, names, rules))
        listing = _Listing(names, path, [] if at is None else _other_models(document.tree, path))
        renewed = Document(with_part(document.tree, path, state, new), _objects(document, path), document.metadata)
        return surgery.write(
            _with_parameter_names(renewed, listing),
            renamed={old: now for old, now in names.items() if old != now},
            left_out={key: stored_bytes(item, besides=new) for key, item in left},
            notes=[*_notes(document, path, dropped=bool(left)), *listing.notes],
        )


def _new_names(names: Sequence[str], rules: Warm, file: str) -> dict[str, str]:
    """Old name -> new name, without those that are dropped."""
    found: dict[str, str] = {}
    owner: dict[str, str] = {}
    for name in names:
        for new in policy_names([name], rules).values():
            if new in owner:
                raise MismatchError(
                    f"`{printable(file)}`: `{printable(owner[new])}` and `{printable(name)}` both become "
                    f"`{printable(new)}`; make the rules tell them apart, or drop one",
                    file=file,
                    path=name,
                )
            owner[new], found[name] = name, new
    if all(found.get(name) == name for name in names):
        shown = ", ".join(f"`{printable(name)}`" for name in names[:_SHOWN])
        more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        raise MismatchError(
            f"`{printable(file)}`: no name changes under these rules; the names are {shown}{more}", file=file
        )
    if not found:
        raise MismatchError(f"`{printable(file)}`: all {len(names)} names would be dropped", file=file)
    return found


def _new_versions(versions: Sequence[Item], items: Sequence[Item], names: Mapping[str, str], rules: Warm) -> list[Item]:
    """The versions of modules under the modules' new names; those whose weights were all dropped are left out."""
    before, after = (_prefixes(name for name, _ in items), _prefixes(names))
    renaming = Warm(rename=rules.rename, strip_prefix=rules.strip_prefix, add_prefix=rules.add_prefix)
    found: dict[str, Tree] = {}
    for module, version in versions:
        if module in before and module not in after:
            continue
        name = f"{module}." if module else ""
        new = policy_names([name], renaming)[name].removesuffix(".")
        if new != module or module not in found:
            found[new] = version
    return list(found.items())


def _prefixes(names: Any) -> set[str]:
    """Every module that names of weights speak of: ``a``, ``a.b`` and the root for ``a.b.weight``."""
    found = {""}
    for name in names:
        while (name := name.rpartition(".")[0]) and name not in found:
            found.add(name)
    return found


def _objects(document: Document, path: Path) -> dict[str, dict[str, Any]]:
    """What was recorded of the objects, without the model's structure, which has the old names."""
    name = dotted(path) if path else ""
    return {
        key: {field: value for field, value in record.items() if key != name or field != "structure"}
        for key, record in document.objects.items()
    }


def _other_models(tree: Tree, path: Path) -> list[set[str]]:
    """The names of every other model in a file."""
    others = [child(tree, key) for key in keys(tree) if (key,) != path]
    return [{name for name, _ in items_of(one) or []} for one in others if looks_like("module", one)]


class _Listing:
    """The names that optimizers list for their parameters, as they become.

    Args:
        names: old name -> new name.
        path: of the model; in a file of several, its parameters may be listed as ``G.fc.weight``.
        others: names of models whose parameters an optimizer may mean as well.
    """

    def __init__(self, names: Mapping[str, str], path: Path, others: Sequence[set[str]]) -> None:
        prefix = f"{dotted(path)}." if path else ""
        self._names = names
        self._prefixed = {prefix + old: prefix + new for old, new in names.items()}
        self._others = others
        self.notes: list[str] = []

    def changed(self, listed: list[Any], optimizer: str) -> list[Any]:
        """A list with the new names; as it was, and a note, where its names are those of another model too."""
        texts = {one for one in listed if type(one) is str}
        if not texts.isdisjoint(self._prefixed):
            return [self._prefixed.get(one, one) if type(one) is str else one for one in listed]
        if any(texts <= other for other in self._others):
            if any(self._names.get(one, one) != one for one in texts):
                self.notes.append(f"the names in {optimizer} may be another model's and stay")
            return listed
        return [self._names.get(one, one) if type(one) is str else one for one in listed]


def _with_parameter_names(document: Document, listing: _Listing) -> Document:
    objects = {
        key: {
            field: listing.changed(value, key) if field == "param_names" and type(value) is list else value
            for field, value in record.items()
        }
        for key, record in document.objects.items()
    }
    tree = document.tree
    for key in keys(tree):
        for index, group in enumerate(_groups(child(tree, key))):
            listed = child(group, "param_names")
            if type(listed) is list:
                path = (key, "param_groups", index, "param_names")
                tree = with_part(tree, path, listed, listing.changed(listed, str(key)))
    return Document(tree, objects, document.metadata)


def _groups(part: Tree) -> list[Tree]:
    groups = child(part, "param_groups") if type(part) in (dict, Typed) else None
    return groups if type(groups) is list else []


def _notes(document: Document, path: Path, *, dropped: bool) -> list[str]:
    name = dotted(path) if path else ""
    notes = [f"the state_dict is `{name}`"] if name else []
    if "structure" in document.objects.get(name, {}):
        notes.append("the recorded structure has the old names and was left out: build with factory=")
    optimizers = [str(key) for key in keys(document.tree) if _groups(child(document.tree, key))]
    if dropped and optimizers:
        notes.append(f"the state of dropped parameters is still in {', '.join(optimizers)}")
    return notes

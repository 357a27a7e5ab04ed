"""Several files as one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from holdfast.errors import ArgumentError, MismatchError
from holdfast.formats.base import Document
from holdfast.formats.writing import Destination
from holdfast.state.paths import printable
from holdfast.state.values import Tree, Typed
from holdfast.surgery.report import Rewritten
from holdfast.surgery.states import Item, items_of, versions_of
from holdfast.surgery.writing import Source, opened

_SHOWN = 5


def merge(
    srcs: Mapping[str, Any] | Sequence[Any],
    dst: Destination,
    *,
    format: str | None = None,  # noqa: A002
) -> Rewritten:
    """Writes several files as one: each under a name, or all their keys side by side.

    Args:
        srcs: ``{"model": "net.pt", "optimizer": "opt.pt"}`` gives a file with these two parts; a list of files gives
            one with the keys of all, such as the shards of a state_dict. Paths, references, binary file objects.
        dst: a path or a binary file object.
        format: ``pt`` or ``safetensors``; by default by the suffix of ``dst``.

    Returns:
        What was written.

    Raises:
        MismatchError: two files of a list have the same key, or one is no dict; two files have other metadata.
        ArgumentError: no files, or a name that is none.
        NotFound, CorruptFile: a source is missing or damaged.
        StorageError: ``dst`` can't be written; what was there before is intact.

    Example:
        >>> import holdfast, torch
        >>> net = torch.nn.Linear(2, 1)
        >>> saved = holdfast.save(net, "net.pt"), holdfast.save({"epoch": 3}, "rest.pt")
        >>> made = holdfast.surgery.merge({"model": "net.pt", "rest": "rest.pt"}, "all.pt")
        >>> holdfast.restore("all.pt", model=net).is_exact
        True
    """
    if isinstance(srcs, str | bytes) or not isinstance(srcs, Mapping | Sequence) or not srcs:
        raise ArgumentError("merge takes files by name, {'model': 'net.pt'}, or a list of files; and at least one")
    names = list(srcs) if isinstance(srcs, Mapping) else None
    if names and not all(isinstance(name, str) and name for name in names):
        raise ArgumentError(f"merge takes files by name; {names!r:.200} are not all names")
    files = list(srcs.values()) if isinstance(srcs, Mapping) else list(srcs)
    with opened(files, dst, format) as surgery:
        document = _side_by_side(surgery.sources) if names is None else _by_name(names, surgery.sources)
        return surgery.write(document)


def _by_name(names: Sequence[str], sources: Sequence[Source]) -> Document:
    objects = {
        f"{name}.{key}" if key else name: record
        for name, source in zip(names, sources, strict=True)
        for key, record in source.document.objects.items()
    }
    return Document(
        {name: source.document.tree for name, source in zip(names, sources, strict=True)}, objects, _metadata(sources)
    )


def _side_by_side(sources: Sequence[Source]) -> Document:
    owner: dict[str, str] = {}
    items: dict[str, Tree] = {}
    versions: dict[str, Tree] = {}
    twice: list[str] = []
    for source in sources:
        for key, item in _items(source):
            if key in owner:
                twice.append(f"`{printable(key)}` is in `{printable(owner[key])}` and `{printable(source.file)}`")
            owner[key], items[key] = source.file, item
        versions.update(versions_of(source.document.tree))
    if twice:
        more = f"; and {len(twice) - _SHOWN} more" if len(twice) > _SHOWN else ""
        raise MismatchError(
            f"{'; '.join(twice[:_SHOWN])}{more}. Give each file a name, merge({{'a': ..., 'b': ...}}), or rename keys"
        )
    # what is recorded of a root is of one file's content, not of what all of them are together
    objects = {key: record for source in sources for key, record in source.document.objects.items() if key}
    tree: Tree = items
    if versions:
        tree = Typed("state_dict", {"items": items, "metadata": [[key, one] for key, one in versions.items()]})
    return Document(tree, objects, _metadata(sources))


def _items(source: Source) -> list[Item]:
    items = items_of(source.document.tree)
    if items is None:
        raise MismatchError(
            f"`{printable(source.file)}`: is no dict with names for keys; give it a name to merge it as a whole",
            file=source.file,
        )
    return items


def _metadata(sources: Sequence[Source]) -> dict[str, str]:
    merged: dict[str, str] = {}
    for source in sources:
        for key, text in source.document.metadata.items():
            if merged.setdefault(key, text) != text:
                raise MismatchError(
                    f"`{printable(source.file)}`: metadata `{printable(key)}` is {text!r:.80}, an earlier file has "
                    f"{merged[key]!r:.80}; save one of them without it",
                    file=source.file,
                )
    return merged

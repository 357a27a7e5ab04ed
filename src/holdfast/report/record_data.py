"""What checkpoints record beside tensors, line by line: arguments, values, objects, environment, files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Any

from holdfast.runs.manifest import Manifest
from holdfast.runs.sizes import size_text
from holdfast.state.flatten import child
from holdfast.state.paths import printable
from holdfast.state.tree_view import value_lines
from holdfast.state.values import Tree

LINES = 2_000
"""Lines that are shown of one part of one checkpoint."""
_LONG = 400
_ARGUMENTS = "args"

Lines = dict[tuple[str, str], str]
"""Part and path to text."""


def record_lines(tree: Tree, manifest: Manifest | None, metadata: Mapping[str, str]) -> Lines:
    """Everything that one file or checkpoint records beside its tensors.

    Args:
        tree: its tree; None where it could not be read.
        manifest: of a checkpoint; None for a file.
        metadata: the user's own strings.
    """
    found: Lines = {}
    arguments = child(tree, _ARGUMENTS)
    _add(found, "arguments", value_lines(arguments) if arguments is not None else ())
    values = value_lines(tree) if tree is not None else ()
    _add(found, "values", ((path, text) for path, text in values if path.split(".")[0] != _ARGUMENTS))
    _add(found, "metadata", metadata.items())
    if manifest is not None:
        _add(found, "position", _position(manifest))
        _add(found, "metrics", ((name, str(value)) for name, value in manifest.metrics.items()))
        _add(found, "environment", value_lines(manifest.environment))
        _add(found, "objects", value_lines(manifest.objects))
        _add(found, "files", ((name, f"{size_text(one.size)}  {one.digest}") for name, one in manifest.files.items()))
    return found


def _position(manifest: Manifest) -> list[tuple[str, str]]:
    said = {"run": manifest.run, "step": manifest.step, "epoch": manifest.epoch, "batch": manifest.batch}
    known = [(name, str(value)) for name, value in said.items() if value is not None]
    return [*known, ("time", manifest.time.isoformat(timespec="seconds"))]


def _add(found: Lines, part: str, lines: Iterable[tuple[str, str]]) -> None:
    shown = list(islice(lines, LINES + 1))
    for path, text in shown[:LINES]:
        if path != "(root)" or text not in ("{}", "None"):
            found[part, printable(path[:_LONG])] = printable(text[:_LONG])
    if len(shown) > LINES:
        found[part, "..."] = f"only the first {LINES:,} lines are in this page"


def record_data(records: Mapping[int | None, Lines]) -> dict[str, Any]:
    """The records of several checkpoints: all of the first, and of each other one what differs from the one before.

    Args:
        records: by step, in order; one with None for a file.
    """
    keys: dict[tuple[str, str], int] = {}
    before: Lines = {}
    sides = []
    for lines in records.values():
        changed = {key: text for key, text in lines.items() if before.get(key) != text}
        gone = [key for key in before if key not in lines]
        sides.append(
            {
                "set": [[keys.setdefault(key, len(keys)), text] for key, text in changed.items()],
                "gone": [keys[key] for key in gone],
            }
        )
        before = lines
    return {"steps": list(records), "keys": [list(key) for key in keys], "sides": sides}

"""All that one page shows, as plain data: of a run with a checkpoint, or of a file."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

from holdfast.errors import FormatError, NotFound, StorageError
from holdfast.report.difference_data import difference_data
from holdfast.report.record_data import Lines, record_data, record_lines
from holdfast.report.run_data import run_data
from holdfast.report.subject import Subject, spread
from holdfast.report.tensor_data import short, tensor_data
from holdfast.runs.checkpoint import Checkpoint
from holdfast.runs.manifest import Manifest, read_manifest
from holdfast.runs.sizes import size_text
from holdfast.state.diff import Diff
from holdfast.state.flatten import needed_classes
from holdfast.state.modules import with_states
from holdfast.state.paths import dotted, printable
from holdfast.state.statistics import Changes, TensorStats

RECORDS = 32
"""Checkpoints of a run whose records are in its page."""


def page_data(
    subject: Subject,
    stats: Mapping[int, TensorStats],
    *,
    without: str = "",
    what: str = "",
    changes: Changes | None = None,
    difference: Diff | None = None,
    made: str = "",
) -> dict[str, Any]:
    """What the page of a subject shows.

    Args:
        subject: open.
        stats: of its tensors, by their place in ``subject.tensors()``.
        without: what the page says of tensors that have none.
        what: its format in words.
        changes: between the checkpoints of the run.
        difference: to another file or checkpoint.
        made: the last line of the page, ``holdfast 0.1.0``.
    """
    tensors = subject.tensors()
    records, note = _records(subject)
    return {
        "kind": _kind(subject),
        "title": printable(subject.name),
        "facts": _facts(subject, len(tensors)),
        "notes": [printable(text) for text in subject.notes],
        "made": made,
        "file": _file(subject, what) if subject.run is None else None,
        "run": run_data(subject.run) if subject.run is not None else None,
        "tensors": tensor_data(tensors, stats, without) if subject.container is not None else None,
        "records": {**record_data(records), "note": note},
        "changes": _changes(changes, [dotted(path) for path, _ in tensors]) if changes is not None else None,
        "difference": difference_data(difference) if difference is not None else None,
    }


def _file(subject: Subject, what: str) -> dict[str, Any]:
    """What a file is, and what of it only a pickle would rebuild."""
    classes = needed_classes(subject.document.tree) if subject.document is not None else []
    form = subject.container.format if subject.container is not None else ""
    return {
        "what": what,
        "format": form,
        "classes": [printable(name[:100]) for name in classes[:20]],
        "program": form in ("torch-export", "torchscript"),
    }


def _changes(changes: Changes, names: list[str]) -> dict[str, Any] | None:
    """The changes by the places of the tensors; None when there is nothing to show."""
    places = {name: at for at, name in enumerate(names)}
    rows = [row for row, name in enumerate(changes.names) if name in places]
    if len(changes.steps) < 2 or not rows:
        return None
    return {
        "steps": list(changes.steps),
        "of": [places[changes.names[row]] for row in rows],
        "change": [[short(value) for value in changes.change[row]] for row in rows],
        "norm": [[short(value) for value in changes.norm[row]] for row in rows],
        "note": printable(changes.note),
    }


def _kind(subject: Subject) -> str:
    if subject.manifest is not None:
        return f"training run, at step {subject.manifest.step:,}" if subject.run else "checkpoint"
    return "training run" if subject.run else "file"


def _facts(subject: Subject, tensors: int) -> list[str]:
    facts = []
    if subject.run is not None:
        count = len(subject.run.catalog.checkpoints)
        facts.append(f"{count} checkpoint{'' if count == 1 else 's'}, {size_text(subject.run.catalog.size)}")
    if subject.container is not None:
        facts += [] if subject.run else [subject.container.format]
        facts.append(f"{tensors:,} tensor{'' if tensors == 1 else 's'}")
    classes = [record.get("class") for record in (subject.document.objects if subject.document else {}).values()]
    named = list(dict.fromkeys(one for one in classes if isinstance(one, str)))
    facts += [printable(name[:80]) for name in named[:4]]
    version = subject.manifest.environment.get("torch") if subject.manifest else None
    return facts + ([f"torch {printable(str(version)[:40])}"] if version else [])


def _records(subject: Subject) -> tuple[dict[int | None, Lines], str]:
    """The records of a file, or of the checkpoints of a run; and what the page says of those it leaves out."""
    metadata = subject.document.metadata if subject.document is not None else {}
    if subject.run is None:
        step = subject.manifest.step if subject.manifest else None
        tree = with_states(subject.document.tree)[0] if subject.document is not None else None
        return {step: record_lines(tree, subject.manifest, metadata)}, ""
    listed = subject.run.catalog.readable
    chosen = {one.step: one for one in spread(listed, RECORDS)}
    if subject.manifest is not None:
        chosen.update({one.step: one for one in listed if one.step == subject.manifest.step})
    note = "" if len(chosen) == len(listed) else f"{len(chosen)} of the run's {len(listed):,} checkpoints are here."
    return {step: _lines_of(one.path, one.manifest) for step, one in sorted(chosen.items())}, note


def _lines_of(folder: str, manifest: Manifest | None) -> Lines:
    """The record of a checkpoint; its manifest alone where its state can't be read."""
    try:
        with contextlib.closing(Checkpoint(folder)) as checkpoint:
            return record_lines(checkpoint.document().tree, checkpoint.manifest, checkpoint.manifest.metadata)
    except (FormatError, NotFound, StorageError):
        manifest = manifest or read_manifest(folder)
        return record_lines(None, manifest, manifest.metadata)

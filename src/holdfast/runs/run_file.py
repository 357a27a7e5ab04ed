"""run.json and pins: what a run says of itself beside its checkpoints. Replaced atomically, never edited in place."""

from __future__ import annotations

import datetime
import os
import re
from collections.abc import Sequence
from typing import Literal

import msgspec

from holdfast.errors import ArgumentError, CorruptFile, NotFound
from holdfast.runs.layout import MANIFEST, PINS, RUN_FILE, parse_step, step_name
from holdfast.runs.manifest import VERSION, decode_versioned, metrics_from_json, metrics_to_json, read_small
from holdfast.state.paths import printable
from holdfast.storage.places import is_there, names_in, remove_file, write_bytes

RUN_LIMIT = 64 * 1024 * 1024
"""Bytes that run.json may have: a line for each epoch without a checkpoint stays far below."""
_PIN_LIMIT = 200
_PIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")
Mode = Literal["min", "max"]


class BestRule(msgspec.Struct, frozen=True):
    """Which checkpoint is the best one: the lowest or the highest value of a metric.

    Attributes:
        metric: its name, ``val_loss``.
        mode: ``min`` or ``max``.
    """

    metric: str
    mode: Mode

    def __str__(self) -> str:
        return f"{self.metric}:{self.mode}"


def parse_best(text: str) -> BestRule:
    """``val_loss:min`` as a rule.

    Raises:
        ArgumentError: it does not end with ``:min`` or ``:max``.
    """
    metric, _, mode = text.strip().rpartition(":")
    if metric and mode in ("min", "max"):
        return BestRule(metric, "min" if mode == "min" else "max")
    raise ArgumentError(
        f"{printable(text)!r} does not say which value is best: write METRIC:min or METRIC:max, such as 'val_loss:min'"
    )


def parse_bests(text: str | Sequence[str]) -> tuple[BestRule, ...]:
    """``"val_loss:min val_acc:max"``, or a list of such texts, as rules; the first is what ``@best`` means.

    Raises:
        ArgumentError: there is no rule, one does not end with ``:min`` or ``:max``, or two are about one metric.
    """
    words = (text if isinstance(text, str) else " ".join(text)).split()
    if not words:
        raise ArgumentError("best= has no rule: write METRIC:min or METRIC:max, such as 'val_loss:min'")
    rules = tuple(map(parse_best, words))
    metrics = [rule.metric for rule in rules]
    twice = next((metric for metric in metrics if metrics.count(metric) > 1), None)
    if twice is not None:
        raise ArgumentError(f"best={' '.join(words)!r} has two rules for {printable(twice)}: say which one is meant")
    return rules


class EpochMetrics(msgspec.Struct, frozen=True):
    """Metrics of an epoch that has no checkpoint.

    Attributes:
        step: the run's step when they were measured.
        epoch: the epoch that ended, or that they were measured in.
        metrics: by name.
    """

    step: int
    epoch: int | None
    metrics: dict[str, float | None]


class RunFile(msgspec.Struct, frozen=True):
    """What run.json holds.

    Attributes:
        run: the run's id; every manifest of it repeats the id.
        created: when, with a time zone.
        best: the rules for what is best, as text, that for ``@best`` first; None when the run has none.
        keep: the retention rules, as text.
        save: the save rules, as text.
        uncommitted: metrics of epochs that were not committed, oldest first.
        pruned: metrics of checkpoints that retention has deleted, oldest first; see history.py.
        branch: the step that the run last went back to, -1 for its beginning; None when it never did.
    """

    run: str
    created: datetime.datetime
    best: str | None = None
    keep: str | None = None
    save: str | None = None
    uncommitted: tuple[EpochMetrics, ...] = ()
    pruned: tuple[EpochMetrics, ...] = ()
    branch: int | None = None


class _Line(msgspec.Struct):
    step: int
    epoch: int | None
    metrics: dict[str, float | str | None]


class _Wire(msgspec.Struct):
    version: int
    run: str
    created: datetime.datetime
    best: str | None
    keep: str | None
    save: str | None
    uncommitted: list[_Line]
    branch: int | None = None
    pruned: list[_Line] = []


def write_run_file(root: str | os.PathLike[str], run: RunFile) -> None:
    """Replaces run.json, durably.

    Raises:
        StorageError: the disk is full or failed; the old file is intact then.
    """
    wire = _Wire(
        VERSION,
        run.run,
        run.created.astimezone(datetime.UTC),
        run.best,
        run.keep,
        run.save,
        _to_lines(run.uncommitted),
        run.branch,
        _to_lines(run.pruned),
    )
    data = msgspec.json.format(msgspec.json.encode(wire), indent=2)
    write_bytes(os.path.join(os.fspath(root), RUN_FILE), data + b"\n")


def read_run_file(root: str | os.PathLike[str]) -> RunFile | None:
    """run.json of a run; None when the folder has none.

    Raises:
        UnknownFormat: a newer holdfast wrote it.
        CorruptFile: it is damaged. Checkpoints do not depend on it.
    """
    folder = os.fspath(root)
    if not is_there(os.path.join(folder, RUN_FILE)):
        return None
    data = read_small(folder, RUN_FILE, RUN_LIMIT)
    file = os.path.join(folder, RUN_FILE)
    wire = decode_versioned(data, _Wire, file)
    if wire.created.tzinfo is None:
        raise CorruptFile(f"`{printable(file)}`: its time of creation has no time zone", file=file)
    return RunFile(
        run=wire.run,
        created=wire.created,
        best=wire.best,
        keep=wire.keep,
        save=wire.save,
        uncommitted=_from_lines(wire.uncommitted, file),
        pruned=_from_lines(wire.pruned, file),
        branch=wire.branch,
    )


def _to_lines(metrics: Sequence[EpochMetrics]) -> list[_Line]:
    return [_Line(line.step, line.epoch, metrics_to_json(line.metrics)) for line in metrics]


def _from_lines(lines: Sequence[_Line], file: str) -> tuple[EpochMetrics, ...]:
    return tuple(EpochMetrics(line.step, line.epoch, metrics_from_json(line.metrics, file)) for line in lines)


def write_pin(root: str | os.PathLike[str], name: str, step: int) -> None:
    """Pins a step under a name: retention keeps it, ``run@pin:NAME`` finds it. An older pin of that name moves.

    Raises:
        ArgumentError: the name is not made of letters, digits, ``_``, ``-`` and ``.``.
        NotFound: the run has no such step.
    """
    folder = os.fspath(root)
    if not is_there(os.path.join(folder, step_name(step), MANIFEST)):
        raise NotFound(f"`{printable(folder)}`: has no {step_name(step)} to pin", file=folder, step=step)
    write_bytes(_pin_path(folder, name), f"{step_name(step)}\n".encode())


def remove_pin(root: str | os.PathLike[str], name: str) -> None:
    """Removes a pin; its step stays until retention decides otherwise.

    Raises:
        NotFound: there is no such pin; the message lists those there are.
    """
    folder = os.fspath(root)
    path = _pin_path(folder, name)
    if not is_there(path):
        there = ", ".join(sorted(read_pins(folder))) or "no pins"
        raise NotFound(f"`{printable(folder)}`: no pin {name}; there is: {there}", file=folder)
    remove_file(path)


def read_pins(root: str | os.PathLike[str]) -> dict[str, int]:
    """The pins of a run: name to step, sorted by name.

    Raises:
        CorruptFile: a pin that names no step. Pruning stops at it: what it protected is not known.
        StorageError: the pins can't be listed.
    """
    folder = os.path.join(os.fspath(root), PINS)
    try:
        names = [name for name in names_in(folder) if _PIN.fullmatch(name)]
    except NotFound:
        return {}
    return {name: _read_pin(folder, name) for name in names}


def _read_pin(folder: str, name: str) -> int:
    text = read_small(folder, name, _PIN_LIMIT).decode("ascii", "replace").strip()
    step = parse_step(text)
    if step is None:
        path = os.path.join(folder, name)
        raise CorruptFile(f"`{printable(path)}`: says {printable(text)!r}, not a step such as step-00001000", file=path)
    return step


def _pin_path(root: str, name: str) -> str:
    if not _PIN.fullmatch(name):
        raise ArgumentError(
            f"{printable(name)!r} can't be the name of a pin: letters, digits, '_', '-' and '.' are, 100 at most"
        )
    return os.path.join(root, PINS, name)

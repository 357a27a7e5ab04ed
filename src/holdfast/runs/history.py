"""Metrics of the epochs whose checkpoints are gone: retention deletes weights, not what is known of the training."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from holdfast.runs.catalog import Catalog
from holdfast.runs.manifest import Manifest
from holdfast.runs.retention import Decision
from holdfast.runs.run_file import EpochMetrics, RunFile, write_run_file

LINES = 10_000
"""Metrics of pruned checkpoints that run.json keeps. Beyond it the older half is thinned to every second one, so that
a run that saves for ever replaces a file of a few megabytes at most."""


def remember(root: str, run: RunFile, catalog: Catalog, decisions: Sequence[Decision]) -> RunFile:
    """Writes the metrics of what is about to be pruned into run.json, durably, and returns what that says then.

    Args:
        root: the run's folder; the caller holds its lock.
        run: what run.json says now.
        catalog: of the run, from which the decisions were made.
        decisions: of :func:`~holdfast.runs.retention.plan_prune`.

    Raises:
        StorageError: the disk is full or failed; run.json is as it was.
    """
    doomed = {decision.step for decision in decisions if not decision.keep} - {line.step for line in run.pruned}
    lines = [_line(one.manifest) for one in catalog.readable if one.step in doomed and one.manifest is not None]
    lines = [line for line in lines if line.metrics]
    if not lines:
        return run
    run = msgspec.structs.replace(run, pruned=tuple(_thinned(sorted([*run.pruned, *lines], key=_step))))
    write_run_file(root, run)
    return run


def gone_back(run: RunFile, step: int) -> RunFile:
    """What run.json says when the run has gone back to ``step``: later metrics are of a training that was left."""
    kept = {
        name: tuple(line for line in lines if line.step <= step)
        for name, lines in (("uncommitted", run.uncommitted), ("pruned", run.pruned))
    }
    return msgspec.structs.replace(run, branch=step, **kept)


def history(run: RunFile | None, catalog: Catalog) -> list[EpochMetrics]:
    """The metrics of all epochs that have no checkpoint in ``catalog``, by step."""
    if run is None:
        return []
    there = {one.step for one in catalog.readable if one.manifest is not None and one.manifest.metrics}
    return sorted((line for line in (*run.pruned, *run.uncommitted) if line.step not in there), key=_step)


def _line(manifest: Manifest) -> EpochMetrics:
    epoch = manifest.epoch
    if epoch and not manifest.batch:  # a manifest says where to go on, a line which epoch was measured
        epoch -= 1
    return EpochMetrics(manifest.step, epoch, manifest.metrics)


def _thinned(lines: Sequence[EpochMetrics]) -> Sequence[EpochMetrics]:
    if len(lines) <= LINES:
        return lines
    half = len(lines) // 2
    return [*lines[:half:2], *lines[half:]]


def _step(line: EpochMetrics) -> int:
    return line.step

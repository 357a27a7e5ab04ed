"""``holdfast ls``: the checkpoints of a run, one a line."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from typing import Any

import click
import msgspec

from holdfast.cli.output import age_text, coloured, say, say_json, say_table, size_text
from holdfast.errors import FormatError, NotFound
from holdfast.runs.catalog import Catalog, Listed, best, is_run, scan
from holdfast.runs.manifest import metrics_to_json
from holdfast.runs.retention import parse_keep, plan_prune
from holdfast.runs.run_file import BestRule, RunFile, parse_best, read_pins, read_run_file
from holdfast.state.paths import printable

_METRICS = 6


class Row(msgspec.Struct, frozen=True):
    """One checkpoint as it is listed.

    Attributes:
        listed: what the folder says.
        best: whether it is the run's best.
        pins: the names that it is pinned as.
        kept: why retention keeps it; empty without rules, or when it does not.
    """

    listed: Listed
    best: bool
    pins: tuple[str, ...]
    kept: tuple[str, ...]


@click.command("ls", epilog="Example: holdfast ls runs/a")
@click.argument("folder", metavar="DIR")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(folder: str, as_json: bool) -> None:
    """List the checkpoints of the run DIR: position, age, size, metrics, and why each is kept."""
    catalog = scan(folder)
    if not is_run(folder) and not catalog.partial:
        raise NotFound(
            f"`{printable(folder)}`: is no run: it has no run.json and no step-00001000 or the like", file=folder
        )
    now = datetime.datetime.now(datetime.UTC)
    rows, notes = _rows(catalog, now)
    if as_json:
        say_json(_as_json(catalog, rows, notes))
    else:
        _print(catalog, rows, now, notes)


def _rows(catalog: Catalog, now: datetime.datetime) -> tuple[list[Row], list[str]]:
    """The rows, and what could not be found out."""
    notes: list[str] = []
    run, pins, rule = None, {}, None
    try:  # a damaged run.json or pin must not hide the checkpoints
        run = read_run_file(catalog.root)
        pins = read_pins(catalog.root)
    except FormatError as reason:
        notes.append(str(reason))
    if run is not None and run.best:
        rule = parse_best(run.best)
    top = best(catalog.readable, rule) if rule else None
    kept = _kept(catalog, run, rule, pins, now)
    rows = [
        Row(
            listed,
            listed is top,
            tuple(name for name, step in pins.items() if step == listed.step),
            kept.get(listed.step, ()),
        )
        for listed in catalog.checkpoints
    ]
    return rows, notes


def _kept(
    catalog: Catalog, run: RunFile | None, rule: BestRule | None, pins: Mapping[str, int], now: datetime.datetime
) -> dict[int, tuple[str, ...]]:
    if run is None or not run.keep:
        return {}
    decisions = plan_prune(catalog.checkpoints, parse_keep(run.keep, best=rule), now, pins=pins)
    return {one.step: one.reasons for one in decisions if one.keep}


def _status(row: Row) -> list[str]:
    notes = ["damaged"] if row.listed.manifest is None else []
    notes += ["best"] if row.best else []
    return notes + [f"pin {name}" for name in row.pins]


def _as_json(catalog: Catalog, rows: list[Row], notes: list[str]) -> dict[str, Any]:
    return {
        "run": catalog.root,
        "checkpoints": [_row_json(row) for row in rows],
        "partial": list(catalog.partial),
        "quarantined": list(catalog.quarantined),
        "superseded": list(catalog.superseded),
        "notes": notes,
    }


def _row_json(row: Row) -> dict[str, Any]:
    manifest = row.listed.manifest
    return {
        "step": row.listed.step,
        "path": row.listed.path,
        "problem": row.listed.problem,
        "epoch": manifest.epoch if manifest else None,
        "batch": manifest.batch if manifest else None,
        "time": manifest.time.isoformat() if manifest else None,
        "size": row.listed.size if manifest else None,
        "metrics": metrics_to_json(manifest.metrics) if manifest else {},
        "best": row.best,
        "pins": list(row.pins),
        "kept": list(row.kept),
    }


def _print(catalog: Catalog, rows: list[Row], now: datetime.datetime, notes: list[str]) -> None:
    names = sorted({name for one in catalog.readable if one.manifest for name in one.manifest.metrics})
    shown = names[:_METRICS]
    header = ["step", "epoch", "age", "size", *(printable(name[:30]) for name in shown), "", "kept by"]
    if rows:
        right = (0, *range(2, 4 + len(shown)))
        say_table(header, [_cells(row, shown, now) for row in rows], right=right)
    else:
        say(f"{printable(catalog.root)}: no checkpoint yet")
    if len(names) > len(shown):
        say(f"{len(names) - len(shown)} more metrics: holdfast show REF, or --json")
    for listed in catalog.checkpoints:
        if listed.problem is not None:
            say(coloured(f"damaged: step {listed.step}: {listed.problem}", "red"))
    for step in catalog.partial:
        say(f"partial: step {step} was never committed; the next writer of the run removes it")
    for title, moved in (("quarantined", catalog.quarantined), ("superseded", catalog.superseded)):
        if moved:
            say(f"{title}: {', '.join(printable(name) for name in moved)}")
    for note in notes:
        say(coloured(note, "yellow"))


def _cells(row: Row, metrics: list[str], now: datetime.datetime) -> list[str]:
    manifest = row.listed.manifest
    status = "; ".join(_status(row))
    if manifest is None:
        return [str(row.listed.step), "", "", "", *("" for _ in metrics), status, ""]
    epoch = "" if manifest.epoch is None else str(manifest.epoch)
    if epoch and manifest.batch:
        epoch += f".{manifest.batch}"
    values = [manifest.metrics.get(name) for name in metrics]
    return [
        str(manifest.step),
        epoch,
        age_text((now - manifest.time).total_seconds()),
        size_text(row.listed.size),
        *("" if value is None else f"{value:.6g}" for value in values),
        status,
        "; ".join(row.kept),
    ]

"""``holdfast ls``: the checkpoints of a run, one a line."""

from __future__ import annotations

import datetime
from typing import Any

import click

from holdfast.cli.output import coloured, say, say_json, say_table, writes_blocks
from holdfast.runs.catalog import Listed, read_reason
from holdfast.runs.listing import METRICS, kept, listing, total_text, trend_text
from holdfast.runs.manifest import metrics_to_json
from holdfast.runs.standing import Standing, scan_run, standing
from holdfast.state.paths import printable


@click.command("ls", epilog="Example: holdfast ls runs/a")
@click.argument("folder", metavar="DIR")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(folder: str, as_json: bool) -> None:
    """List the checkpoints of the run DIR: position, age, size, metrics, which is best, and why each is kept."""
    now = datetime.datetime.now(datetime.UTC)
    run = standing(scan_run(folder), now)
    if as_json:
        say_json(_as_json(run))
    else:
        _print(run, now)


def _as_json(run: Standing) -> dict[str, Any]:
    quarantined = run.catalog.quarantined
    return {
        "run": run.catalog.root,
        "checkpoints": [_row_json(run, listed) for listed in run.catalog.checkpoints],
        "partial": list(run.catalog.partial),
        "quarantined": [{"name": name, "reason": read_reason(run.catalog.root, name)} for name in quarantined],
        "superseded": list(run.catalog.superseded),
        "size": run.catalog.size,
        "budget": run.rules.budget,
        "notes": list(run.notes),
    }


def _row_json(run: Standing, listed: Listed) -> dict[str, Any]:
    manifest = listed.manifest
    return {
        "step": listed.step,
        "path": listed.path,
        "problem": listed.problem,
        "epoch": manifest.epoch if manifest else None,
        "batch": manifest.batch if manifest else None,
        "time": manifest.time.isoformat() if manifest else None,
        "size": listed.size if manifest else None,
        "metrics": metrics_to_json(manifest.metrics) if manifest else {},
        "best": [str(rule) for rule in run.best_by(listed.step)],
        "pins": list(run.pins_of(listed.step)),
        "kept": list(kept(run, listed)),
    }


def _print(run: Standing, now: datetime.datetime) -> None:
    catalog = run.catalog
    if catalog.checkpoints:
        table = listing(run, now)
        say_table(table.header, table.rows, right=(0, *range(2, len(table.header) - 2)))
        say(total_text(run))
        trend = trend_text(run, blocks=writes_blocks())
        if trend is not None:
            say(trend)
        if len(table.metrics) > METRICS:
            say(f"{len(table.metrics) - METRICS} more metrics: holdfast show REF, or --json")
    else:
        say(f"{printable(catalog.root)}: no checkpoint yet")
    for listed in catalog.checkpoints:
        if listed.problem is not None:
            say(coloured(f"damaged: step {listed.step}: {listed.problem}", "red"))
    for step in catalog.partial:
        say(f"partial: step {step} was never committed; the next writer of the run removes it")
    for name in catalog.quarantined:
        say(f"quarantined: {printable(name)}: {printable(read_reason(catalog.root, name))}")
    if catalog.superseded:
        say(f"superseded: {', '.join(printable(name) for name in catalog.superseded)}")
    for note in run.notes:
        say(coloured(note, "yellow"))

"""``holdfast ls``: the checkpoints of a run, one a line."""

from __future__ import annotations

import datetime
from typing import Any

import click

from holdfast.cli.output import age_text, coloured, say, say_json, say_table, size_text
from holdfast.runs.catalog import Listed, read_reason
from holdfast.runs.manifest import metrics_to_json
from holdfast.runs.standing import Standing, scan_run, standing
from holdfast.state.paths import printable

_METRICS = 6


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
        "kept": list(_kept(run, listed)),
    }


def _kept(run: Standing, listed: Listed) -> tuple[str, ...]:
    """Why retention keeps a checkpoint; empty without rules, or when it does not."""
    decision = run.decisions.get(listed.step)
    return decision.reasons if decision is not None and decision.keep else ()


def _print(run: Standing, now: datetime.datetime) -> None:
    catalog = run.catalog
    names = sorted({name for one in catalog.readable if one.manifest for name in one.manifest.metrics})
    shown = names[:_METRICS]
    header = ["step", "epoch", "age", "size", *(printable(name[:30]) for name in shown), "", "kept by"]
    if catalog.checkpoints:
        right = (0, *range(2, 4 + len(shown)))
        say_table(header, [_cells(run, listed, shown, now) for listed in catalog.checkpoints], right=right)
        say(total_text(run))
    else:
        say(f"{printable(catalog.root)}: no checkpoint yet")
    if len(names) > len(shown):
        say(f"{len(names) - len(shown)} more metrics: holdfast show REF, or --json")
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


def total_text(run: Standing) -> str:
    """``3 checkpoints, 1.5 GB of 50 GB``, the budget where the run's rules have one."""
    count = len(run.catalog.checkpoints)
    budget = "" if run.rules.budget is None else f" of {size_text(run.rules.budget)}"
    return f"{count} checkpoint{'' if count == 1 else 's'}, {size_text(run.catalog.size)}{budget}"


def _cells(run: Standing, listed: Listed, metrics: list[str], now: datetime.datetime) -> list[str]:
    manifest = listed.manifest
    marks = ["damaged"] if manifest is None else []
    marks += [f"best by {printable(str(rule))}" for rule in run.best_by(listed.step)]
    status = "; ".join([*marks, *(f"pin {name}" for name in run.pins_of(listed.step))])
    if manifest is None:
        return [str(listed.step), "", "", "", *("" for _ in metrics), status, ""]
    epoch = "" if manifest.epoch is None else str(manifest.epoch)
    if epoch and manifest.batch:
        epoch += f".{manifest.batch}"
    values = [manifest.metrics.get(name) for name in metrics]
    return [
        str(manifest.step),
        epoch,
        age_text((now - manifest.time).total_seconds()),
        size_text(listed.size),
        *("" if value is None else f"{value:.6g}" for value in values),
        status,
        "; ".join(_kept(run, listed)),
    ]

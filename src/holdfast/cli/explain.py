"""``holdfast explain``: which checkpoint a run would resume from, why each is kept, and what became of the others."""

from __future__ import annotations

import datetime
from typing import Any

import click
import msgspec

from holdfast.cli.output import coloured, say, say_json, say_table
from holdfast.errors import FormatError, NotFound
from holdfast.runs.catalog import Catalog, Choice, Listed, choose_resume, read_reason
from holdfast.runs.checkpoint import open_checkpoint
from holdfast.runs.listing import total_text
from holdfast.runs.retention import keep_text
from holdfast.runs.standing import LEFT, Standing, scan_run, standing
from holdfast.state.paths import printable

_PARTIAL = "its save or its deletion did not finish; the next writer of the run removes it"


@click.command("explain", epilog="Example: holdfast explain runs/a")
@click.argument("folder", metavar="DIR")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(folder: str, as_json: bool) -> None:
    """Say which checkpoint of the run DIR a training would resume from and why, and why each is kept or not.

    Also what is damaged, partial, quarantined or superseded. Headers are read, tensors are not: verify reads all.
    """
    catalog = _opened(scan_run(folder))
    run = standing(catalog, datetime.datetime.now(datetime.UTC))
    choice = choose_resume(catalog)
    if as_json:
        say_json(_as_json(run, choice))
    else:
        _print(run, choice)


def _opened(catalog: Catalog) -> Catalog:
    """The catalog after trying to open the newest checkpoints, down to the first that opens: so does a training."""
    for one in reversed(catalog.readable):
        try:
            open_checkpoint(one.path).close()
            return catalog
        except (FormatError, NotFound) as reason:
            damaged = Listed(one.step, one.path, None, str(reason))
            steps = tuple(damaged if listed is one else listed for listed in catalog.checkpoints)
            catalog = msgspec.structs.replace(catalog, checkpoints=steps)
    return catalog


def _set_aside(catalog: Catalog) -> list[tuple[str, str, str]]:
    """(kind, name, why) of what is no checkpoint of the run now."""
    return [
        *(("partial", f"step {step}", _PARTIAL) for step in catalog.partial),
        *(("quarantined", printable(name), printable(read_reason(catalog.root, name))) for name in catalog.quarantined),
        *(("superseded", printable(name), LEFT) for name in catalog.superseded),
    ]


def _as_json(run: Standing, choice: Choice) -> dict[str, Any]:
    return {
        "run": run.catalog.root,
        "resume": {"step": choice.step, "stops": choice.stops, "reasons": list(choice.reasons)},
        "best": [{"rule": str(rule), "step": top.step if top else None} for rule, top in run.best],
        "keep": keep_text(run.rules.keep) or None,
        "size": run.catalog.size,
        "budget": run.rules.budget,
        "pins": run.pins,
        "checkpoints": [
            {
                "step": one.step,
                "problem": one.problem,
                "size": one.size if one.manifest else None,
                "best": [str(rule) for rule in run.best_by(one.step)],
                "standing": word,
                "reasons": list(reasons),
            }
            for one in run.catalog.checkpoints
            for word, reasons in [run.verdict(one.step)]
        ],
        "set_aside": [{"kind": kind, "name": name, "why": why} for kind, name, why in _set_aside(run.catalog)],
        "notes": list(run.notes),
    }


def _print(run: Standing, choice: Choice) -> None:
    anew = "would stop" if choice.stops else "would begin anew"
    start = anew if choice.step is None else f"would resume from step {choice.step}"
    say(f"{printable(run.catalog.root)}: a training {start}")
    for reason in choice.reasons:
        say(f"  {reason}")
    for rule, top in run.best:
        found = "no checkpoint has a number for it" if top is None else f"step {top.step}"
        say(f"best by {printable(str(rule))}: {found}")
    say(f"retention: {printable(keep_text(run.rules.keep)) or 'no rules, all are kept'}")
    say(f"size: {total_text(run)}")
    if run.catalog.checkpoints:
        say()
        say_table(["step", "", "why"], [_row(run, listed) for listed in run.catalog.checkpoints], right=(0,))
    aside = _set_aside(run.catalog)
    if aside:
        say()
        say_table(["set aside", "", "why"], [list(row) for row in aside])
    for note in run.notes:
        say(coloured(note, "yellow"))


def _row(run: Standing, listed: Listed) -> list[str]:
    word, reasons = run.verdict(listed.step)
    return [str(listed.step), word, "; ".join(reasons)]

"""``holdfast explain``: which checkpoint a run would resume from, why each is kept, and what became of the others."""

from __future__ import annotations

import datetime
from typing import Any

import click
import msgspec

from holdfast.cli.output import coloured, say, say_json, say_table
from holdfast.errors import FormatError, NotFound
from holdfast.runs.catalog import Catalog, Choice, Listed, choose_resume
from holdfast.runs.checkpoint import open_checkpoint
from holdfast.runs.moves import read_reason
from holdfast.runs.retention import keep_text
from holdfast.runs.standing import Standing, scan_run, standing
from holdfast.state.paths import printable

_LEFT = "the run went back to an earlier step, and this is the future that it left"
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


def _standing_of(run: Standing, listed: Listed) -> tuple[str, tuple[str, ...]]:
    """What the next prune does with a checkpoint, and why."""
    decision = run.decisions.get(listed.step)
    if decision is None:
        pinned = tuple(f"pinned as {name}" for name in run.pins_of(listed.step))
        return "kept", ("the run has no retention rules: all are kept", *pinned)
    return "kept" if decision.keep else "goes with the next prune", decision.reasons


def _set_aside(catalog: Catalog) -> list[tuple[str, str, str]]:
    """(kind, name, why) of what is no checkpoint of the run now."""
    return [
        *(("partial", f"step {step}", _PARTIAL) for step in catalog.partial),
        *(("quarantined", printable(name), printable(read_reason(catalog.root, name))) for name in catalog.quarantined),
        *(("superseded", printable(name), _LEFT) for name in catalog.superseded),
    ]


def _as_json(run: Standing, choice: Choice) -> dict[str, Any]:
    return {
        "run": run.catalog.root,
        "resume": {"step": choice.step, "stops": choice.stops, "reasons": list(choice.reasons)},
        "best": {
            "rule": str(run.rules.best) if run.rules.best else None,
            "step": run.best.step if run.best else None,
        },
        "keep": keep_text(run.rules.keep) or None,
        "pins": run.pins,
        "checkpoints": [
            {"step": one.step, "problem": one.problem, "standing": word, "reasons": list(reasons)}
            for one in run.catalog.checkpoints
            for word, reasons in [_standing_of(run, one)]
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
    best = run.rules.best
    if best is not None:
        found = "no checkpoint has a number for it" if run.best is None else f"step {run.best.step}"
        say(f"best by {printable(str(best))}: {found}")
    say(f"retention: {printable(keep_text(run.rules.keep)) or 'no rules, all are kept'}")
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
    word, reasons = _standing_of(run, listed)
    return [str(listed.step), word, "; ".join(reasons)]

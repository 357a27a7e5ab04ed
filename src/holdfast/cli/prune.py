"""``holdfast prune``: deletes the checkpoints that no retention rule keeps."""

from __future__ import annotations

import datetime
from typing import Any

import click

from holdfast.cli.output import coloured, say, say_json, say_table, size_text
from holdfast.errors import ArgumentError, CorruptFile
from holdfast.runs.catalog import Catalog
from holdfast.runs.lock import RunLock
from holdfast.runs.moves import prune, sweep_run
from holdfast.runs.retention import Decision, plan_prune
from holdfast.runs.run_file import read_pins
from holdfast.runs.standing import read_rules, scan_run
from holdfast.runs.verify import verify
from holdfast.state.paths import printable


@click.command("prune", epilog='Example: holdfast prune runs/a --keep "last:2 best:1" --dry-run')
@click.argument("folder", metavar="DIR")
@click.option("--keep", metavar="RULES", help="Retention rules; those of the run by default.")
@click.option("--dry-run", is_flag=True, help="Say what would become of each checkpoint, and delete nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(folder: str, keep: str | None, dry_run: bool, as_json: bool) -> None:
    """Delete the checkpoints of the run DIR that no retention rule keeps, and say why each stays or goes.

    The newest, the best by the run's own rule, pinned ones and those that can't be read stay whatever the rules say.
    The newest is verified before the first is deleted. A run that a training is writing is not touched: exit code 5.
    """
    if dry_run:
        catalog, decisions = _plan(folder, keep)
    else:
        scan_run(folder)  # before the lock, which would make a folder that is not there
        with RunLock(folder):
            catalog, decisions = _plan(folder, keep)
            if not all(one.keep for one in decisions):
                _check_newest(catalog)
            prune(catalog, decisions)
            sweep_run(folder)  # what killed writers left: this process holds the lock
    if as_json:
        say_json(_as_json(catalog, decisions, dry_run=dry_run))
    else:
        _print(catalog, decisions, dry_run=dry_run)


def _plan(folder: str, keep: str | None) -> tuple[Catalog, list[Decision]]:
    catalog = scan_run(folder)
    rules = read_rules(folder, keep)
    if not rules.keep:
        raise ArgumentError(
            f"`{printable(folder)}`: the run has no retention rules, so all its checkpoints stay; give some, such as "
            "--keep 'last:2 best:1:val_loss:min'",
            file=folder,
        )
    now = datetime.datetime.now(datetime.UTC)
    return catalog, plan_prune(catalog.checkpoints, rules.keep, now, pins=read_pins(folder))


def _check_newest(catalog: Catalog) -> None:
    """The one that always stays must be worth keeping: an older one may be the last good one."""
    newest = catalog.readable[-1]
    report = verify(newest.path)
    if report.findings:
        first = report.findings[0]
        raise CorruptFile(
            f"`{printable(catalog.root)}`: step {newest.step}, the newest, is damaged, so nothing was deleted: "
            f"{printable(first.name)}: {first.problem}; holdfast verify says which steps are good",
            file=catalog.root,
            step=newest.step,
        )


def _as_json(catalog: Catalog, decisions: list[Decision], *, dry_run: bool) -> dict[str, Any]:
    return {
        "run": catalog.root,
        "dry_run": dry_run,
        "decisions": [{"step": one.step, "keep": one.keep, "reasons": list(one.reasons)} for one in decisions],
        "deleted": [] if dry_run else [one.step for one in decisions if not one.keep],
        "bytes": _bytes(catalog, decisions),
    }


def _print(catalog: Catalog, decisions: list[Decision], *, dry_run: bool) -> None:
    if decisions:
        rows = [[str(one.step), _word(one, dry_run=dry_run), "; ".join(one.reasons)] for one in decisions]
        say_table(["step", "", "why"], rows, right=(0,))
    count = sum(not one.keep for one in decisions)
    done = "would be deleted" if dry_run else "deleted"
    total = f"{count} of {len(decisions)} checkpoints {done}, {size_text(_bytes(catalog, decisions))}"
    say(coloured(total, "yellow") if count and not dry_run else total)


def _word(decision: Decision, *, dry_run: bool) -> str:
    return "kept" if decision.keep else "would be deleted" if dry_run else "deleted"


def _bytes(catalog: Catalog, decisions: list[Decision]) -> int:
    """What the deleted ones hold, as their manifests say."""
    gone = {one.step for one in decisions if not one.keep}
    return sum(one.size for one in catalog.checkpoints if one.step in gone)

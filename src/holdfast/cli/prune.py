"""``holdfast prune``: deletes the checkpoints that no retention rule keeps."""

from __future__ import annotations

import datetime
from typing import Any, NamedTuple

import click

from holdfast.cli.output import coloured, say, say_json, say_table, size_text
from holdfast.cli.progress import progress
from holdfast.errors import ArgumentError, CorruptFile
from holdfast.runs.catalog import Catalog
from holdfast.runs.history import remember
from holdfast.runs.lock import lock_run
from holdfast.runs.moves import prune, sweep_run
from holdfast.runs.retention import Decision, keep_text, kept_bytes, plan_prune
from holdfast.runs.run_file import RunFile, read_pins, read_run_file
from holdfast.runs.standing import Rules, rules_of, scan_run
from holdfast.runs.verify import verify
from holdfast.state.paths import printable
from holdfast.storage.meter import Meter


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
        plan = _plan(folder, keep)
    else:
        scan_run(folder)  # before the lock, which would make a folder that is not there
        with lock_run(folder):
            plan = _plan(folder, keep)
            if not all(one.keep for one in plan.decisions):
                with progress(folder, quiet=as_json) as meter:
                    _check_newest(plan.catalog, meter)
            if plan.run is not None:
                remember(folder, plan.run, plan.catalog, plan.decisions)
            prune(plan.catalog, plan.decisions)
            sweep_run(folder)  # what killed writers left: this process holds the lock
    if as_json:
        say_json(_as_json(plan, dry_run=dry_run))
    else:
        _print(plan, dry_run=dry_run)


class _Plan(NamedTuple):
    run: RunFile | None
    catalog: Catalog
    rules: Rules
    decisions: list[Decision]

    @property
    def left(self) -> int:
        """Bytes of what stays."""
        return kept_bytes(self.catalog.checkpoints, self.decisions)

    def size(self, step: int) -> int | None:
        """Bytes of one checkpoint, as its manifest says; None when it can't be read."""
        listed = self.catalog.find(step)
        return listed.size if listed and listed.manifest else None


def _plan(folder: str, keep: str | None) -> _Plan:
    catalog = scan_run(folder)
    run = read_run_file(folder)
    rules = rules_of(run, folder, keep)
    if not rules.keep:
        raise ArgumentError(
            f"`{printable(folder)}`: the run has no retention rules, so all its checkpoints stay; give some, such as "
            "--keep 'last:2 best:1:val_loss:min'",
            file=folder,
        )
    now = datetime.datetime.now(datetime.UTC)
    return _Plan(run, catalog, rules, plan_prune(catalog.checkpoints, rules.keep, now, pins=read_pins(folder)))


def _check_newest(catalog: Catalog, meter: Meter) -> None:
    """The one that always stays must be worth keeping: an older one may be the last good one."""
    newest = catalog.readable[-1]
    report = verify(newest.path, progress=meter.turn_to)
    if report.findings:
        first = report.findings[0]
        raise CorruptFile(
            f"`{printable(catalog.root)}`: step {newest.step}, the newest, is damaged, so nothing was deleted: "
            f"{printable(first.name)}: {first.problem}; holdfast verify says which steps are good",
            file=catalog.root,
            step=newest.step,
        )


def _as_json(plan: _Plan, *, dry_run: bool) -> dict[str, Any]:
    return {
        "run": plan.catalog.root,
        "dry_run": dry_run,
        "keep": keep_text(plan.rules.keep),
        "budget": plan.rules.budget,
        "decisions": [
            {"step": one.step, "keep": one.keep, "size": plan.size(one.step), "reasons": list(one.reasons)}
            for one in plan.decisions
        ],
        "deleted": [] if dry_run else [one.step for one in plan.decisions if not one.keep],
        "bytes": plan.catalog.size - plan.left,
        "left": plan.left,
    }


def _print(plan: _Plan, *, dry_run: bool) -> None:
    if plan.decisions:
        rows = [
            [
                str(one.step),
                "" if (size := plan.size(one.step)) is None else size_text(size),
                _word(one, dry_run=dry_run),
                "; ".join(one.reasons),
            ]
            for one in plan.decisions
        ]
        say_table(["step", "size", "", "why"], rows, right=(0, 1))
    count = sum(not one.keep for one in plan.decisions)
    done = "would be deleted" if dry_run else "deleted"
    budget = "" if plan.rules.budget is None else f" of {size_text(plan.rules.budget)}"
    total = (
        f"{count} of {len(plan.decisions)} checkpoints {done}, {size_text(plan.catalog.size - plan.left)}; "
        f"{size_text(plan.left)}{budget} {'would stay' if dry_run else 'stay'}"
    )
    say(coloured(total, "yellow") if count and not dry_run else total)
    if count and dry_run:
        say("the newest is verified before the first is deleted")


def _word(decision: Decision, *, dry_run: bool) -> str:
    return "kept" if decision.keep else "would be deleted" if dry_run else "deleted"

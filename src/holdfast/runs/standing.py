"""How the checkpoints of a run stand: which is best, which are pinned, and what the retention rules say of each."""

from __future__ import annotations

import datetime
import os

import msgspec

from holdfast.errors import ArgumentError, CorruptFile, FormatError, NotFound
from holdfast.runs.catalog import Catalog, Listed, best, is_run, scan
from holdfast.runs.layout import RUN_FILE
from holdfast.runs.retention import Decision, Rule, parse_keep, plan_prune, with_best
from holdfast.runs.run_file import BestRule, parse_best, read_pins, read_run_file
from holdfast.state.paths import printable


class Rules(msgspec.Struct, frozen=True):
    """What a run says of its checkpoints.

    Attributes:
        best: which one is best; None when the run does not say.
        keep: the retention rules, that for the best included; empty when all are kept.
    """

    best: BestRule | None = None
    keep: tuple[Rule, ...] = ()


class Standing(msgspec.Struct, frozen=True):
    """The checkpoints of a run and what is known of each.

    Attributes:
        catalog: what is in the folder.
        rules: what the run says of them.
        best: the best checkpoint, if the run says which that is.
        pins: name to step.
        decisions: one for each step; empty without retention rules.
        notes: what could not be found out, for people.
    """

    catalog: Catalog
    rules: Rules
    best: Listed | None
    pins: dict[str, int]
    decisions: dict[int, Decision]
    notes: tuple[str, ...]

    def pins_of(self, step: int) -> tuple[str, ...]:
        """The names that a step is pinned as."""
        return tuple(name for name, pinned in self.pins.items() if pinned == step)


def scan_run(root: str | os.PathLike[str]) -> Catalog:
    """Lists a folder that is to be a run.

    Raises:
        NotFound: there is no such folder, or it has nothing of a run.
        StorageError: it can't be read.
    """
    catalog = scan(root)
    if not is_run(catalog.root) and not catalog.partial:
        raise NotFound(
            f"`{printable(catalog.root)}`: is no run: it has no run.json and no step-00001000 or the like",
            file=catalog.root,
        )
    return catalog


def read_rules(root: str, keep: str | None = None) -> Rules:
    """The rules in a run.json.

    Args:
        root: the run's folder.
        keep: retention rules to take in place of the run's own; the best checkpoint is kept besides.

    Raises:
        FormatError: run.json is damaged, or has a rule that can't be read.
        ArgumentError: ``keep`` can't be read, or is empty.
    """
    run = read_run_file(root)
    try:
        rule = parse_best(run.best) if run is not None and run.best else None
        own = parse_keep(run.keep, best=rule) if keep is None and run is not None and run.keep else ()
    except ArgumentError as reason:
        file = os.path.join(root, RUN_FILE)
        raise CorruptFile(f"`{printable(file)}`: {reason}", file=file) from reason
    return Rules(rule, with_best(own if keep is None else parse_keep(keep, best=rule), rule))


def standing(catalog: Catalog, now: datetime.datetime) -> Standing:
    """How the checkpoints of a run stand. A damaged run.json or pin is a note: it must not hide the checkpoints.

    Args:
        catalog: what is in the run's folder.
        now: the time to which ages are measured, with a time zone.
    """
    notes: list[str] = []
    rules, pins = Rules(), dict[str, int]()
    try:
        rules = read_rules(catalog.root)
    except FormatError as reason:
        notes.append(str(reason))
    try:
        pins = read_pins(catalog.root)
    except FormatError as reason:
        notes.append(str(reason))
    top = best(catalog.readable, rules.best) if rules.best else None
    plan = plan_prune(catalog.checkpoints, rules.keep, now, pins=pins) if rules.keep else []
    return Standing(catalog, rules, top, pins, {one.step: one for one in plan}, tuple(notes))
